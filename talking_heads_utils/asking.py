"""Asking a model one thing: a prompt, with heads and components moved by hand, and what it then says and looks at.

This is what the book's pages run in a browser, by the same rules; sweeps over prompts and settings are
:mod:`~talking_heads_utils.steering`'s and :mod:`~talking_heads_utils.ablation`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, TaskError
from talking_heads_utils.forward.layers import attention_layer, norm_without_scale, wide
from talking_heads_utils.inputs import check_length, labelled_weights
from talking_heads_utils.labels import Component, Head, as_component, as_head
from talking_heads_utils.models import as_bridge
from talking_heads_utils.prompts.encoding import tokenized
from talking_heads_utils.prompts.prefix import begin_ids
from talking_heads_utils.variants import finite

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from talking_heads_utils.weights.heads import HeadWeights

SET, SCALE, ADD = "set", "scale", "add"
_RANK = 1e-5  # of W_O's largest singular value: what of a removed component is left is rounding
_NEAR = 1e-2  # how far from a unit direction its head's write may end


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt of t tokens, all of its last token.

    tokens: ``[t]``. logits: ``[n_vocab]``. pattern: attention to every token, ``[n_layers, n_heads, t]``. z: of every
    head, its value bias, and that of the norm, left out, after heads were scaled and before components were moved,
    ``[n_layers, n_heads, d_head]``. resid: what enters the final norm, ``[d_model]``.
    """

    bridge: TransformerBridge
    tokens: Int[Tensor, "t"]
    logits: Float[Tensor, "n_vocab"]
    pattern: Float[Tensor, "n_layers n_heads t"]
    z: Float[Tensor, "n_layers n_heads d_head"]
    resid: Float[Tensor, "d_model"]

    def likeliest(self, n: int = 5) -> pd.DataFrame:
        """The n likeliest next tokens: ``token, text, logit, probability``."""
        import pandas as pd

        top = self.logits.topk(n)
        text = [self.bridge.tokenizer.decode([token]) for token in top.indices.tolist()]
        odds = self.logits.softmax(-1)[top.indices].tolist()
        return pd.DataFrame(dict(token=top.indices.tolist(), text=text, logit=top.values.tolist(), probability=odds))

    def logit_diff(self, answer: str, other: str) -> float:
        """Logit of one text's first token less that of another's, such as ``" Mary"`` and ``" John"``."""
        a, b = (_token(self.bridge, text) for text in (answer, other))
        return (self.logits[a] - self.logits[b]).item()

    def direct(self, answer: str, other: str) -> Float[Tensor, "n_layers n_heads"]:
        """What of that difference each head writes itself, at the final norm's scale, constants left out."""
        a, b = (_token(self.bridge, text) for text in (answer, other))
        bridge, norm, resid = self.bridge, norm_without_scale(self.bridge), wide(self.resid)
        scale = getattr(bridge.ln_final, "weight", None)
        probe = wide(bridge.W_U[:, a]) - wide(bridge.W_U[:, b])
        probe = norm.center(probe if scale is None else probe * wide(scale))
        W_O = wide(torch.stack([block.attn.W_O for block in bridge.blocks]))
        divisor = norm.scale(norm.center(resid).square().sum(), len(resid))
        return torch.einsum("lhk,lhkd,d->lh", wide(self.z), W_O, probe) / divisor

    def coefficient(self, component: Component | str) -> float:
        """How much of a component its head writes, its largest entry positive."""
        at = as_component(component)
        read, _ = _maps(self.bridge, labelled_weights(self.bridge), at)
        return (self.z[at.layer, at.head] @ read).item()


