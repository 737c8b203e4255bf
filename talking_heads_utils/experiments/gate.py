"""Which tasks a model can do at all, before it is asked how: accuracy by kind of prompt, beside strategies that need no
model.

A model is asked only where the lower end of its accuracy's interval is :data:`AT_LEAST` times chance. Two plain
strategies stand beside it, worked out from the prompts alone. Candidates are the items of a list, or the two names, in
the order in which they are first named.

``next in order``  the candidate after the one named last; none where that is the last candidate
``last named``     the last candidate: a list's last item, the second name of the first clause
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, TaskError
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.metrics import accuracy, answer_logits, correct
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import ABSENT, PromptSet, item_positions
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import share

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

AT_LEAST = 1.5  # times chance
LENGTHS = (3, 4, 5, 6, 8, 10, 12, 16, 20)
N_PROMPTS, QUICK = 400, 100  # of IOI, and of lists of each length
ALL = "all"
ANYWHERE = -1  # in place of a list index


@dataclass(frozen=True)
class Cell(Row):
    """Accuracy among the candidates on prompts of one kind, with its 95% interval (Wilson)."""

    task: str = column("", "ioi or laundry")
    n_items: int = column("items", "candidates of a prompt")
    order: str = column("", "who is named first, or kept or shuffled order; all where they are not told apart")
    wording: str = column("", "template; all where they are not told apart")
    index: int = column("list index", "where the answer stands in the list; -1 where they are not told apart")
    accuracy: float = column("share", "prompts whose answer has the highest logit among the candidates")
    low: float = column("share", "lower end of its 95% interval")
    high: float = column("share", "upper end of its 95% interval")
    n: int = column("prompts", "prompts of this kind")
    chance: float = column("share", "accuracy of guessing")
    next_in_order: float = column("share", "accuracy of the candidate after the one named last")
    last_named: float = column("share", "accuracy of the last candidate")
    asked: bool = column("", "whether a model this good may be asked how it does it")

    @property
    def whole(self) -> bool:
        """Whether orders, wordings and list indices are not told apart."""
        return (self.order, self.wording, self.index) == (ALL, ALL, ANYWHERE)

    def describe(self) -> str:
        """Kind of prompt, accuracy with its interval, and chance, in one line."""
        kind = "IOI" if self.task == ioi.TASK else f"lists of {self.n_items}"
        parts = [part for part in (self.order, self.wording) if part != ALL]
        parts += [] if self.index == ANYWHERE else [f"answer at index {self.index}"]
        where = f" ({', '.join(parts)})" if parts else ""
        return f"{kind}{where}: {self.accuracy:.0%} [{self.low:.0%}, {self.high:.0%}], chance {self.chance:.0%}"


def run_gate(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], n_prompts: int, seed: int
) -> list[Cell]:
    """Cells of IOI and of lists of some lengths, ``n_prompts`` of each; half of the lists in kept order, half shuffled.

    One forward pass a prompt. Raises :class:`TaskError` for lists that do not fit the model or its tokenizer.
    """
    sets = [ioi.build_ioi(tokenizer, n_prompts, seed)]
    sets += [laundry.build_laundry(tokenizer, n, n_prompts, seed, n_ctx=bridge.cfg.n_ctx) for n in lengths]
    return [cell for prompts in sets for cell in gate_cells(prompts, answer_logits(bridge, prompts))]


def gate_cells(prompts: PromptSet, logits: Float[Tensor, "n_prompts d_vocab"]) -> list[Cell]:
    """The cells of one prompt set: all, by order, and within each order by wording and by the answer's list index."""
    answers, n_candidates = prompts.answers, prompts.candidates.shape[1]
    hits = [correct(logits, prompts).cpu(), next_in_order(prompts) == answers, last_named(prompts) == answers]
    task, n_items, chance = prompts.recipe.task, prompts.recipe.n_items or n_candidates, 1 / n_candidates
    cells = []
    for (order, wording, index), keep in _kinds(prompts):
        found, next_, last = (share(some[keep]) for some in hits)
        counted = (found.mean, found.low, found.high, found.n, chance, next_.mean, last.mean)
        cells.append(Cell(task, n_items, order, wording, index, *counted, asked=found.low >= AT_LEAST * chance))
    return cells


