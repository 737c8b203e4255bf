"""Whether what examples contribute to the log-odds at the last question adds.

Of a group of examples that speak for the rule, labels are drawn at random: that is the baseline, which keeps all that
the format of an example does. One example's contribution is the log-odds with its own label less those with a label
drawn at random in its slot, half of the difference between its two labels, the rest of the group as drawn. Together
they contribute the log-odds with all their own labels less the baseline: over a draw and its opposite, so that of
contributions that add the ratio is 1 whatever was drawn. Smaller groups are parts of the largest one. For two examples
joint less summed is, in the mean, a quarter of their second difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.evidence import asked
from talking_heads_utils.experiments.icl.readers import LogOdds
from talking_heads_utils.experiments.icl.sequences import Sequences, log_odds
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.stats import bootstrap_mean, bootstrap_ratio

GROUPS = (2, 4, 8)  # examples that are changed together
RATES = (0.2, 0.3)  # of flips
N_SEQUENCES = 50  # of each rate
ALL_RATES = 0.0


@dataclass(frozen=True)
class SumRow(ModelRow):
    """What so many examples contribute together, over what each contributes alone, a label drawn at random in its slot
    as baseline."""

    labels: str = column("", "the two labels")
    flip: float = column("share", "of labels that are flipped; 0 for all rates together")
    n_changed: int = column("examples", "changed together")
    n_examples: int = column("examples", "in the sequence")
    joint: float = column("nats", "contribution of all together to the log-odds of the rule that they speak for, mean")
    summed: float = column("nats", "sum of the contributions of each, mean")
    summed_low: float = column("nats", "95% interval over sequences, lower end")
    summed_high: float = column("nats", "upper end")
    ratio: float = column("", "joint over summed; 1 if they add")
    low: float = column("", "95% interval over sequences, lower end")
    high: float = column("", "upper end")
    difference: float = column("nats", "joint less summed, mean: the second difference of two")
    difference_low: float = column("nats", "lower end")
    difference_high: float = column("nats", "upper end")
    n: int = column("sequences", "n")


class Changed(NamedTuple):
    """Sequences with labels changed, as variants: the largest group's labels at random; the same with each one's label
    turned over; then of each size with the first so many labels their own, and with them turned over.

    own: whether the label drawn for each example of the largest group is its own.
    """

    sequences: Sequences
    own: Int[Tensor, "n largest"]


def changed(sequences: Sequences, *, seed: int = 0) -> Changed:
    """A group of examples that speak for the rule, drawn anew for each sequence; smaller groups are its first ones.

    Raises :class:`TaskError` where a sequence has too few; take those of :func:`enough`.
    """
    generator, n, largest = torch.Generator().manual_seed(seed), len(sequences), max(GROUPS)
    if not bool(enough(sequences, largest).all()):
        raise TaskError(f"Some sequences have fewer than {largest} labels that speak for the rule.")
    labels, speaks = sequences.labels[:, 0], sequences.sides[:, 0] == 1
    slots = torch.rand(labels.shape, generator=generator).masked_fill(~speaks, -1).argsort(1, descending=True)
    slots, own = slots[:, :largest], torch.randint(2, (n, largest), generator=generator)
    mine = labels.gather(1, slots)
    some = mine ^ 1 ^ own
    first = torch.arange(largest) < torch.tensor(GROUPS)[:, None]
    parts = [some[:, None], some[:, None] ^ torch.eye(largest, dtype=torch.long)]
    for chosen in first:
        parts += [mine[:, None].where(chosen, some[:, None]), some[:, None] ^ chosen.long()]
    shown = torch.cat(parts, 1)
    variants = labels[:, None].expand(-1, shown.shape[1], -1)
    slots = slots[:, None].expand_as(shown)
    return Changed(sequences.relabelled(variants.scatter(2, slots, shown)), own)


def enough(sequences: Sequences, size: int = max(GROUPS)) -> Tensor:
    """Which sequences have so many labels that speak for the rule."""
    return (sequences.sides[:, 0] == 1).sum(1) >= size


def sum_rows(model: str, labels: str, log_odds: LogOdds, made: Changed, *, seed: int = 0) -> list[SumRow]:
    """Of each rate and of all together. log_odds: of the variants, at the last question."""
    sequences, rows = made.sequences, []
    n_shown = sequences.labels.shape[-1]
    joint, summed = contributions(log_odds, made.own)
    for flip in (*sequences.flip.unique().tolist(), ALL_RATES):
        at = (sequences.flip == flip) | (flip == ALL_RATES)
        for size, together, alone in zip(GROUPS, joint[at].T, summed[at].T):
            ratio, total = (bootstrap_ratio(together, alone, seed=seed), bootstrap_mean(alone, n_boot=2000, seed=seed))
            difference = bootstrap_mean(together - alone, n_boot=2000, seed=seed)
            rows.append(SumRow(model, labels, round(flip, 3), size, n_shown, together.mean().item(), *total[:3],
                               *ratio[:3], *difference[:3], n=ratio.n))  # fmt: skip
    return rows


def contributions(
    log_odds: LogOdds, own: Int[Tensor, "n largest"]
) -> tuple[Float[Tensor, "n groups"], Float[Tensor, "n groups"]]:
    """What each group contributes together, and the sum of what its examples contribute alone."""
    some, turned, rest = log_odds[..., -1].split([1, own.shape[1], 2 * len(GROUPS)], 1)
    alone = (2 * own - 1) * (some - turned) / 2
    mine, opposite = rest[:, ::2], rest[:, 1::2]
    return mine - (some + opposite) / 2, torch.stack([alone[:, :size].sum(1) for size in GROUPS], 1)


def run(c: Context) -> list[SumRow]:
    """The first order of some of the sequences that the other tables are made of, with the same labels."""
    read = asked(c)
    fit, n = enough(read.sequences), c.n(N_SEQUENCES, 10)
    rows = [((read.sequences.flip - rate).abs() < 1e-6).logical_and(fit).nonzero()[:n, 0] for rate in RATES]
    made = changed(read.sequences.of(torch.cat(rows)), seed=c.seed)
    found = log_odds(c.bridge, c.tokenizer, made.sequences, read.labels, only_last=True)
    return sum_rows(c.model, read.named, found, made, seed=c.seed)
