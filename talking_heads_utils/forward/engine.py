"""The one engine: a model's layers run one by one, on some positions of its prompts, for many variants at once.

A position depends on those before it alone. So what stands before the first position that changes is computed once per
prompt and kept as keys and values; every variant costs the positions from there on, in the layers that are left. One
position (``end``) is the case of steering and of ablation at the last token, all positions that of edits.

A *change* is a function of site, layer and value that returns the value to go on with; :data:`SITES` says what it sees.
Attention, streams and logits are in single precision whatever the model's; an MLP is run in the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import ModelError, OptionError, UnsupportedModelError
from talking_heads_utils.forward.ends import runs
from talking_heads_utils.forward.layers import (
    HALF_TOLERANCES,
    TOLERANCE,
    AttentionLayer,
    Layer,
    Norm,
    layer_of,
    norm_without_scale,
    project,
    wide,
)
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.bridge import check_attention, rotary_of
from talking_heads_utils.weights.heads import Rotary
from talking_heads_utils.weights.rotary import turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RESID_PRE, NORMED, Q, PATTERN, Z = "resid_pre", "normed", "q", "pattern", "z"
ATTN_OUT, MLP_OUT = "attn_out", "mlp_out"
# What a change sees, in the order of a layer. n prompts, k variants, q positions:
#   resid_pre  [n k q d_model]    the stream that enters the layer; here and in what is written k may grow from 1
#   normed     [n k q d_model]    what queries, keys and values are made of, without the norm's scale
#   q          [n k q n_heads d_head]  queries, before any rotation
#   pattern    [n k n_heads q n_pos+q] attention: to the kept positions, then to the q positions themselves
#   z          [n k q n_heads d_head]  what heads gather
#   attn_out, mlp_out  [n k q d_model]
# Where only the last layer's output at end is wanted, q is 1 there from its queries on.
SITES = (RESID_PRE, NORMED, Q, PATTERN, Z, ATTN_OUT, MLP_OUT)
Change = Callable[[str, int, Tensor], Tensor]
Rows = slice | Int[Tensor, "rows"]  # some of the n prompts
_HOOKS = {RESID_PRE: "hook_resid_pre", Z: "attn.hook_z", ATTN_OUT: "hook_attn_out", MLP_OUT: "hook_mlp_out"}


@dataclass(frozen=True)
class Forward:
    """The layers of a model from ``start`` on, and what one plain run of n prompts left there.

    keys, values: by layer, of every position, ``[n, n_kv_heads, n_pos, d_head]``; keys rotated to their places.
    kept: ``(site, layer)`` -> what stood there in the plain run at every position: ``resid_pre`` of ``start``, and what
        was asked for besides.
    final: the stream at ``end`` after the last layer, ``[n, d_model]``. end: the last token's position.
    width: numbers that one position of one variant takes in the widest layer, by which blocks are cut.
    """

    start: int
    layers: list[Layer]
    keys: list[Float[Tensor, "n n_kv_heads n_pos d_head"]]
    values: list[Float[Tensor, "n n_kv_heads n_pos d_head"]]
    kept: Mapping[tuple[str, int], Tensor]
    final: Float[Tensor, "n d_model"]
    end: Int[Tensor, "n"]
    width: int
    norm: Norm
    parallel: bool
    rotary: Rotary | None
    unembed: Float[Tensor, "d_model d_vocab"]
    unembed_bias: Float[Tensor, "d_vocab"]

    @property
    def n_layers(self) -> int:
        return self.start + len(self.layers)

    @property
    def n_heads(self) -> int:
        return len(self.layers[0].attention.W_Q)

    @property
    def n_pos(self) -> int:
        return self.keys[0].shape[2]

    @property
    def resid(self) -> Float[Tensor, "n d_model"]:
        """The stream that enters the first layer that is kept, at ``end``."""
        return self.plain(RESID_PRE, self.start, self.at_end())[:, 0]

    def at_end(self) -> Int[Tensor, "n 1"]:
        """The positions to run for what is done at the last token alone."""
        return self.end[:, None]

    def everywhere(self) -> Int[Tensor, "n n_pos"]:
        """All positions."""
        return torch.arange(self.n_pos, device=self.end.device).expand(len(self.end), -1)

    def plain(
        self, site: str, layer: int, at: Int[Tensor, "n q"], rows: Rows = slice(None)
    ) -> Float[Tensor, "rows q *shape"]:
        """What the plain run had at a site, at some positions. Raises :class:`OptionError` where it was not kept."""
        if (site, layer) not in self.kept:
            raise OptionError(f"{site} of layer {layer} was not kept: prepare the prompts with keep=({site!r},).")
        return at_positions(self.kept[site, layer][rows], at[rows])

    def run(
        self,
        x: Float[Tensor, "n k q d_model"],
        at: Int[Tensor, "n q"],
        *,
        start: int | None = None,
        stop: int | None = None,
        change: Change | None = None,
        rows: Rows = slice(None),
        only_end: bool = False,
    ) -> Float[Tensor, "n k q d_model"]:
        """The stream that leaves layer ``stop - 1`` (by default the last), at the positions ``at``.

        x: what enters layer ``start`` there, for the prompts in ``rows``. at: of all n prompts, ascending by one;
        positions past ``end`` are padding and change nothing. change: see :data:`SITES`. only_end: at ``end`` alone,
        ``[n k 1 d_model]``, which saves most of the last layer.
        """
        layers = range(self.start if start is None else start, self.n_layers if stop is None else stop)
        for layer in layers:
            x = self.layer(layer, x, at, rows, change, only_end=only_end and layer == layers[-1])
        return x

    def layer(
        self,
        layer: int,
        x: Float[Tensor, "n k q d_model"],
        at: Int[Tensor, "n q"],
        rows: Rows = slice(None),
        change: Change | None = None,
        only_end: bool = False,
    ) -> Float[Tensor, "n k q d_model"]:
        """One layer, as :meth:`run` takes it."""
        change, at = change or _unchanged, at[rows]
        asked = (self.end[rows] - at[:, 0])[:, None] if only_end and at.shape[1] > 1 else None
        x = change(RESID_PRE, layer, x)
        z = change(Z, layer, self.attend(layer, x, at, rows, change, asked))
        x = x if asked is None else some_queries(x, asked)
        attention = change(ATTN_OUT, layer, self.write(layer, z))
        middle = x + attention
        return middle + change(MLP_OUT, layer, self.mlp(layer, x, middle))

    def write(self, layer: int, z: Float[Tensor, "n k q n_heads d_head"]) -> Float[Tensor, "n k q d_model"]:
        """What a layer's attention writes, given each head's ``z``."""
        at = self.layers[layer - self.start].attention
        return z.flatten(-2) @ at.W_O.flatten(0, 1) + at.b_O

    def mlp(self, layer: int, x: Tensor, middle: Tensor) -> Float[Tensor, "n k q d_model"]:
        """What a layer's MLP writes, from what the layer read (``x``) and what stands there after attention."""
        part = self.layers[layer - self.start]
        if part.mlp is None:
            return torch.zeros_like(middle)
        normed = self.norm(x if self.parallel else middle)
        normed = normed if part.mlp_scale is None else normed * part.mlp_scale
        return part.mlp(normed if part.mlp_bias is None else normed + part.mlp_bias)

    def attend(
        self,
        layer: int,
        x: Float[Tensor, "n k q d_model"],
        at: Int[Tensor, "n q"],
        rows: Rows = slice(None),
        change: Change | None = None,
        asked: Int[Tensor, "n a"] | None = None,
    ) -> Float[Tensor, "n k a n_heads d_head"]:
        """What the heads of a layer gather: every attention of this package goes through here.

        at: of the prompts in ``rows``. asked: which of the q positions have a query; all by default.
        """
        W, change = self.layers[layer - self.start].attention, change or _unchanged
        normed = change(NORMED, layer, W.norm(x))
        pattern = self._pattern(layer, W, normed, at, rows, asked, change)
        if change is not _unchanged:
            seen = change(PATTERN, layer, pattern.permute(0, 2, 1, 3, 4, 5).flatten(2, 3))
            pattern = seen.unflatten(2, pattern.shape[1:4:2]).permute(0, 2, 1, 3, 4, 5)
        value = project(normed, W.W_V, W.b_V).permute(0, 3, 1, 2, 4)  # [n, n_kv, k, q, d_head]
        own = pattern[..., -at.shape[1] :]
        z = own * value[:, :, :, None] if at.shape[1] == 1 else (own.flatten(3, 4) @ value).unflatten(3, own.shape[3:5])
        if n_before := int(at[:, 0].max()):
            kept, values = pattern[..., : -at.shape[1]], self.values[layer - self.start][rows, :, :n_before]
            z = z + (kept.flatten(2, 4) @ values).unflatten(2, kept.shape[2:5])
        return z.permute(0, 2, 4, 1, 3, 5).flatten(3, 4)

    def patterns(
        self, layer: int, x: Float[Tensor, "n k q d_model"], at: Int[Tensor, "n q"], rows: Rows, heads: Sequence[int],
        change: Change | None = None,
    ) -> Float[Tensor, "n k n_some q n_before_q"]:  # fmt: skip
        """Attention of some heads alone, as :data:`PATTERN` has it. at: of the prompts in ``rows``. change: of
        :data:`Q`."""
        W = self.layers[layer - self.start].attention
        kv = W.kv_index[list(heads)]
        some = replace(W, W_Q=W.W_Q[list(heads)], b_Q=W.b_Q[list(heads)], W_K=W.W_K[kv], b_K=W.b_K[kv])
        return self._pattern(layer, some, W.norm(x), at, rows, None, change, kv).permute(0, 2, 1, 3, 4, 5).flatten(2, 3)

    def _pattern(
        self, layer: int, W: AttentionLayer, normed: Tensor, at: Tensor, rows: Rows, asked: Tensor | None = None,
        change: Change | None = None, kv: slice | Tensor = slice(None),
    ) -> Float[Tensor, "n n_kv k group a n_before_q"]:  # fmt: skip
        """Attention to the kept positions, then to the q that are run."""
        asking, asked_at = (normed, at) if asked is None else (some_queries(normed, asked), at.gather(1, asked))
        query = (change or _unchanged)(Q, layer, project(asking, W.W_Q, W.b_Q))
        query = turn(query, self.rotary, asked_at[:, None, :, None])
        key = turn(project(normed, W.W_K, W.b_K), self.rotary, at[:, None, :, None]).permute(0, 3, 1, 2, 4)
        query = query.unflatten(3, (-1, len(W.W_Q) // len(W.W_K))).permute(0, 3, 1, 4, 2, 5)
        scores = _own_scores(query, key, at, asked_at)  # [n, n_kv, k, group, a, q]
        if n_before := int(at[:, 0].max()):
            keys = self.keys[layer - self.start][rows, :, :n_before][:, kv]
            hidden = torch.arange(n_before, device=at.device) >= at[:, :1]
            to_kept = (query.flatten(2, 4) @ keys.mT).unflatten(2, query.shape[2:5])
            scores = torch.cat([to_kept.masked_fill_(hidden[:, None, None, None, None], -torch.inf), scores], -1)
        return scores.div_(query.shape[-1] ** 0.5).softmax(-1)

    def logits(
        self, final: Float[Tensor, "n k d_model"], tokens: Int[Tensor, "n n_tokens"] | None = None
    ) -> Float[Tensor, "n k n_tokens"]:
        """Logits of a final stream: of all words, or of some ``tokens`` of each prompt."""
        normed = self.norm(final)
        if tokens is None:
            return normed @ self.unembed + self.unembed_bias
        return normed @ self.unembed.T[tokens].mT + self.unembed_bias[tokens][:, None]


def _unchanged(site: str, layer: int, value: Tensor) -> Tensor:
    return value


def at_positions(values: Float[Tensor, "n n_pos *shape"], at: Int[Tensor, "n q"]) -> Float[Tensor, "n q *shape"]:
    """Each prompt's values at its own positions; the last one's for those past it."""
    return values[torch.arange(len(values), device=at.device)[:, None], at.clamp(max=values.shape[1] - 1)]


def some_queries(x: Float[Tensor, "n k q d"], which: Int[Tensor, "n a"]) -> Float[Tensor, "n k a d"]:
    """Those of the q positions that are asked for."""
    return x.gather(2, which[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


def _own_scores(
    query: Float[Tensor, "n n_kv k group a d_head"],
    key: Float[Tensor, "n n_kv k q d_head"],
    at: Int[Tensor, "n q"],
    asked_at: Int[Tensor, "n a"],
) -> Float[Tensor, "n n_kv k group a q"]:
    """Products of the queries with the keys of the positions that are run, later ones hidden."""
    if at.shape[1] == 1:
        return (query * key[:, :, :, None]).sum(-1, keepdim=True)
    scores = (query.flatten(3, 4) @ key.mT).unflatten(3, query.shape[3:5])
    later = at[:, None] > asked_at[:, :, None]
    return scores.masked_fill_(later[:, None, None, None], -torch.inf)


def to_positions(pattern: Float[Tensor, "*batch q n_before_q"], at: Int[Tensor, "n q"], n_pos: int) -> Tensor:
    """A pattern as :data:`PATTERN` has it, ``[n, k, n_heads, q, n_before + q]``, by position ``[n, k, n_heads, q,
    n_pos]``."""
    n_before = pattern.shape[-1] - at.shape[1]
    out = pattern.new_zeros(*pattern.shape[:-1], n_pos)
    out[..., :n_before] = pattern[..., :n_before]
    where = at.clamp(max=n_pos - 1)[:, None, None, None].expand(*pattern.shape[:-1], -1)
    return out.scatter_add(-1, where, pattern[..., n_before:])


@torch.no_grad()
def prepare(
    bridge: TransformerBridge,
    prompts: PromptSet,
    start: int = 0,
    *,
    keep: Sequence[str] = (),
    check: bool = True,
) -> Forward:
    """Run ``prompts`` once and keep what the layers from ``start`` on need, and ``keep`` of every such layer.

    keep: of ``resid_pre``, ``z``, ``attn_out``, ``mlp_out``. check: that our layers end where the model's own run does,
    in stream and logits, for one position and for all; hooks in force on the model would prevent it.
    Raises :class:`OptionError` for a layer or site that is not there, :class:`UnsupportedModelError` for a model whose
    layers do something that is not known here, :class:`ModelError` for one that is spread over several devices.
    """
    n_layers, rotary = bridge.cfg.n_layers, rotary_of(bridge)
    _check_ours(bridge, prompts, start, keep)
    upper = range(start, n_layers)
    wanted = {(RESID_PRE, start)} | {(site, layer) for site in keep for layer in upper}
    wanted -= {(MLP_OUT, layer) for layer in upper if getattr(bridge.blocks[layer], "mlp", None) is None}
    names = {at: f"blocks.{at[1]}.{_HOOKS[at[0]]}" for at in wanted}
    names |= {(kind, layer): f"blocks.{layer}.attn.hook_{kind}" for layer in upper for kind in "kv"}
    parts, finals, logits = {at: list[Tensor]() for at in names}, [], []
    for batch in runs(bridge, prompts, set(names.values())):
        for at, name in names.items():
            parts[at].append(wide(batch.at[name]))
        finals.append(wide(batch.final))
        logits.append(wide(batch.logits[:2]))
    found = {at: torch.cat(some) for at, some in parts.items()}
    places = torch.arange(prompts.tokens.shape[1], device=bridge.cfg.device)[:, None]
    W_U, b_U = wide(bridge.W_U), bridge.unembed.b_U
    scale, bias = (getattr(bridge.ln_final, name, None) for name in ("weight", "bias"))
    unembed_bias = W_U.new_zeros(W_U.shape[1]) if b_U is None else wide(b_U)
    made = Forward(
        start=start,
        layers=[layer_of(bridge, layer) for layer in upper],
        keys=[turn(found.pop(("k", layer)), rotary, places).transpose(1, 2).contiguous() for layer in upper],
        values=[found.pop(("v", layer)).transpose(1, 2).contiguous() for layer in upper],
        kept=found,
        final=torch.cat(finals),
        end=prompts.positions["end"].to(bridge.cfg.device),
        width=max(4 * bridge.cfg.d_model, int(getattr(bridge.cfg, "d_mlp", 0) or 0)),
        norm=norm_without_scale(bridge),
        parallel=bool(getattr(bridge.cfg, "parallel_attn_mlp", False)),
        rotary=rotary,
        unembed=W_U if scale is None else W_U * wide(scale)[:, None],
        unembed_bias=unembed_bias if bias is None else unembed_bias + wide(bias) @ W_U,
    )
    if check:
        _check_like_model(made, torch.cat(logits)[:2], bridge)
    return made


def _check_ours(bridge: TransformerBridge, prompts: PromptSet, start: int, keep: Sequence[str]) -> None:
    if not 0 <= start < bridge.cfg.n_layers:
        raise OptionError(f"No layer {start}: {bridge.cfg.model_name} has layers 0..{bridge.cfg.n_layers - 1}.")
    if bad := [site for site in keep if site not in _HOOKS]:
        raise OptionError(f"Nothing is kept of {bad[0]!r}: name {', '.join(_HOOKS)}.")
    if len(devices := {str(p.device) for p in bridge.parameters()}) > 1:
        raise ModelError(
            f"{bridge.cfg.model_name} is spread over {', '.join(sorted(devices))}; single layers are run on one. "
            "Load it on one device, with dtype=torch.bfloat16 if it must be smaller."
        )
    check_attention(bridge, prompts.tokens.shape[1])


def _check_like_model(made: Forward, logits: Float[Tensor, "2 d_vocab"], bridge: TransformerBridge) -> None:
    """Raises :class:`UnsupportedModelError` where our layers end elsewhere than the model's own run."""
    some, own = slice(0, len(logits)), made.final[: len(logits)]
    rows = torch.arange(len(logits), device=own.device)
    usual = made.norm(own).norm() * made.unembed.norm() / own.shape[-1] ** 0.5  # without any write all are 0
    spread = torch.maximum((logits - logits.mean(-1, keepdim=True)).norm(), usual)
    for at in (made.at_end(), made.everywhere()):
        x = made.plain(RESID_PRE, made.start, at, some)[:, None]
        stream = made.run(x, at, rows=some)[:, 0]
        final = stream[:, 0] if at.shape[1] == 1 else stream[rows, made.end[some]]
        given = made.logits(final[:, None])[:, 0]
        gap = max((final - own).norm() / own.norm(), (given - logits).norm() / spread)
        if not gap < HALF_TOLERANCES.get(bridge.W_U.dtype, TOLERANCE):
            raise UnsupportedModelError(
                f"{bridge.cfg.model_name} works in a way that is not known here: its layers, run one by one, end "
                f"elsewhere than its own run (by {gap:.1e} of its length). All would be wrong."
            )


def reading(heads: Sequence[Head], into: dict[Head, Tensor]) -> Change:
    """A change that changes nothing and puts the patterns of some heads, ``[n, k, q, n_before + q]``, ``into`` a
    dictionary."""
    by_layer: dict[int, list[Head]] = {}
    for head in heads:
        by_layer.setdefault(head.layer, []).append(head)

    def look(site: str, layer: int, value: Tensor) -> Tensor:
        if site == PATTERN:
            into.update({head: value[:, :, head.head] for head in by_layer.get(layer, ())})
        return value

    return look


def chained(*changes: Change) -> Change:
    """One change after the other."""

    def both(site: str, layer: int, value: Tensor) -> Tensor:
        for change in changes:
            value = change(site, layer, value)
        return value

    return both
