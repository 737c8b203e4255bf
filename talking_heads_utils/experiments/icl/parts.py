"""Whether the task is done in parts: what looks at earlier answers, and what each layer's MLP is needed for.

An answer may be right in part: it is the right word in the wrong form, or another word in the right one. What of it
goes with one layer's MLP or heads, at the twin's values at the last token, tells what that layer is needed for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.asked import Asked, WordTask
from talking_heads_utils.experiments.icl.choice import picks
from talking_heads_utils.experiments.icl.clusters import mean_in_clusters
from talking_heads_utils.experiments.icl.swaps import Into, Ready, every_ready, exchanged
from talking_heads_utils.experiments.icl.tasks import COUNTED, tasks
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.labels import Mlp, heads_in
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import asked_at
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

MLPS, HEADS, TWIN = "mlp", "heads", "twin"
N_LOOKS, N_PARTS = 48, 150  # prompts of the held-out half
BEGINS = 3  # letters of an answer by which a word is known
NEAR = 3  # how far a number of the right size may be from the right one
MANY, FEW = 0.2, 0.1  # share of a task's answers, at least, and of its x, at most, that have the ending of a form


class Attribute(StrEnum):
    """What of an answer may be right by itself."""

    EXACT = "exact"
    WORD = "word"  # begins as the right answer does, whatever its case
    FORM = "form"  # has the form of the task's answers: upper case, one letter, or their ending
    PARITY = "parity"  # of numbers
    SIZE = "size"  # of numbers: within 3 of the right one


@dataclass(frozen=True)
class LooksBackRow(ModelRow):
    """Where one head looks from the tokens before answers."""

    task: str = column("", "task")
    head: str = column("", "head")
    layer: int = column("", "its layer")
    effect: float | None = column("nats", "log-odds gained in the twin with this head at the prompt's value, selection "
                                  "half; of the heads of most direct effect")  # fmt: skip
    important: bool = column("", "whether it is among the chosen heads, by the selection half")
    to_y: float = column("share", "attention to all earlier answers from the token before each answer, mean")
    to_x: float = column("share", "the same to all earlier x")
    even: float = column("share", "what attention spread evenly would give earlier answers")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class PartRow(ModelRow):
    """What is left of each attribute with one layer's MLP or heads at the twin's values at the last token."""

    task: str = column("", "task")
    part: str = column("", "mlp or heads; empty for nothing exchanged, twin for the twin")
    layer: int | None = column("", "of which layer")
    attribute: str = column("", "exact, word, form, parity or size")
    share: float = column("share", "answers with it")
    change: float = column("share", "from nothing exchanged, paired")
    low: float = column("share", "95% interval over right answers, lower end")
    high: float = column("share", "upper end")
    n: int = column("prompts", "of the held-out half")


# --- attention to earlier answers ---


@dataclass(frozen=True)
class Looks:
    """Attention from the token before each y (but the first) and from the question's to earlier y and x, mean over
    prompts and such tokens; even: what attention spread evenly over all tokens so far would give earlier y."""

    to_y: Float[Tensor, "n_layers n_heads"]
    to_x: Float[Tensor, "n_layers n_heads"]
    even: float


@torch.no_grad()
def looks(bridge: TransformerBridge, prompts: PromptSet, batch: int = 8) -> Looks:
    """Where every head looks, of prompts of one length with two examples or more."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]
    at = [int(places[0]) for places in asked_at(prompts)][1:]
    to = {kind: torch.zeros(len(at), prompts.tokens.shape[1]) for kind in "yx"}
    sums = {kind: torch.zeros(bridge.cfg.n_layers, bridge.cfg.n_heads) for kind in "yx"}
    for kind, j in product("yx", range(len(at))):
        to[kind][j, [int(prompts.positions[f"{kind}_{i}"][0]) for i in range(j + 1)]] = 1 / len(at)
    for rows in batches.blocks(len(prompts), batch):
        _, cache = bridge.run_with_cache(prompts.tokens[rows].to(bridge.cfg.device), names_filter=names)
        for layer, name in enumerate(names):
            pattern = cache[name][:, :, at].float().sum(0).cpu()
            for kind in "yx":
                sums[kind][layer] += (pattern * to[kind]).sum((1, 2))
    even = sum((j + 1) / (place + 1) for j, place in enumerate(at)) / len(at)
    return Looks(sums["y"] / len(prompts), sums["x"] / len(prompts), even)


def run_looks_back(c: Context) -> list[LooksBackRow]:
    """A row for every task and head."""
    picked, n, rows = c.kept(picks), c.n(N_LOOKS, 8), list[LooksBackRow]()
    for task in follow(tasks(c), "tasks"):
        found, own = looks(c.bridge, task.ask(c, n, HELD_OUT).prompts), picked[task.name]
        for head in heads_in(range(c.bridge.cfg.n_layers), c.bridge.cfg.n_heads):
            to_y, to_x = (of[head.layer, head.head].item() for of in (found.to_y, found.to_x))
            rows.append(LooksBackRow(c.model, task.name, str(head), head.layer, own.denoised.get(head),
                                     head in own.chosen, to_y, to_x, found.even, n))  # fmt: skip
    return rows