def _kinds(prompts: PromptSet) -> Iterator[tuple[tuple[str, str, int], Bool[Tensor, "n_prompts"]]]:
    """Order, wording, list index, and the prompts of that kind; kinds with fewer than two prompts are left out."""
    orders = prompts.info["order"]
    named = prompts.info.get("wording") or prompts.info["template"]
    indices = prompts.info.get("index", [ANYWHERE] * len(prompts))
    kinds = [(ALL, ALL, ANYWHERE)]
    for order in sorted(set(orders)):
        kinds += [(order, ALL, ANYWHERE), *((order, wording, ANYWHERE) for wording in dict.fromkeys(named))]
        kinds += [(order, ALL, index) for index in sorted(set(indices) - {ANYWHERE})]
    for order, wording, index in kinds:
        rows = zip(orders, named, indices)
        keep = torch.tensor([order in (ALL, o) and wording in (ALL, w) and index in (ANYWHERE, i) for o, w, i in rows])
        if keep.sum() > 1:
            yield (order, wording, index), keep


def next_in_order(prompts: PromptSet) -> Int[Tensor, "n_prompts"]:
    """The token of the candidate after the one named last, :data:`~talking_heads_utils.prompts.sets.ABSENT` where none
    is after it, or where the one named last is no candidate. Raises :class:`TaskError` for prompts of other tasks."""
    tokens = _in_order(prompts)
    again = [name for name in prompts.positions if name == "S2" or name.endswith(" second")]
    last = torch.stack([prompts.positions[name] for name in again]).amax(0)
    named = tokens == prompts.tokens.gather(1, last[:, None])
    after = torch.cat([torch.zeros_like(named[:, :1]), named[:, :-1]], 1)
    return torch.where(after, tokens, ABSENT).amax(1)


def last_named(prompts: PromptSet) -> Int[Tensor, "n_prompts"]:
    """The token of the last candidate. Raises :class:`TaskError` for prompts of other tasks."""
    return _in_order(prompts)[:, -1]


def _in_order(prompts: PromptSet) -> Int[Tensor, "n_prompts n_candidates"]:
    """The candidates' tokens in the order in which they are first named."""
    positions, tokens = item_positions(prompts)
    return tokens.gather(1, positions.argsort(1))


def check_asked(gate: Sequence[Cell], task: str, n_items: int = 2) -> None:
    """Raises :class:`NotApplicable`, with the accuracy, where a model may not be asked, and :class:`TaskError` where it
    was not tried."""
    cell = next((cell for cell in gate if cell.whole and (cell.task, cell.n_items) == (task, n_items)), None)
    if cell is None:
        raise TaskError(f"The gate has no cell of {task} with {n_items} candidates. Run it with that task and length.")
    if not cell.asked:
        raise NotApplicable(f"The model cannot do this task well enough to be asked how: {cell.describe()}.")


def asked(gate: Sequence[Cell]) -> list[Cell]:
    """The kinds of prompt, orders, wordings and list indices not told apart, on which a model may be asked."""
    return [cell for cell in gate if cell.asked and cell.whole]


def accuracy_by_length(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], *, n_prompts: int = 100
) -> pd.DataFrame:
    """Laundry List accuracy by list length: columns ``n_items, accuracy, low, high, n, starts`` (where lists begin)."""
    import pandas as pd

    sets = [laundry.build_laundry(tokenizer, n_items, n_prompts, SEED) for n_items in lengths]
    found = pd.DataFrame([accuracy(bridge, prompts)._asdict() for prompts in sets])
    starts = [prompts.positions["item_0 first"] for prompts in sets]
    return found.rename(columns={"mean": "accuracy"}).assign(n_items=list(lengths), starts=starts)
