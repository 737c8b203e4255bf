"""Planted transformers of which it is known what their heads do alone and together, as tasks in context.

Two layers of twelve heads, no norm. A prompt is a filler, an answer and the question's mark; heads at the last token
read the answer and add to its logit. In the twin a filler stands in the answer's place, about which nothing is written.
So with nothing drawn at random the log-odds of the answer are what is added, less a constant, and what is lost with
heads exchanged is known by formula.

With s_i what head i adds, and sums over the key heads, those that the kind is about:

``parts``   what is written adds: s_A + s_B are lost with A and B, joint over summed is 1
``alone``   parts, of which one is most
``copies``  the last MLP lets key heads add no more than sum(s) - room: sum over lost ones - room is lost, each of k
            alone costs s - room, so that joint over summed is (sum(s) - room) / (sum(s) - k room)
``alike``   copies, and every head is a key head
``backup``  key heads of layer 1 write 2 s / (1 + exp(steep (h - h_0))), h what those of layer 0 write, h_0 with nothing
            exchanged: so each makes up for a part of what is lost below it, and joint over summed is above 1
``chain``   the same with the other sign: they write less where less is written below, and it is below 1
``rivals``  parts whose twins name another answer, which every exchanged head then adds to: log-odds are no straight
            line in logits, and joint over summed is above 1 although nothing stands in for anything
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.experiments.icl import redundancy
from talking_heads_utils.experiments.icl.asked import Asked, Task
from talking_heads_utils.experiments.icl.choice import N_SELECT, Picked, pick
from talking_heads_utils.experiments.icl.swaps import Ready
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.prompts.sets import PromptSet, Recipe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LAYERS, N_HEADS, N_ANSWERS, N_FILLERS = 2, 12, 12, 8
QUESTION = 0  # token of the question's mark; answers follow, then fillers
N_WORDS = 1 + N_ANSWERS + N_FILLERS
ANSWERS, FILLERS = slice(1, 1 + N_ANSWERS), slice(1 + N_ANSWERS, N_WORDS)
HIDDEN = slice(2 * N_WORDS, 2 * N_WORDS + N_ANSWERS)  # where key heads tell others of what they write
N_TOKENS = 3


class Kind(StrEnum):
    """What key heads are to each other."""

    PARTS = "parts"
    ALONE = "alone"
    COPIES = "copies"
    ALIKE = "alike"
    BACKUP = "backup"
    CHAIN = "chain"
    RIVALS = "rivals"


@dataclass(frozen=True)
class Plan:
    """written: what each head adds to the answer's logit, nats, with nothing exchanged; others write nothing. key: the
    heads that the kind is about. room: by how much copies would pass what is let through. steep: of backups and
    chains, per nat."""

    kind: Kind
    written: dict[Head, float]
    key: Sequence[Head] = field(default=())
    room: float = 0.0
    steep: float = 0.0

    @property
    def told(self) -> dict[Head, float]:
        """What key heads tell the last MLP or the key heads of layer 1."""
        below = self.kind in (Kind.BACKUP, Kind.CHAIN)
        return {head: self.written[head] for head in self.key if not (below and head.layer)}

    @property
    def slope(self) -> float:
        """By which key heads of layer 1 look at the answer as more is told."""
        return {Kind.BACKUP: -self.steep, Kind.CHAIN: self.steep}.get(self.kind, 0.0)


# --- the transformer ---


def empty() -> TransformerBridge:
    """A transformer whose heads write nothing yet, for :func:`wire`."""
    from transformer_lens.model_bridge import TransformerBridge

    sizes = dict(n_layers=N_LAYERS, n_heads=N_HEADS, d_head=N_ANSWERS + N_FILLERS, d_model=HIDDEN.stop)
    sizes |= dict(n_ctx=N_TOKENS, d_vocab=N_WORDS, d_mlp=N_ANSWERS)
    given = dict(sizes, act_fn="relu", attn_only=False, normalization_type=None, seed=0)
    return TransformerBridge.boot_native(given, model_name="planted heads")


@torch.no_grad()
def wire(bridge: TransformerBridge, plan: Plan, *, noise: float = 0.0, seed: int = 0) -> None:
    """Give a transformer of :func:`empty` its weights anew. noise: standard deviation, in nats, of what each head
    writes about each filler to each logit, and, as a share, of what it writes about each answer."""
    drawn = torch.Generator().manual_seed(seed)
    for parameter in bridge.original_model.parameters():
        parameter.zero_()
    bridge.embed.original_component.weight[:, :N_WORDS] = torch.eye(N_WORDS)
    bridge.unembed.original_component.weight[:, N_WORDS : 2 * N_WORDS] = torch.eye(N_WORDS)
    for layer in range(N_LAYERS):
        read, write = _written(plan, layer, noise, drawn)
        bridge.blocks[layer].attn.v.original_component.weight.copy_(read.repeat(N_HEADS, 1))
        bridge.blocks[layer].attn.o.original_component.weight.copy_(write.flatten(0, 1).T)
    for head in plan.key:
        if head not in plan.told:
            _look(bridge, plan, head)
    if plan.kind in (Kind.COPIES, Kind.ALIKE):
        _cap(bridge, sum(plan.told.values()) - plan.room)


def _written(plan: Plan, layer: int, noise: float, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """What every head of a layer reads, ``[d_head, d_model]``, and what each writes of it, ``[head, d_head, d_model]``.
    A third of its attention is on each token, of those that look half on the answer."""
    read = torch.zeros(N_ANSWERS + N_FILLERS, HIDDEN.stop)
    read[:, 1:N_WORDS] = torch.eye(N_ANSWERS + N_FILLERS)
    write = torch.zeros(N_HEADS, N_ANSWERS + N_FILLERS, HIDDEN.stop)
    for head in heads_in([layer], N_HEADS):
        told, s = head in plan.told, plan.written.get(head, 0.0)
        s = s * (2 if head in plan.key and not told else N_TOKENS)
        strengths = s * (1 + noise * torch.randn(N_ANSWERS, generator=drawn))
        write[head.head, :N_ANSWERS, N_WORDS + 1 : N_WORDS + 1 + N_ANSWERS] = strengths.diag()
        if told:
            write[head.head, :N_ANSWERS, HIDDEN] = strengths.diag()
        about = torch.randn(N_FILLERS, N_WORDS, generator=drawn)
        write[head.head, N_ANSWERS:, N_WORDS : 2 * N_WORDS] = N_TOKENS * noise * about
    return read, write


def _look(bridge: TransformerBridge, plan: Plan, head: Head) -> None:
    """Half of its attention is on the answer where all is told, more or less where less is."""
    attn, all_told = bridge.blocks[head.layer].attn, sum(plan.told.values())
    size = N_ANSWERS + N_FILLERS
    query = attn.q.original_component.weight[head.head * size]
    query[QUESTION] = (math.log(N_TOKENS - 1) - plan.slope * all_told) * size**0.5
    query[HIDDEN] = plan.slope * size**0.5
    attn.k.original_component.weight[head.head * size, ANSWERS] = 1.0


def _cap(bridge: TransformerBridge, most: float) -> None:
    """The last MLP takes away what is told beyond so much."""
    mlp = bridge.blocks[-1].mlp.original_component
    into, out = mlp.fc_in.original_component, mlp.fc_out.original_component
    into.weight[:, HIDDEN] = torch.eye(N_ANSWERS)
    into.bias.fill_(-most)
    out.weight[N_WORDS + 1 : N_WORDS + 1 + N_ANSWERS] = -torch.eye(N_ANSWERS)


# --- prompts ---


def ask(plan: Plan, n: int, seed: int, half: str = "", name: str = "") -> Asked:
    """``n`` prompts of a filler, an answer and the question's mark, with their twins."""
    drawn = torch.Generator().manual_seed(seed)
    draw = lambda words: torch.randint(words.start, words.stop, (n,), generator=drawn)  # noqa: E731
    right, rival, mark = draw(ANSWERS), draw(ANSWERS), torch.full((n,), QUESTION)
    rival = torch.where(rival == right, ANSWERS.start + (right - ANSWERS.start + 1) % N_ANSWERS, rival)
    instead = rival if plan.kind is Kind.RIVALS else draw(FILLERS)
    prompts, twins = (prompts_of(torch.stack([draw(FILLERS), shown, mark], 1), right) for shown in (right, instead))
    words = torch.arange(N_WORDS)
    return Asked(Task(name or plan.kind.value, Numbers(words, words), 1), prompts, twins, right, right, half)


