"""Small models that learned functions in context, seed by seed: what one head costs, and what five cost together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.choice import pick
from talking_heads_utils.experiments.icl.redundancy import MATCHED_TO, lost, ratio
from talking_heads_utils.experiments.icl.swaps import How, Ready, Where, exchanged, ready
from talking_heads_utils.experiments.icl.tasks import number_tasks
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.stats import share_in_clusters

N_SELECT, N_HELD = 200, 400  # prompts, each of a function of its own


@dataclass(frozen=True)
class ToyRow(Row):
    """One run of one recipe. Heads are chosen on the selection half of the functions, measured on the other."""

    model: str = column("", "the recipe")
    seed: int = column("", "of the first weights and the prompts of training")
    accuracy: float = column("share", "right answers")
    low: float = column("share", "95% interval over functions, lower end")
    high: float = column("share", "upper end")
    swapped: str = column("", "the head that costs most right answers, at the twin's value at the last token")
    without: float = column("share", "right answers with it so")
    without_low: float = column("share", "lower end")
    without_high: float = column("share", "upper end")
    zeroed: str = column("", "the head that costs most right answers where it is zero at all positions")
    zero: float = column("share", "right answers with it so")
    zero_low: float = column("share", "lower end")
    zero_high: float = column("share", "upper end")
    heads: str = column("", "heads chosen by direct effect and by what the twin gains, five at most")
    joint: float = column("nats", "log-odds lost with all of them at the twin's values at the last token")
    summed: float = column("nats", "sum of what is lost with each")
    ratio: float | None = column("", "joint over summed; none where what is summed is not clearly above 0")
    ratio_low: float | None = column("", "95% interval over functions, lower end")
    ratio_high: float | None = column("", "upper end")
    n: int = column("prompts", "of the held-out half")


class Worst(NamedTuple):
    """The head that costs most, and right answers without it: their share and its interval."""

    head: Head
    share: float
    low: float
    high: float


def measure(folder: Path, model: str, seed: int, *, n_select: int = N_SELECT, n_held: int = N_HELD) -> ToyRow:
    """A checkpoint of one recipe and seed. Raises :class:`NotApplicable` for a model that learned no functions."""
    c = Context(str(Path(folder).resolve()), own=True)
    (task,) = number_tasks(c.model, c.tokenizer)
    select, held = (ready(c, task.ask(c, n, half)) for n, half in ((n_select, SELECTION), (n_held, HELD_OUT)))
    plain = share_in_clusters(exchanged(held, [[]]).right(held.asked)[:, 0], held.asked.clusters)
    worst = [worst_head(select, held, how, where) for how, where in ((How.EXCHANGE, Where.END), (How.ZERO, Where.ALL))]
    heads = pick(select).chosen[:MATCHED_TO]
    of = lost(held, [heads, *([head] for head in heads)])
    joint, summed = of.log_odds[:, 0], of.log_odds[:, 1:].sum(1)
    return ToyRow(
        model, seed, *plain[:3], *(part for w in worst for part in (str(w.head), *w[1:])), " ".join(map(str, heads)),
        joint.mean().item(), summed.mean().item(), *ratio(joint, summed, held.asked.clusters), n_held,
    )  # fmt: skip


def worst_head(select: Ready, held: Ready, how: How, where: Where) -> Worst:
    """The head without which fewest of the selection half are right, of equal ones that which costs most log-odds."""
    heads = heads_in(range(select.clean.n_layers), select.clean.n_heads)
    said = exchanged(select, [[head] for head in heads], how=how, where=where)
    right, log_odds = said.right(select.asked).double().mean(0), said.log_odds.double().mean(0)
    head = min(heads, key=lambda head: (right[heads.index(head)].item(), log_odds[heads.index(head)].item()))
    found = exchanged(held, [[head]], how=how, where=where).right(held.asked)[:, 0]
    return Worst(head, *share_in_clusters(found, held.asked.clusters)[:3])
