"""A model whose circuit is planted by formula, so that every measure of the book can be held against the truth.

Attention only, three layers, no norm, no training. Layer 0: a duplicate-token head finds the first mention of a name or
item and writes that mention's *place code*. Layer 1: inhibition heads move the mean code of what was named twice to the
last token, through a channel of low rank; a list head takes off the mean code of the whole list; a noise head writes
random codes of the words into the same channel. Layer 2: movers attend to the candidate whose place is inhibited least
and copy it.

The formula. With P_j the unit place code of candidate j and a the answer's, the channel at the last token holds
c = (sum of P_k over k != a) / (n - 1) - (sum of P_k) / n + e = (mean - P_a) / (n - 1) + e, and a mover scores candidate
j by -strength * c . P_j. The model is right where that is largest for j = a: as lists grow the codes crowd and the
signal shrinks with 1 / (n - 1), while the noise e shrinks more slowly. See :func:`predicted_accuracy`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.prompts.sets import check_seed
from talking_heads_utils.prompts.toy import N_POSITIONS, word_tokenizer
from talking_heads_utils.prompts.words import load_words

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

DUPLICATE, INHIBITION, LIST, NOISE, MOVER, DECOY = "duplicate-token", "inhibition", "list", "noise", "mover", "decoy"
SHARP, CANDIDATE, COPY = 60.0, 30.0, 20.0  # how peaked attention is; bonus of a candidate; what a mover writes
GOLDEN = math.pi * (3 - math.sqrt(5))
END_OF = {"names": "to", "objects": "the"}  # the last word of a prompt tells which words are candidates
GAINS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2)  # of the channel's dimensions, so that its components have an order


@dataclass(frozen=True)
class Planted:
    """The model and the truth about it.

    roles: role -> heads. channel: rows span what the movers read of what layer 1 writes.
    components: role -> the components that write into the channel; empty without one.
    places: the code of each position. word_codes: what the noise head writes for each word.
    objects: token ids of the words that lists are made of.
    noise, strength, has_channel: as given to :func:`plant`.
    """

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerFast
    roles: dict[str, list[Head]]
    channel: Float[Tensor, "rank d_model"]
    components: dict[str, list[Component]]
    places: Float[Tensor, "n_pos rank"]
    word_codes: Float[Tensor, "d_vocab rank"]
    objects: Int[Tensor, "n_objects"]
    noise: float
    strength: float
    has_channel: bool


def place_codes(rank: int, n_pos: int) -> Float[Tensor, "n_pos rank"]:
    """Unit codes of positions on a curve that never closes; neighbours in a list are two tokens apart.

    rank 2: a circle in steps of the golden angle. rank 3: a spiral over a sphere. Even ranks from 4 on: a torus of such
    circles at different speeds. Raises :class:`OptionError` for any other.
    """
    if not isinstance(rank, int) or rank not in (2, 3, 4, 6, 8):
        raise OptionError(f"Place codes have rank 2, 3, 4, 6 or 8, not {rank!r}.")
    k = torch.arange(n_pos, dtype=torch.float64).div(2, rounding_mode="floor")
    if rank == 3:
        height = 2 * torch.tensor([_van_der_corput(int(i)) for i in k], dtype=torch.float64) - 1
        around = (1 - height**2).clamp(min=0).sqrt()
        return torch.stack([around * (GOLDEN * k).cos(), around * (GOLDEN * k).sin(), height], 1)
    angles = k[:, None] * GOLDEN * (1 + 0.7 * torch.arange(rank // 2, dtype=torch.float64))
    return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(rank // 2)


def _van_der_corput(i: int) -> float:
    value, digit = 0.0, 0.5
    while i:
        value, i, digit = value + digit * (i % 2), i // 2, digit / 2
    return value


class _Layout:
    """Which dimensions of the residual stream hold what, before the whole is rotated."""

    word: slice
    position: slice
    bos: slice
    names: slice
    objects: slice
    duplicate: slice
    first: slice
    channel: slice
    unread: slice
    spare: slice

    def __init__(self, n_words: int, rank: int):
        sizes = dict(word=n_words, position=N_POSITIONS, bos=1, names=1, objects=1, duplicate=1,
                     first=rank, channel=rank, unread=rank, spare=16)  # fmt: skip
        start = 0
        for name, size in sizes.items():
            setattr(self, name, slice(start, start + size))
            start += size
        self.d_model = start


class _HeadPlan:
    """One head's matrices, filled in by blocks."""

    def __init__(self, d_model: int, d_head: int):
        self.Q, self.K, self.V = (torch.zeros(d_model, d_head, dtype=torch.float64) for _ in range(3))
        self.O = torch.zeros(d_head, d_model, dtype=torch.float64)
        self.b_Q = torch.zeros(d_head, dtype=torch.float64)
        self.strength_at: slice | None = None  # columns of Q that the movers' strength multiplies
        self._qk = self._ov = 0

    def meet(self, query: Tensor | slice | None, key: Tensor | slice, weight: float) -> None:
        """Add ``weight * (query part) . (key part)`` to the score; None is a query that is always one."""
        key = self._columns(key)
        at = slice(self._qk, self._qk + key.shape[1])
        self.K[:, at] = key
        if query is None:
            self.b_Q[at] = weight
        else:
            self.Q[:, at] = weight * self._columns(query)
        self._qk = at.stop

    def move(self, read: Tensor, write: Tensor) -> None:
        """Add ``read @ write``, ``[d_model, r] @ [r, d_model]``, to what the head moves."""
        at = slice(self._ov, self._ov + read.shape[1])
        self.V[:, at], self.O[at] = read, write
        self._ov = at.stop

    def _columns(self, part: Tensor | slice) -> Tensor:
        return torch.eye(len(self.Q), dtype=torch.float64)[:, part] if isinstance(part, slice) else part