def prompts_of(tokens: Int[Tensor, "n n_pos"], right: Int[Tensor, "n"]) -> PromptSet:
    """Prompts of one length by their tokens, with ``end`` alone as a named position."""
    n, n_pos = tokens.shape
    end, none = {"end": torch.full((n,), n_pos - 1)}, torch.zeros(n, 0, dtype=torch.long)
    return PromptSet(tokens, tokens >= 0, end, right, none, [""] * n, {}, Recipe("planted heads", n, 0, ""))


def planted(
    plan: Plan, n: int = 60, *, noise: float = 0.0, seed: int = 0, bridge: TransformerBridge | None = None,
    name: str = "",
) -> tuple[Ready, Ready]:  # fmt: skip
    """The selection half and ``n`` prompts of the held-out half, run. bridge: of :func:`empty`, whose weights are
    written anew: what was run with it before is void."""
    bridge = bridge or empty()
    wire(bridge, plan, noise=noise, seed=seed)
    select = ask(plan, N_SELECT, 2 * seed, SELECTION, name)
    held = ask(plan, n, 2 * seed + 1, HELD_OUT, name)
    return tuple(Ready(asked, *(prepare(bridge, p, check=False) for p in (asked.prompts, asked.twins)))
                 for asked in (select, held))  # type: ignore[return-value]  # fmt: skip


