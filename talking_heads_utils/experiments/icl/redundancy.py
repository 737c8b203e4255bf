"""How redundant heads are, measured: removal in the order of effect, what pairs do together, who steps in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.scores import right_log_odds, right_log_prob
from talking_heads_utils.forward.end_runs import EndRun, Replacements, ablated_logits
from talking_heads_utils.forward.head_sets import Ablations, ablations
from talking_heads_utils.forward.suffix import Suffix
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.stats import bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Reader:
    """Prompts that are asked for a number at their last token, with any heads or MLPs taken out.

    ends: the last tokens, through the layers from 0 on. numbers: those among which the answer is. right: the right one
    of each prompt. instead: what stands in place of what is taken out.
    """

    ends: Suffix
    numbers: Numbers
    right: Int[Tensor, "n"]
    instead: Replacements

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)"""
        return len(self.ends.layers), len(self.ends.layers[0].attention.W_Q)

    @property
    def heads(self) -> list[Head]:
        """All of them, layer by layer."""
        return heads_in(range(self.shape[0]), self.shape[1])

    def logits(self, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets_1 n_numbers"]:
        """Logits of the numbers, first of the plain run, then with each set of heads out."""
        chosen = ablations(self.shape, {str(i): heads for i, heads in enumerate(sets)})
        return self.run(chosen)

    def run(self, chosen: Ablations) -> Float[Tensor, "n n_sets n_numbers"]:
        """Logits of the numbers under every ablation."""
        return ablated_logits(self.ends, chosen, self.instead, self.numbers.ids.to(self.ends.resid.device))

    def log_prob(self, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets_1"]:
        """Log-probability of the right number (nats), first of the plain run, then with each set out."""
        return right_log_prob(self.logits(sets), self.right, self.numbers)


def effects(reader: Reader, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets"]:
    """What the loss of each set costs each prompt: log-probability of the right answer, nats."""
    found = reader.log_prob(sets)
    return found[:, :1] - found[:, 1:]


@dataclass(frozen=True)
class Removal:
    """Heads in the order in which they were taken out, and what was left after 0, 1, 2, ... of them."""

    order: tuple[Head, ...]
    exact: Float[Tensor, "n steps"]
    log_prob: Float[Tensor, "n steps"]


def remove_by_effect(select: Reader, score: Reader, n_heads: int) -> Removal:
    """Take out, one after the other, the head whose loss costs most *given those that are out*, up to ``n_heads``.

    The order is chosen on ``select`` and scored on ``score``, which must be other prompts.
    Raises :class:`OptionError` if no head would be left.
    """
    _check_some_left(select, n_heads)
    order: list[Head] = []
    for _ in follow(range(n_heads), "heads taken out"):
        left = [head for head in select.heads if head not in order]
        costs = effects(select, [[*order, head] for head in left]).mean(0)
        order.append(left[int(costs.argmax())])
    return _removal(score, order)


def remove_at_random(reader: Reader, n_heads: int, seed: int) -> Removal:
    """The same, in random order."""
    _check_some_left(reader, n_heads)
    order = torch.randperm(len(reader.heads), generator=torch.Generator().manual_seed(seed))[:n_heads]
    return _removal(reader, [reader.heads[i] for i in order.tolist()])


def _check_some_left(reader: Reader, n_heads: int) -> None:
    if not 0 < n_heads < len(reader.heads):
        raise OptionError(
            f"Of {len(reader.heads)} heads, 1 to {len(reader.heads) - 1} can be taken out, not {n_heads}."
        )


def _removal(reader: Reader, order: Sequence[Head]) -> Removal:
    logits = reader.logits([order[: k + 1] for k in range(len(order))])
    exact = reader.numbers.read(logits) == reader.right[:, None]
    return Removal(tuple(order), exact.float(), right_log_prob(logits, reader.right, reader.numbers))


def pair_interactions(reader: Reader, heads: Sequence[Head]) -> pd.DataFrame:
    """Each pair's worth together less the sum of what each is worth alone, in nats of log-odds of the right answer:
    columns ``a, b, together, alone, interaction, low, high, log_prob, log_prob_low, log_prob_high, n`` (95% bootstrap
    intervals over prompts).

    Above 0: each stands in for the other, and only the loss of both is felt. 0: what the two do to the logit adds.
    Below 0: a chain, of which either link is enough to break it. log_prob: the same in log-probability. That has a
    ceiling: near certainty two heads that add look as if each stood in for the other.
    """
    import pandas as pd

    pairs = list(combinations(heads, 2))
    logits = reader.logits([*([head] for head in heads), *pairs])
    together, alone = _pair_worths(right_log_odds(logits, reader.right, reader.numbers), len(heads))
    capped = torch.sub(*_pair_worths(right_log_prob(logits, reader.right, reader.numbers), len(heads)))
    rows = []
    for i, (a, b) in enumerate(pairs):
        found, log_prob = (bootstrap_mean(of, n_boot=1000) for of in (together[:, i] - alone[:, i], capped[:, i]))
        rows.append(
            dict(a=str(a), b=str(b), together=together[:, i].mean().item(), alone=alone[:, i].mean().item(),
                 interaction=found.mean, low=found.low, high=found.high, log_prob=log_prob.mean,
                 log_prob_low=log_prob.low, log_prob_high=log_prob.high, n=found.n)
        )  # fmt: skip
    return pd.DataFrame(rows)


def _pair_worths(score: Float[Tensor, "n n_sets_1"], n_heads: int) -> tuple[Tensor, Tensor]:
    """What is lost with each pair out, and the sum of what is lost with each of its heads out: ``[n, n_pairs]`` each.

    score: of the plain run, then with each head out, then with each pair out.
    """
    lost = score[:, :1] - score[:, 1:]
    a, b = torch.combinations(torch.arange(n_heads)).T
    return lost[:, n_heads:], lost[:, a] + lost[:, b]


def direct_effects(
    run: EndRun, ends: Suffix, row: int, *, scale_from: int, reference_from: int
) -> Float[Tensor, "n n_layers n_heads"]:
    """Each head's write at ``end`` along the final residual stream, through the final norm's divisor.

    The final residual stream (centred, of length one) is the reference direction, as in the post, which takes that of
    layer 15. scale_from, reference_from: the set of ``run`` whose divisor and whose direction are used: 0 holds them
    fixed at the plain run's; ``row`` leaves them free, as the post does.
    """
    written = torch.stack(
        [torch.einsum("nhd,hdm->nhm", run.z[:, row, i], part.attention.W_O) for i, part in enumerate(ends.layers)], 1
    )
    final = ends.norm.center(run.resid[:, reference_from, -1])
    reference = final / final.norm(dim=-1, keepdim=True)
    divisor = ends.norm.center(run.resid[:, scale_from, -1])
    divisor = ends.norm.scale(divisor.square().sum(-1), divisor.shape[-1])
    return torch.einsum("nlhm,nm->nlh", ends.norm.center(written), reference) / divisor[:, None, None]


def compensation(run: EndRun, ends: Suffix, chosen: Ablations) -> pd.DataFrame:
    """Change of every other head's direct effect under each ablation: columns ``set, head, above, fixed, free, plain,
    low, high, free_low, free_high, attention, n``.

    above: whether something is out in a layer below the head's; no other head can change. fixed: with the divisor and
    the reference direction of the plain run. free: with those of the ablated run (the post's way). low, high: of fixed,
    95% over prompts; free_low, free_high: of free. attention: total variation between the head's pattern at ``end``
    with and without the ablation, mean over prompts.
    """
    import pandas as pd

    plain = direct_effects(run, ends, 0, scale_from=0, reference_from=0)
    rows = []
    for row, name in enumerate(chosen.names):
        if row == 0:
            continue
        fixed = direct_effects(run, ends, row, scale_from=0, reference_from=0) - plain
        free = direct_effects(run, ends, row, scale_from=row, reference_from=row) - plain
        moved, first = pattern_change(run, ends, row), chosen.first_layer(row)
        for layer, head in (~chosen.heads[row]).nonzero().tolist():
            found, seeming = (bootstrap_mean(of[:, layer, head], n_boot=1000) for of in (fixed, free))
            rows.append(
                dict(set=name, head=str(Head(layer, head)), above=layer > first, fixed=found.mean, free=seeming.mean,
                     plain=plain[:, layer, head].mean().item(), low=found.low, high=found.high, free_low=seeming.low,
                     free_high=seeming.high, attention=moved[:, layer, head].mean().item(), n=found.n)
            )  # fmt: skip
    return pd.DataFrame(rows)


def pattern_change(run: EndRun, ends: Suffix, row: int) -> Float[Tensor, "n n_layers n_heads"]:
    """Total variation between a head's attention at ``end`` in the plain run and under one ablation, 0 to 1."""
    heads, out = range(run.z.shape[3]), []
    for layer, part in enumerate(ends.layers):
        both = run.resid[:, [0, row], layer]
        pattern = ends.pattern(part, both, slice(None), heads)
        own = 1 - pattern.sum(-1)
        out.append(0.5 * (pattern.diff(dim=1)[:, 0].abs().sum(-1) + own.diff(dim=1)[:, 0].abs()))
    return torch.stack(out, 1)