def plant(
    *,
    rank: int = 3,
    strength: float = 400.0,
    noise: float = 0.15,
    n_decoys: int = 2,
    channel: bool = True,
    seed: int = 0,
) -> Planted:
    """Build the model. The same arguments give the same model, bit for bit.

    strength: of the movers' queries, in attention score per unit of inhibition. noise: standard deviation of the noise
    head's random codes, per dimension of the channel; with 0, lists of any length are answered. n_decoys: heads per
    layer that do nothing of use. channel=False: the same heads, but what layer 1 writes lands where no mover reads.
    Raises :class:`OptionError` for a rank without place codes or a parameter that is no number from 0 on.
    """
    _check(strength=strength, noise=noise, n_decoys=n_decoys)
    check_seed(seed)
    tokenizer = word_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    places = place_codes(rank, N_POSITIONS)
    words = _word_rows(tokenizer)
    rows = [token for ids in words.values() for token in ids]
    layout = _Layout(len(rows), rank)
    embed, positions = _embeddings(layout, words, tokenizer)
    parts = _Parts(layout, places, embed, words, rank, channel, noise, generator)
    plans = parts.layers(n_decoys)
    turn = torch.linalg.qr(torch.randn(layout.d_model, layout.d_model, generator=generator, dtype=torch.float64))[0]
    word_codes = torch.zeros(len(tokenizer), rank)
    word_codes[rows] = parts.word_codes.float()
    roles = _roles(n_decoys)
    writing = (INHIBITION, LIST, *([NOISE] if noise else [])) if channel else ()
    return Planted(
        bridge=_build(layout, plans, embed, positions, turn, tokenizer, strength),
        tokenizer=tokenizer,
        roles=roles,
        channel=turn[layout.channel].float(),
        components={r: [Component(h.layer, h.head, i) for h in roles[r] for i in range(rank)] for r in writing},
        places=places.float(),
        word_codes=word_codes,
        objects=torch.tensor(words["objects"]),
        noise=noise,
        strength=strength,
        has_channel=channel,
    )


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise OptionError(f"{name} must be a finite number and not negative, not {value!r}.")
    if not isinstance(numbers["n_decoys"], int):
        raise OptionError(f"n_decoys is a number of heads, not {numbers['n_decoys']!r}.")


def _roles(n_decoys: int) -> dict[str, list[Head]]:
    roles = {
        DUPLICATE: [Head(0, 0)], INHIBITION: [Head(1, 0), Head(1, 1)], LIST: [Head(1, 2)], NOISE: [Head(1, 3)],
        MOVER: [Head(2, 0), Head(2, 1)],
    }  # fmt: skip
    used = {head for heads in roles.values() for head in heads}
    return roles | {DECOY: [head for head in heads_in(range(3), 4 + n_decoys) if head not in used]}