# --- worlds ---

STRONG, WEAK, MOST = 0.7, 0.35, 3.0  # nats that key heads, other heads and the one of ``alone`` add, about
RATIOS = {Kind.COPIES: 2.0, Kind.ALIKE: 2.0, Kind.BACKUP: 2.0, Kind.CHAIN: 0.6}  # joint over summed loss, about


def drawn_plan(kind: Kind, seed: int) -> Plan:
    """Five key heads among 24 that all write, of random strengths at random places."""
    drawn = torch.Generator().manual_seed(seed)
    spread = (0.2 * torch.randn(N_LAYERS * N_HEADS, generator=drawn)).exp().tolist()
    heads = heads_in(range(N_LAYERS), N_HEADS)
    below, above = ([heads[N_HEADS * layer + i] for i in torch.randperm(N_HEADS, generator=drawn).tolist()]
                    for layer in range(N_LAYERS))  # fmt: skip
    key = [*below[:3], *above[:2]]
    size = {head: STRONG if head in key else WEAK for head in heads}
    if kind is Kind.ALONE:
        size = {head: MOST if head == key[0] else WEAK for head in heads}
    written = {head: size[head] * by for head, by in zip(heads, spread)}
    told = heads if kind is Kind.ALIKE else key
    ratio, sizes = RATIOS.get(kind, 1.0), [written[head] for head in key]
    room = sum(sizes) * (ratio - 1) / (len(sizes) * ratio - 1)
    steep = abs(2 * math.atanh(5 * (1 - 1 / ratio) / 6)) / STRONG
    return Plan(kind, written, told, room, steep)


def worlds(kind: str, seed: int, noise: float, n_tasks: int, n_prompts: int) -> Iterator[tuple[int, Picked, Ready]]:
    """Planted transformers of several tasks, each with a plan of its own: its seed, the heads that its selection half
    chooses, and its held-out half. The next one makes it void."""
    bridge = empty()
    for own in range(1000 * seed, 1000 * seed + n_tasks):
        plan = drawn_plan(Kind(kind), own)
        select, held = planted(plan, n_prompts, noise=noise, seed=own, bridge=bridge, name=str(own))
        yield own, pick(select), held


def world_rows(kind: str, seed: int, noise: float, n_tasks: int, n_prompts: int) -> list[redundancy.SetRow]:
    """The table ``sets`` of :func:`worlds`: chosen heads at the last token and those matched to the first five."""
    found = [redundancy.of_task(picked, held, n_pairs=0, n_layers=0, n_everywhere=0, seed=own)
             for own, picked, held in worlds(kind, seed, noise, n_tasks, n_prompts)]  # fmt: skip
    return redundancy.set_rows("planted heads", found)