def ask(
    model: Any,
    text: str,
    *,
    set: Mapping[Component | str, float] | None = None,
    add: Mapping[Component | str, float] | None = None,
    scale: Mapping[Head | Component | str, float] | None = None,
    tokenizer: Any = None,
) -> Answer:
    """Run a prompt with parts of the model moved by hand.

    set, add: what the last token's coefficient of a component, such as ``"L15H3.1"``, becomes, or is raised by, in
    units of its write direction. scale: factors, of a component's coefficient at the last token, or of a whole head's
    z, such as ``"L15H3"``, at every token. A head is scaled before its components are moved. Within
    :func:`~talking_heads_utils.editing.edit` a component is its write direction from before the edit; read the answer
    there, too.

    Raises :class:`LabelError` for a part that is not there, is named twice or is one that an edit left no way to write,
    :class:`OptionError` for an amount that is no finite number, :class:`TaskError` for what is no text, an empty one or
    one too long for the model, and as :func:`~talking_heads_utils.models.as_bridge`.
    """
    bridge = as_bridge(model, tokenizer)
    moves = _moves(bridge, {SET: set or {}, ADD: add or {}, SCALE: scale or {}})
    tokens = _tokens(bridge, text)
    z: list[Tensor] = []
    hooks = []
    for n in range(bridge.cfg.n_layers):
        at = attention_layer(bridge, n)
        here = [move for move in moves if move.part.layer == n]
        hooks.append((f"blocks.{n}.attn.hook_z", partial(_move, here, at.b_V[at.kv_index], z)))
    patterns = [f"blocks.{n}.attn.hook_pattern" for n in range(len(hooks))]
    last = f"blocks.{len(hooks) - 1}.hook_resid_post"
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        logits, cache = bridge.run_with_cache(tokens[None], names_filter=[*patterns, last])
    pattern = torch.stack([cache[name][0, :, -1] for name in patterns])
    return Answer(bridge, tokens, logits[0, -1], pattern, torch.stack(z), cache[last][0, -1])


class _Move(NamedTuple):
    """A part that is moved, and of a component how z is read for it, and what of z writes it."""

    part: Head | Component
    how: str
    amount: float
    read: Float[Tensor, "d_head"] | None = None
    write: Float[Tensor, "d_head"] | None = None


def _move(
    here: list[_Move], bias: Float[Tensor, "n_heads d_head"], kept: list[Tensor],
    z: Float[Tensor, "1 t n_heads d_head"], hook: Any,
) -> Float[Tensor, "1 t n_heads d_head"]:  # fmt: skip
    z, bias = z.clone(), bias.clone()
    for part, _, amount, read, _ in here:
        if read is None:
            z[:, :, part.head] *= amount
            bias[part.head] *= amount
    own = z[0, -1] - bias
    for part, how, amount, read, write in here:
        if read is not None and write is not None:
            now = own[part.head] @ read
            more = amount - now if how == SET else now * (amount - 1) if how == SCALE else amount
            z[0, -1, part.head] += more * write
    kept.append(own)
    return z


def _moves(bridge: TransformerBridge, given: Mapping[str, Mapping[Any, float]]) -> list[_Move]:
    found: dict[Head | Component, _Move] = {}
    weights = None
    for how, amounts in given.items():
        for label, amount in amounts.items():
            amount = finite(amount)
            whole = isinstance(label, Head) or (isinstance(label, str) and "." not in label)
            if whole and how != SCALE:
                raise LabelError(f"{label} is a head, which can only be scaled. Name a component, such as {label}.0.")
            part = as_head(label) if whole else as_component(label)
            if part in found:
                raise LabelError(f"{part} is named twice: move it once.")
            weights = weights or labelled_weights(bridge)
            maps = _maps(bridge, weights, part) if isinstance(part, Component) else ()
            if maps and maps[1] is None:
                raise LabelError(f"{part} cannot be moved: an edit that is in force left its head no way to write it.")
            found[part] = _Move(part if isinstance(part, Component) else weights.head(part), how, amount, *maps)
    return list(found.values())


def _maps(
    bridge: TransformerBridge, weights: HeadWeights, part: Component
) -> tuple[Float[Tensor, "d_head"], Float[Tensor, "d_head"] | None]:
    """Of a component with write direction v: ``W_O v``, which reads its coefficient off z, and the z that writes v,
    None where an edit has left none. weights: those that labels mean; W_O is as the model has it now."""
    v, _ = direction_of(weights, part)
    W_O = attention_layer(bridge, part.layer).W_O[part.head].double()
    if weights.processing.center:
        W_O = W_O - W_O.mean(-1, keepdim=True)
    write = v @ torch.linalg.pinv(W_O, rtol=_RANK)  # least squares would guess where W_O has not its full rank
    writes = (write @ W_O - v).norm() < _NEAR
    return (W_O @ v).to(weights.W_O), write.to(weights.W_O) if writes else None


def _token(bridge: TransformerBridge, text: str) -> int:
    ids = bridge.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TaskError(f"{text!r} is no token.")
    return ids[0]


def _tokens(bridge: TransformerBridge, text: str) -> Int[Tensor, "t"]:
    if not isinstance(text, str):
        raise TaskError(f"Ask one prompt at a time, as a text, not of the type {type(text).__name__}.")
    if not text:
        raise TaskError("Type a prompt that ends just before its answer.")
    ids = [*begin_ids(bridge.tokenizer), *tokenized([text], bridge.tokenizer)[0].ids]
    check_length(bridge, len(ids))
    return torch.tensor(ids, device=bridge.W_U.device)