def _word_rows(tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    return {kind: tokenizer.convert_tokens_to_ids(list(load_words(kind, tokenizer, 1))) for kind in END_OF}


def _embeddings(
    layout: _Layout, words: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """One dimension per name and item, flags for the sink and for the last words, one dimension per position."""
    embed = torch.zeros(len(tokenizer), layout.d_model, dtype=torch.float64)
    rows = [token for ids in words.values() for token in ids]
    embed[rows, torch.arange(len(rows))] = 1
    embed[tokenizer.bos_token_id, layout.bos] = 1
    for kind, word in END_OF.items():
        embed[tokenizer.convert_tokens_to_ids(word), getattr(layout, kind)] = 1
    positions = torch.zeros(N_POSITIONS, layout.d_model, dtype=torch.float64)
    positions[:, layout.position] = torch.eye(N_POSITIONS, dtype=torch.float64)
    return embed, positions


class _Parts:
    """The heads, by role."""

    def __init__(
        self, layout: _Layout, places: Tensor, embed: Tensor, words: dict[str, list[int]], rank: int, channel: bool,
        noise: float, generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.layout, self.rank, self.generator = layout, rank, generator
        self.word_codes = noise * torch.randn(layout.word.stop, rank, generator=generator, dtype=torch.float64)
        self.out = layout.channel if channel else layout.unread
        self.d_head = max(layout.word.stop + N_POSITIONS + 1, rank + 6)
        self.gains = torch.tensor(GAINS[:rank], dtype=torch.float64)
        self.eye = torch.eye(layout.d_model, dtype=torch.float64)
        self.codes = self._lift(layout.position, places.clone())
        self.codes[layout.position.start] = 0  # the sink has no place
        self.is_word = self._lift(layout.word, torch.ones(layout.word.stop, 1, dtype=torch.float64))
        first = len(words["names"])
        self.kinds = {}
        for kind, rows in (("names", slice(0, first)), ("objects", slice(first, layout.word.stop))):
            self.kinds[kind] = torch.zeros(layout.d_model, 1, dtype=torch.float64)
            self.kinds[kind][rows] = 1

    def layers(self, n_decoys: int) -> list[list[_HeadPlan]]:
        named = (
            [self.duplicate()],
            [self.inhibition(), self.inhibition(), self.whole_list(), self.noisy()],
            [self.mover(), self.mover()],
        )
        return [plans + [self.decoy() for _ in range(4 + n_decoys - len(plans))] for plans in named]

    def _plan(self, sink: float = SHARP / 2) -> _HeadPlan:
        plan = _HeadPlan(self.layout.d_model, self.d_head)
        if sink:
            plan.meet(None, self.layout.bos, sink)
        return plan

    def _lift(self, where: slice, block: Tensor) -> Tensor:
        full = torch.zeros(self.layout.d_model, block.shape[1], dtype=torch.float64)
        full[where] = block
        return full

    def duplicate(self) -> _HeadPlan:
        """To an earlier token that is the same word, never itself; writes a flag and that place's code."""
        plan, at = self._plan(), self.layout
        plan.meet(at.word, at.word, SHARP)
        plan.meet(at.position, at.position, -2 * SHARP)
        plan.move(self.is_word, self.eye[at.duplicate])
        plan.move(self.codes / self.gains, self.eye[at.first])
        return plan

    def inhibition(self) -> _HeadPlan:
        """To everything that was named before; half of the mean place code goes into the channel."""
        plan, at = self._plan(), self.layout
        plan.meet(None, at.duplicate, SHARP)
        plan.move(self.eye[:, at.first], 0.5 * self.gains[:, None] * self.eye[self.out])
        return plan

    def whole_list(self) -> _HeadPlan:
        """From the last token to every candidate's first mention; takes the mean place code out of the channel."""
        plan = self._plan()
        self._candidates(plan, SHARP)
        plan.move(self.codes, -self.eye[self.out])
        return plan

    def noisy(self) -> _HeadPlan:
        """To every word; writes its random code into the channel."""
        plan = self._plan()
        plan.meet(None, self.is_word, SHARP)
        plan.move(self._lift(self.layout.word, self.word_codes), self.eye[self.out])
        return plan

    def mover(self) -> _HeadPlan:
        """To the candidate that the channel inhibits least; copies its word."""
        plan, at = self._plan(sink=0), self.layout
        self._candidates(plan, CANDIDATE)
        plan.meet(-self.eye[:, at.channel], self.codes, 1.0)  # scaled by the strength when the model is built
        plan.strength_at = slice(plan._qk - self.rank, plan._qk)
        plan.move(self.eye[:, at.word], 0.5 * COPY * self.eye[at.word])
        return plan

    def _candidates(self, plan: _HeadPlan, weight: float) -> None:
        """First mentions of the kind of word that the last token asks for."""
        for kind in END_OF:
            plan.meet(getattr(self.layout, kind), self.kinds[kind] - self.eye[:, self.layout.duplicate] * 2, weight)

    def decoy(self) -> _HeadPlan:
        """Reads and writes at random in dimensions that nobody else uses."""
        plan, d, spare = self._plan(), self.layout.d_model, self.layout.spare

        def random() -> Tensor:
            block = torch.randn(spare.stop - spare.start, 8, generator=self.generator, dtype=torch.float64)
            return self._lift(spare, block)

        plan.meet(random(), random(), 0.1)
        plan.move(random(), random().T / d)
        return plan


def _build(
    layout: _Layout, plans: list[list[_HeadPlan]], embed: Tensor, positions: Tensor, turn: Tensor,
    tokenizer: PreTrainedTokenizerFast, strength: float,
) -> TransformerBridge:  # fmt: skip
    from transformer_lens.model_bridge import TransformerBridge

    n_heads, d_head = len(plans[0]), plans[0][0].Q.shape[1]
    config = dict(
        n_layers=len(plans), n_heads=n_heads, d_head=d_head, d_model=layout.d_model, n_ctx=N_POSITIONS,
        d_vocab=len(tokenizer), attn_only=True, normalization_type=None, seed=0,
    )  # fmt: skip
    bridge = TransformerBridge.boot_native(config, model_name="planted")
    # parameters by their plain paths, whatever the bridge has wrapped around the modules on the way
    plain = {n.replace("_original_component.", ""): p for n, p in bridge.original_model.named_parameters()}
    unembed = torch.zeros_like(embed)
    unembed[:, layout.word] = embed[:, layout.word]
    tensors = {"tok_embed.weight": embed @ turn, "pos.weight": positions @ turn, "head.weight": unembed @ turn}
    scale = math.sqrt(d_head)  # the model divides its scores by it
    for layer, heads in enumerate(plans):
        for plan in heads:
            if plan.strength_at is not None:
                plan.Q[:, plan.strength_at] *= strength
        W = {name: torch.stack([getattr(plan, name) for plan in heads]) for name in ("Q", "K", "V", "O", "b_Q")}
        W["Q"], W["b_Q"] = scale * W["Q"], scale * W["b_Q"]
        at = f"layers.{layer}.attn"
        for name in "QKV":
            tensors[f"{at}.{name.lower()}.weight"] = (turn.T @ W[name]).transpose(1, 2).flatten(0, 1)
            tensors[f"{at}.{name.lower()}.bias"] = torch.zeros(n_heads * d_head)
        tensors[f"{at}.q.bias"] = W["b_Q"].flatten()
        tensors[f"{at}.o.weight"] = (W["O"] @ turn).flatten(0, 1).T
        tensors[f"{at}.o.bias"] = torch.zeros(layout.d_model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            plain[name].copy_(tensor)
    bridge.tokenizer = tokenizer
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = True  # as its tokenizer does
    return bridge.eval()


def predicted_accuracy(
    planted: Planted, n_items: int, firsts: Int[Tensor, "n"], *, n_draws: int = 50_000, seed: int = 0
) -> float:
    """Accuracy on lists of n that the crowding of the places predicts, by the formula at the top of this module.

    firsts: token positions at which lists begin, one of which is drawn each time, as are the list's words. The noise
    head meets 2n - 1 words, n - 1 of them twice, and writes the mean of their codes. Without a channel nothing is
    known and the answer is a guess.
    """
    if not planted.has_channel:
        return 1 / n_items
    generator = torch.Generator().manual_seed(seed)
    starts = firsts[torch.randint(len(firsts), (n_draws,), generator=generator)]
    P = planted.places[starts[:, None] + 2 * torch.arange(n_items)]  # [n_draws, n_items, rank]
    deal = torch.rand(n_draws, len(planted.objects), generator=generator).topk(n_items, 1).indices
    codes = planted.word_codes[planted.objects[deal]]
    each, answers = torch.arange(n_draws), torch.randint(n_items, (n_draws,), generator=generator)
    noise = (2 * codes.sum(1) - codes[each, answers]) / (2 * n_items - 1)
    held = (P.mean(1) - P[each, answers]) / (n_items - 1) + noise
    return ((-(P @ held[:, :, None])[..., 0]).argmax(1) == answers).float().mean().item()
