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
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.prompts.sets import check_seed
from talking_heads_utils.prompts.toy import N_POSITIONS, word_tokenizer
from talking_heads_utils.prompts.words import load_words
from talking_heads_utils.roles import DUPLICATE_TOKEN, NAME_MOVER, S_INHIBITION

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

DUPLICATE, INHIBITION, LIST, NOISE, MOVER, DECOY = "duplicate-token", "inhibition", "list", "noise", "mover", "decoy"
SHARP, CANDIDATE, COPY = 60.0, 30.0, 20.0  # how peaked attention is; bonus of a candidate; what a mover writes
GOLDEN = math.pi * (3 - math.sqrt(5))
END_OF = {"names": "to", "objects": "the"}  # the last word of a prompt tells which words are candidates
N_HEADS = 6  # per layer; those without a role do nothing of use
GAINS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2)  # of the channel's dimensions, so that its components have an order


ROLES = {
    DUPLICATE: (Head(0, 0),), INHIBITION: (Head(1, 0), Head(1, 1)), LIST: (Head(1, 2),), NOISE: (Head(1, 3),),
    MOVER: (Head(2, 0), Head(2, 1)),
}  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """The model and the truth about it.

    roles: role -> heads. channel: rows span what the movers read of what layer 1 writes.
    components: role -> the components that write into the channel; empty without one.
    places: the code of each position. word_codes: what the noise head writes for each word.
    objects: token ids of the words that lists are made of.
    has_channel: as given to :func:`plant`.
    """

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerFast
    roles: dict[str, list[Head]]
    channel: Float[Tensor, "rank d_model"]
    components: dict[str, list[Component]]
    places: Float[Tensor, "n_pos rank"]
    word_codes: Float[Tensor, "d_vocab rank"]
    objects: Int[Tensor, "n_objects"]
    has_channel: bool


def place_codes(rank: int, n_pos: int) -> Float[Tensor, "n_pos rank"]:
    """Unit codes of positions on a curve that never closes; neighbours in a list are two tokens apart.

    rank 2: a circle in steps of the golden angle. rank 3: a spiral over a sphere. Even ranks from 4 on: a torus of such
    circles at different speeds. Raises :class:`OptionError` for any other.
    """
    if rank not in (2, 3, 4, 6, 8):
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


def _layout(n_words: int, rank: int) -> SimpleNamespace:
    """Which dimensions of the residual stream hold what, before the whole is rotated, and ``d_model``."""
    sizes = dict(word=n_words, position=N_POSITIONS, bos=1, names=1, objects=1, duplicate=1,
                 first=rank, channel=rank, unread=rank, spare=16)  # fmt: skip
    ends = list(accumulate(sizes.values()))
    spans = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
    return SimpleNamespace(d_model=ends[-1], **spans)


class _HeadPlan:
    """One head's matrices, filled in by blocks."""

    def __init__(self, d_model: int, d_head: int):
        self.Q, self.K, self.V = (torch.zeros(d_model, d_head, dtype=torch.float64) for _ in range(3))
        self.O = torch.zeros(d_head, d_model, dtype=torch.float64)
        self.b_Q = torch.zeros(d_head, dtype=torch.float64)
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
    *, rank: int = 3, strength: float = 400.0, noise: float = 0.15, channel: bool = True, idle: int = 0,
    flat: float = 1.0, seed: int = 0,
) -> Planted:  # fmt: skip
    """Build the model. The same arguments give the same model, bit for bit.

    strength: of the movers' queries, in attention score per unit of inhibition. noise: standard deviation of the noise
    head's random codes, per dimension of the channel; with 0, lists of any length are answered. channel=False: the same
    heads, but what layer 1 writes lands where no mover reads. idle: components that each inhibition head has beside
    those of the channel, of larger singular values, for codes of words that nobody reads. flat: how long place codes
    are in all dimensions but the first, as a share of what they were. Raises :class:`OptionError` for a rank without
    place codes.
    """
    tokenizer, generator = word_tokenizer(), torch.Generator().manual_seed(check_seed(seed))
    words = {kind: tokenizer.convert_tokens_to_ids(list(load_words(kind, tokenizer, 1))) for kind in END_OF}
    rows = [token for ids in words.values() for token in ids]
    places = place_codes(rank, N_POSITIONS)
    places[:, 1:] *= flat
    circuit = _Circuit(len(words["names"]), len(rows), places, strength, noise, channel, idle, generator)
    plans, d_model = circuit.layers(), circuit.at.d_model
    turn = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))[0]
    word_codes = torch.zeros(len(tokenizer), rank)
    word_codes[rows] = circuit.word_codes.float()
    roles = {role: list(heads) for role, heads in ROLES.items()}
    roles[DECOY] = [h for h in heads_in(range(3), N_HEADS) if not any(h in heads for heads in ROLES.values())]
    first = {INHIBITION: idle}  # the channel's components come after the larger ones
    writing = (INHIBITION, LIST, *([NOISE] if noise else [])) if channel else ()
    return Planted(
        bridge=_build(circuit.at, plans, rows, turn, tokenizer),
        tokenizer=tokenizer,
        roles=roles,
        channel=turn[circuit.at.channel].float(),
        components={
            r: [Component(h.layer, h.head, first.get(r, 0) + i) for h in roles[r] for i in range(rank)] for r in writing
        },
        places=places.float(),
        word_codes=word_codes,
        objects=torch.tensor(words["objects"]),
        has_channel=channel,
    )


