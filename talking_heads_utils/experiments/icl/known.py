"""Two heads of which it is known what they do together, so that the measure can be held against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.ablations import ZERO, replacements, run_end
from talking_heads_utils.experiments.icl.redundancy import Reader
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.sets import PromptSet, Recipe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

BACKUP, CHAIN, COPIES, INDEPENDENT = "a backup", "a chain", "two that add", "two independent"
CASES = (BACKUP, CHAIN, COPIES, INDEPENDENT)
N_WORDS, ANSWER, FLAG = 6, 3, 5
LOGIT = 12.0  # what a head that does its work adds to the answer's logit
_SURE = 30.0  # attention score of a head that looks back at the word, or away from it with the other sign


def pair_of(kind: str) -> tuple[Head, Head]:
    """The two heads of :func:`two_heads` that do something."""
    return Head(0, 0), Head(1, 0) if kind in (BACKUP, CHAIN) else Head(0, 1)


def known_interaction(kind: str) -> float:
    """What the two are worth together beyond the sum of what each is worth alone, by formula, in nats of log-odds.

    All other logits are 0, so the log-odds are the answer's logit less a constant. Both in, it is LOGIT (twice that if
    they add), both out 0. One in: LOGIT of a backup or of one that adds, 0 of a chain.
    """
    return {BACKUP: LOGIT, CHAIN: -LOGIT}.get(kind, 0.0)


def two_heads(kind: str) -> TransformerBridge:
    """Two layers of three heads, of which two do something.

    a backup: L0H0 writes the answer, L1H0 writes as much of it only where L0H0's write is absent. a chain: L0H0 writes
    a flag, L1H0 writes the answer only where it sees that flag. two that add: L0H0 and L0H1 write the same answer,
    which either alone makes all but certain. two independent: L0H0 serves prompts whose first word is 1, L0H1 those
    whose first word is 2. Raises :class:`OptionError` for any other kind.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if kind not in CASES:
        raise OptionError(f"{kind!r} is not among {', '.join(CASES)}.")
    sizes = dict(n_layers=2, n_heads=3, d_head=4, d_model=2 * N_WORDS, n_ctx=4, d_vocab=N_WORDS)
    bridge = TransformerBridge.boot_native(
        dict(sizes, attn_only=True, normalization_type=None, seed=0), model_name="two heads"
    )
    plain = {n.replace("_original_component.", ""): p for n, p in bridge.original_model.named_parameters()}
    with torch.no_grad():
        for parameter in plain.values():
            parameter.zero_()
        next(p for n, p in plain.items() if n.startswith("tok_embed"))[:, :N_WORDS] = torch.eye(N_WORDS)
        next(p for n, p in plain.items() if n.startswith("head.weight"))[:, N_WORDS:] = torch.eye(N_WORDS)
        _wire(kind, *(block.attn for block in bridge.blocks))
    return bridge


def _wire(kind: str, lower: AttentionBridge, upper: AttentionBridge) -> None:
    """Give the two heads their weights. Attention in the lower layer is even over two tokens: half a write arrives."""
    answer = N_WORDS + ANSWER
    _move(lower, 0, (1,) if kind == INDEPENDENT else (1, 2), FLAG if kind == CHAIN else answer, 2 * LOGIT)
    if kind in (COPIES, INDEPENDENT):
        _move(lower, 1, (2,) if kind == INDEPENDENT else (1, 2), answer, 2 * LOGIT)
    else:
        _move(upper, 0, (1, 2), answer, LOGIT)
        _look(upper, *((FLAG, 1) if kind == CHAIN else (answer, -1)))


def _move(attn: AttentionBridge, head: int, words: tuple[int, ...], to: int, strength: float) -> None:
    """A head moves a word's own dimension to another, through dimension ``word`` of its own."""
    d_head = attn.W_V.shape[2]
    for word in words:
        attn.v.original_component.weight[head * d_head + word, word] = 1.0
        attn.o.original_component.weight[to, head * d_head + word] = strength


def _look(attn: AttentionBridge, at: int, sign: int) -> None:
    """Head 0 looks at the first word if L0H0 wrote LOGIT at dimension ``at`` (sign 1) or did not (-1), else away."""
    scale = _SURE * attn.W_Q.shape[2] ** 0.5
    attn.q.original_component.weight[0, 0] = -sign * scale  # the last token is word 0
    attn.q.original_component.weight[0, at] = sign * 2 * scale / LOGIT
    attn.k.original_component.weight[0, [1, 2]] = 1.0


def pair_reader(kind: str, n: int = 20) -> Reader:
    """Prompts of both kinds for :func:`two_heads`, ready to be asked with heads out."""
    bridge = two_heads(kind)
    tokens = torch.tensor([[1, 0], [2, 0]]).repeat(n // 2, 1)
    mask, end = torch.ones(n, 2, dtype=torch.bool), {"end": torch.ones(n, dtype=torch.long)}
    answers, none = torch.full((n,), ANSWER), torch.zeros(n, 0, dtype=torch.long)
    prompts = PromptSet(tokens, mask, end, answers, none, [""] * n, {}, Recipe("two heads", n, 0, ""))
    ends, words = prepare(bridge, prompts, 0), torch.arange(N_WORDS)
    return Reader(ends, Numbers(words, words), answers, torch.arange(n), replacements(run_end(ends), ZERO))
