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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
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
_COLUMNS = {"next_in_order": "next in order", "last_named": "last named"}


@dataclass(frozen=True)
class Cell:
    """Accuracy among the candidates on prompts of one kind, with its 95% interval (Wilson) over ``n`` prompts.

    order, wording: :data:`ALL` where they are not told apart. place: list index of the answer, :data:`ANYWHERE` where
    it is not. next_in_order, last_named: the strategies' accuracy on the same prompts. asked: whether a model that is
    this good may be asked how it does it.
    """

    task: str
    n_items: int
    order: str
    wording: str
    place: int
    accuracy: float
    low: float
    high: float
    n: int
    chance: float
    next_in_order: float
    last_named: float
    asked: bool

    def describe(self) -> str:
        """Kind of prompt, accuracy with its interval, and chance, in one line."""
        kind = "IOI" if self.task == ioi.TASK else f"lists of {self.n_items}"
        parts = [part for part in (self.order, self.wording) if part != ALL]
        parts += [] if self.place == ANYWHERE else [f"answer at index {self.place}"]
        where = f" ({', '.join(parts)})" if parts else ""
        return f"{kind}{where}: {self.accuracy:.0%} [{self.low:.0%}, {self.high:.0%}], chance {self.chance:.0%}"


def run_gate(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int] = LENGTHS,
    n_prompts: int = N_PROMPTS,
    seed: int = SEED,
) -> list[Cell]:
    """Cells of IOI and of lists of some lengths, ``n_prompts`` of each; half of the lists in kept order, half shuffled.

    One forward pass a prompt. Raises :class:`TaskError` for lists that do not fit the model or its tokenizer.
    """
    sets = [ioi.build_ioi(tokenizer, n_prompts, seed)]
    sets += [laundry.build_laundry(tokenizer, n, n_prompts, seed, n_ctx=bridge.cfg.n_ctx) for n in lengths]
    return [cell for prompts in sets for cell in gate_cells(prompts, answer_logits(bridge, prompts))]


def gate_cells(prompts: PromptSet, logits: Float[Tensor, "n_prompts d_vocab"]) -> list[Cell]:
    """The cells of one prompt set: all, by order, and within each order by wording and by the answer's list index."""
    answers = prompts.answers
    hits = [correct(logits, prompts).cpu(), next_in_order(prompts) == answers, last_named(prompts) == answers]
    return [_cell(prompts, keep, kind, hits) for kind, keep in _kinds(prompts)]


def _kinds(prompts: PromptSet) -> Iterator[tuple[tuple[str, str, int], Bool[Tensor, "n_prompts"]]]:
    """Order, wording, place, and the prompts of that kind; kinds with fewer than two prompts are left out."""
    n = len(prompts)
    orders = prompts.info["order"]
    named = prompts.info.get("wording") or prompts.info["template"]
    places = prompts.info.get("index", [ANYWHERE] * n)
    kinds = [(ALL, ALL, ANYWHERE)]
    for order in sorted(set(orders)):
        kinds += [(order, ALL, ANYWHERE), *((order, wording, ANYWHERE) for wording in dict.fromkeys(named))]
        kinds += [(order, ALL, place) for place in sorted(set(places) - {ANYWHERE})]
    for order, wording, place in kinds:
        rows = zip(orders, named, places)
        keep = torch.tensor([order in (ALL, o) and wording in (ALL, w) and place in (ANYWHERE, p) for o, w, p in rows])
        if keep.sum() > 1:
            yield (order, wording, place), keep


def _cell(
    prompts: PromptSet, keep: Bool[Tensor, "n_prompts"], kind: tuple[str, str, int],
    hits: Sequence[Bool[Tensor, "n_prompts"]],
) -> Cell:  # fmt: skip
    found, next_, last = (share(some[keep]) for some in hits)
    chance = 1 / prompts.candidates.shape[1]
    n_items = prompts.recipe.n_items or prompts.candidates.shape[1]
    return Cell(
        prompts.recipe.task, n_items, *kind, found.mean, found.low, found.high, found.n, chance, next_.mean, last.mean,
        asked=found.low >= AT_LEAST * chance,
    )  # fmt: skip


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
    """Raises :class:`TaskError`, with the accuracy, where a model may not be asked."""
    cell = _find(gate, task, n_items, ALL, ALL, ANYWHERE)
    if not cell.asked:
        raise TaskError(f"The model cannot do this task well enough to be asked how: {cell.describe()}.")


def asked(gate: Sequence[Cell]) -> list[Cell]:
    """The kinds of prompt, orders, wordings and places not told apart, on which a model may be asked."""
    return [c for c in gate if c.asked and (c.order, c.wording, c.place) == (ALL, ALL, ANYWHERE)]


def _find(gate: Sequence[Cell], task: str, n_items: int, order: str, wording: str, place: int) -> Cell:
    wanted = (task, n_items, order, wording, place)
    for cell in gate:
        if (cell.task, cell.n_items, cell.order, cell.wording, cell.place) == wanted:
            return cell
    raise TaskError(f"The gate has no cell of {wanted}. Run it with that task and length.")


def gate_table(gate: Sequence[Cell]) -> pd.DataFrame:
    """One row a cell, in :class:`Cell`'s order."""
    import pandas as pd

    return pd.DataFrame([asdict(cell) for cell in gate]).rename(columns=_COLUMNS)


def gate_from(table: pd.DataFrame) -> list[Cell]:
    """The cells that :func:`gate_table` wrote."""
    back = table.rename(columns={name: field for field, name in _COLUMNS.items()})
    return [Cell(**row) for row in back[list(Cell.__dataclass_fields__)].to_dict("records")]


def accuracy_by_length(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    n_prompts: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Laundry List accuracy by list length: columns ``n_items, accuracy, low, high, n, starts`` (where lists begin)."""
    import pandas as pd

    rows = []
    for n_items in lengths:
        prompts = laundry.build_laundry(tokenizer, n_items, n_prompts, seed)
        found = accuracy(bridge, prompts)
        starts = prompts.positions["item_0 first"]
        rows.append(
            dict(n_items=n_items, accuracy=found.mean, low=found.low, high=found.high, n=found.n, starts=starts)
        )
    return pd.DataFrame(rows)