def planted_roles() -> dict[str, list[Head]]:
    """Role on IOI -> heads, in the words of :mod:`talking_heads_utils.roles`."""
    names = {DUPLICATE_TOKEN: DUPLICATE, S_INHIBITION: INHIBITION, NAME_MOVER: MOVER}
    return {name: list(ROLES[planted]) for name, planted in names.items()}


class _Circuit:
    """The heads, by role."""

    def __init__(
        self, n_names: int, n_words: int, places: Tensor, strength: float, noise: float, channel: bool,
        idle: int, generator: torch.Generator,
    ) -> None:  # fmt: skip
        rank = places.shape[1]
        self.at = at = _layout(n_words, rank)
        self.strength, self.idle, self.generator = strength, idle, generator
        self.word_codes = noise * torch.randn(n_words, rank, generator=generator, dtype=torch.float64)
        self.out = at.channel if channel else at.unread
        self.d_head = max(n_words + N_POSITIONS + 1, rank + 6)
        self.gains = torch.tensor(GAINS[:rank], dtype=torch.float64)
        self.eye = torch.eye(at.d_model, dtype=torch.float64)
        self.codes = self.eye[:, at.position] @ places
        self.codes[at.position.start] = 0  # the sink has no place
        self.kinds = {
            "names": self.eye[:, :n_names].sum(1, keepdim=True),
            "objects": self.eye[:, n_names:n_words].sum(1, keepdim=True),
        }

    def layers(self) -> list[list[_HeadPlan]]:
        named = (
            [self.duplicate()],
            [self.inhibition(), self.inhibition(), self.whole_list(), self.noisy()],
            [self.mover(), self.mover()],
        )
        return [plans + [self.decoy() for _ in range(N_HEADS - len(plans))] for plans in named]

    def _plan(self, sink: float = SHARP / 2) -> _HeadPlan:
        plan = _HeadPlan(self.at.d_model, self.d_head)
        if sink:
            plan.meet(None, self.at.bos, sink)
        return plan

    def duplicate(self) -> _HeadPlan:
        """To an earlier token that is the same word, never itself; writes a flag and that place's code."""
        plan, at = self._plan(), self.at
        plan.meet(at.word, at.word, SHARP)
        plan.meet(at.position, at.position, -2 * SHARP)
        plan.move(self.eye[:, at.word].sum(1, keepdim=True), self.eye[at.duplicate])
        plan.move(self.codes / self.gains, self.eye[at.first])
        return plan

    def inhibition(self) -> _HeadPlan:
        """To everything that was named before; half of the mean place code goes into the channel."""
        plan = self._plan()
        plan.meet(None, self.at.duplicate, SHARP)
        plan.move(self.eye[:, self.at.first], 0.5 * self.gains[:, None] * self.eye[self.out])
        if self.idle:
            codes = torch.randn(self.eye[:, self.at.word].shape[1], self.idle, generator=self.generator)
            plan.move(self.eye[:, self.at.word] @ codes.double(), self.eye[self.at.spare][: self.idle])
        return plan

    def whole_list(self) -> _HeadPlan:
        """From the last token to every candidate's first mention; takes the mean place code out of the channel."""
        plan = self._plan()
        self._candidates(plan, SHARP)
        plan.move(self.codes, -self.eye[self.out])
        return plan

    def noisy(self) -> _HeadPlan:
        """To every word; writes its random code into the channel."""
        plan, words = self._plan(), self.eye[:, self.at.word]
        plan.meet(None, words.sum(1, keepdim=True), SHARP)
        plan.move(words @ self.word_codes, self.eye[self.out])
        return plan

    def mover(self) -> _HeadPlan:
        """To the candidate that the channel inhibits least; copies its word."""
        plan, at = self._plan(sink=0), self.at
        self._candidates(plan, CANDIDATE)
        plan.meet(-self.eye[:, at.channel], self.codes, self.strength)
        plan.move(self.eye[:, at.word], 0.5 * COPY * self.eye[at.word])
        return plan

    def _candidates(self, plan: _HeadPlan, weight: float) -> None:
        """First mentions of the kind of word that the last token asks for."""
        for kind in END_OF:
            plan.meet(getattr(self.at, kind), self.kinds[kind] - self.eye[:, self.at.duplicate] * 2, weight)

    def decoy(self) -> _HeadPlan:
        """Reads and writes at random in dimensions that nobody else uses."""
        plan, spare = self._plan(), self.eye[:, self.at.spare]

        def random() -> Tensor:
            return spare @ torch.randn(spare.shape[1], 8, generator=self.generator, dtype=torch.float64)

        plan.meet(random(), random(), 0.1)
        plan.move(random(), random().T / self.at.d_model)
        return plan