# --- attributes of answers ---


def form_of(pairs: Sequence[tuple[str, str]]) -> Callable[[str], bool] | None:
    """Tells whether a word has the form of a task's answers: upper case, one letter, or the ending that many answers
    have and few x, irregular answers included. None where the answers have no form that x lack."""
    x, y = ([pair[i] for pair in pairs] for i in range(2))
    for form in (str.isupper, lambda word: len(word) == 1):
        if all(map(form, y)) and sum(map(form, x)) <= FEW * len(x):
            return form
    endings = {word[-k:] for word in y for k in (1, 2, 3) if len(word) > k}
    shares = {end: tuple(sum(word.endswith(end) for word in words) / len(words) for words in (y, x)) for end in endings}
    fit = [end for end, (of_y, of_x) in shares.items() if of_y >= MANY and of_x <= FEW]
    if not fit:
        return None
    ending, irregular = max(fit, key=lambda end: (shares[end][0], len(end))), set(y) - set(x)
    return lambda word: word.endswith(ending) or word in irregular


def values_of(asked: Asked) -> dict[int, int] | None:
    """Token -> number, of tasks whose answers are numbers; None of others."""
    answers = asked.task.answers
    if asked.numbers is not None:
        return dict(zip(asked.numbers.ids.tolist(), asked.numbers.values.tolist()))
    if isinstance(asked.task, WordTask) and set(asked.task.relation.answers) <= set(COUNTED):
        return dict(zip(answers.ids.tolist(), (COUNTED.index(word) for word in asked.task.relation.answers)))
    return None


def attributes(
    asked: Asked, top: Int[Tensor, "n k"], tokenizer: PreTrainedTokenizerBase
) -> dict[Attribute, Bool[Tensor, "n k"]]:
    """Which answers have which attribute: of numbers parity and size, of words the word and, where the task's answers
    have one, the form."""
    right, values = asked.right[:, None], values_of(asked)
    found = {Attribute.EXACT: top == right}
    if values is not None:
        none = max(values.values()) + NEAR + 1  # of tokens that are no numbers: near to none, and dealt with below
        number = torch.tensor(
            [[values.get(token, none) for token in row] for row in torch.cat([right, top], 1).tolist()]
        )
        off = number[:, 1:] - number[:, :1]
        said = number[:, 1:] != none
        return found | {Attribute.PARITY: said & (off % 2 == 0), Attribute.SIZE: said & (off.abs() <= NEAR)}
    words = {token: tokenizer.decode([token]).strip() for token in torch.cat([right, top], 1).unique().tolist()}
    begins = {token: word.lower()[:BEGINS] for token, word in words.items()}
    found[Attribute.WORD] = torch.tensor([[words[token].lower().startswith(begins[own]) for token in row]
                                          for own, row in zip(asked.right.tolist(), top.tolist())])  # fmt: skip
    form = form_of(asked.task.relation.pairs) if isinstance(asked.task, WordTask) else None
    if form is not None:
        found[Attribute.FORM] = torch.tensor([[form(words[token]) for token in row] for row in top.tolist()])
    return found


def part_rows(model: str, r: Ready, tokenizer: PreTrainedTokenizerBase) -> list[PartRow]:
    """Attributes of what is said with nothing exchanged, to the twin, and with each layer's MLP and heads exchanged."""
    f, asked = r.clean, r.asked
    parts = [(kind, layer) for kind in (MLPS, HEADS) for layer in range(f.n_layers)
             if kind == HEADS or f.layers[layer].mlp is not None]  # fmt: skip
    sets = [[Mlp(layer)] if kind == MLPS else heads_in([layer], f.n_heads) for kind, layer in parts]
    twin, said = exchanged(r, [[]], into=Into.TWIN), exchanged(r, [[], *sets])
    has, rows = attributes(asked, torch.cat([said.top[:, :1], twin.top, said.top[:, 1:]], 1), tokenizer), []
    told = [("", None), (TWIN, None), *parts]
    for attribute, hits in has.items():
        shares, changes = hits.double().mean(0), mean_in_clusters(hits.double() - hits[:, :1].double(), asked.clusters)
        for (part, layer), *values in zip(told, *(of.tolist() for of in (shares, *changes))):
            rows.append(PartRow(model, asked.task.name, part, layer, attribute, *values, len(hits)))  # type: ignore[call-arg]
    return rows


def run_parts(c: Context) -> list[PartRow]:
    return [row for r in every_ready(c, c.n(N_PARTS, 20)) for row in part_rows(c.model, r, c.tokenizer)]