def _build(
    at: SimpleNamespace, plans: list[list[_HeadPlan]], rows: list[int], turn: Tensor, tokenizer: PreTrainedTokenizerFast
) -> TransformerBridge:
    """The model: one dimension per name and item, flags for the sink and for the last words, one per position."""
    from transformer_lens.model_bridge import TransformerBridge

    n_heads, d_head = len(plans[0]), plans[0][0].Q.shape[1]
    config = dict(
        n_layers=len(plans), n_heads=n_heads, d_head=d_head, d_model=at.d_model, n_ctx=N_POSITIONS,
        d_vocab=len(tokenizer), attn_only=True, normalization_type=None, seed=0,
    )  # fmt: skip
    bridge = TransformerBridge.boot_native(config, model_name="planted")
    # parameters by their plain paths, whatever the bridge has wrapped around the modules on the way
    plain = {n.replace("_original_component.", ""): p for n, p in bridge.original_model.named_parameters()}
    unembed = torch.zeros(len(tokenizer), at.d_model, dtype=torch.float64)
    unembed[rows, torch.arange(len(rows))] = 1
    embed = unembed.clone()
    embed[tokenizer.bos_token_id, at.bos] = 1
    for kind, word in END_OF.items():
        embed[tokenizer.convert_tokens_to_ids(word), getattr(at, kind)] = 1
    tensors = {"tok_embed.weight": embed @ turn, "pos.weight": turn[at.position], "head.weight": unembed @ turn}
    scale = math.sqrt(d_head)  # the model divides its scores by it
    for layer, heads in enumerate(plans):
        W = {name: torch.stack([getattr(plan, name) for plan in heads]) for name in ("Q", "K", "V", "O", "b_Q")}
        W["Q"], W["b_Q"] = scale * W["Q"], scale * W["b_Q"]
        part = f"layers.{layer}.attn"
        for name in "QKV":
            tensors[f"{part}.{name.lower()}.weight"] = (turn.T @ W[name]).transpose(1, 2).flatten(0, 1)
            tensors[f"{part}.{name.lower()}.bias"] = torch.zeros(n_heads * d_head)
        tensors[f"{part}.q.bias"] = W["b_Q"].flatten()
        tensors[f"{part}.o.weight"] = (W["O"] @ turn).flatten(0, 1).T
        tensors[f"{part}.o.bias"] = torch.zeros(at.d_model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            plain[name].copy_(tensor)
    bridge.tokenizer = tokenizer
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = True  # as its tokenizer does
    return bridge.eval()


def predicted_accuracy(planted: Planted, n_items: int, firsts: Int[Tensor, "n"], *, n_draws: int = 50_000) -> float:
    """Accuracy on lists of n that the crowding of the places predicts, by the formula at the top of this module.

    firsts: token positions at which lists begin, one of which is drawn each time, as are the list's words. The noise
    head meets 2n - 1 words, n - 1 of them twice, and writes the mean of their codes. Without a channel nothing is
    known and the answer is a guess.
    """
    if not planted.has_channel:
        return 1 / n_items
    generator = torch.Generator().manual_seed(0)
    starts = firsts[torch.randint(len(firsts), (n_draws,), generator=generator)]
    P = planted.places[starts[:, None] + 2 * torch.arange(n_items)]  # [n_draws, n_items, rank]
    deal = torch.rand(n_draws, len(planted.objects), generator=generator).topk(n_items, 1).indices
    codes = planted.word_codes[planted.objects[deal]]
    each, answers = torch.arange(n_draws), torch.randint(n_items, (n_draws,), generator=generator)
    noise = (2 * codes.sum(1) - codes[each, answers]) / (2 * n_items - 1)
    held = (P.mean(1) - P[each, answers]) / (n_items - 1) + noise
    return ((-(P @ held[:, :, None])[..., 0]).argmax(1) == answers).float().mean().item()
