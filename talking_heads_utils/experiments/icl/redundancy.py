"""How redundant heads are, measured: removal in the order of effect, what pairs do together, who steps in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.ablations import (
    Ablations,
    EndRun,
    Replacements,
    ablated_logits,
    ablations,
    run_end,
)
from talking_heads_utils.experiments.icl.clusters import Ends, mean_in_clusters
from talking_heads_utils.experiments.icl.scores import right_log_odds, right_log_prob
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import Forward
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.questions import Numbers
from talking_heads_utils.stats import share_in_clusters

BY_EFFECT, RANDOM = "by_effect", "random"


@dataclass(frozen=True)
class Reader:
    """Prompts that are asked for an answer at their last token, with any heads or MLPs taken out.

    ends: the last tokens, through the layers from 0 on. answers: those among which the right one is. right: that of
    each prompt. clusters: prompts of one cluster are alike. instead: what stands in place of what is taken out.
    """

    ends: Forward
    answers: Numbers
    right: Int[Tensor, "n"]
    clusters: Int[Tensor, "n"]
    instead: Replacements

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)"""
        return len(self.ends.layers), len(self.ends.layers[0].attention.W_Q)

    @property
    def heads(self) -> list[Head]:
        """All of them, layer by layer."""
        return heads_in(range(self.shape[0]), self.shape[1])

    def logits(self, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets_1 n_answers"]:
        """Logits of the answers, first of the plain run, then with each set of heads out."""
        return self.run(ablations(self.shape, {str(i): heads for i, heads in enumerate(sets)}))

    def run(self, chosen: Ablations) -> Float[Tensor, "n n_sets n_answers"]:
        """Logits of the answers under every ablation."""
        return ablated_logits(self.ends, chosen, self.instead, self.answers.ids.to(self.ends.resid.device))

    def log_prob(self, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets_1"]:
        """Log-probability of the right answer (nats), first of the plain run, then with each set out."""
        return right_log_prob(self.logits(sets), self.right, self.answers)


def effects(reader: Reader, sets: Sequence[Sequence[Head]]) -> Float[Tensor, "n n_sets"]:
    """What the loss of each set costs each prompt: log-probability of the right answer, nats."""
    found = reader.log_prob(sets)
    return found[:, :1] - found[:, 1:]


# --- removal ---


@dataclass(frozen=True)
class RemovalRow(Row):
    """Answers with so many heads out at the last token."""

    task: str = column("", "what the model is asked")
    order: str = column("", "by_effect: each time the head whose loss costs most, chosen on other prompts; or random")
    draw: int = column("", "which random order, from 1; 0 by effect")
    out: int = column("heads", "heads that are out")
    head: str | None = column("", "the one that went last; none with nothing out")
    exact: float = column("share", "right answers, among the task's answers")
    low: float = column("share", "lower end of exact, 95% over functions or answers")
    high: float = column("share", "upper end of exact")
    log_prob: float = column("nats", "log-probability of the right answer among the task's answers, mean")
    n: int = column("", "prompts")


def order_by_effect(select: Reader, n_heads: int) -> list[Head]:
    """One after the other, the head whose loss costs most *given those that are out*, up to ``n_heads``.

    Score the order on other prompts. Raises :class:`OptionError` if no head would be left.
    """
    _check_some_left(select, n_heads)
    order: list[Head] = []
    for _ in follow(range(n_heads), "heads taken out"):
        left = [head for head in select.heads if head not in order]
        costs = effects(select, [[*order, head] for head in left]).mean(0)
        order.append(left[int(costs.argmax())])
    return order


def random_order(reader: Reader, n_heads: int, seed: int) -> list[Head]:
    """As many heads in random order. Raises :class:`OptionError` if no head would be left."""
    _check_some_left(reader, n_heads)
    order = torch.randperm(len(reader.heads), generator=torch.Generator().manual_seed(seed))[:n_heads]
    return [reader.heads[i] for i in order.tolist()]


def _check_some_left(reader: Reader, n_heads: int) -> None:
    if not 0 < n_heads < len(reader.heads):
        raise OptionError(
            f"Of {len(reader.heads)} heads, 1 to {len(reader.heads) - 1} can be taken out, not {n_heads}."
        )


def removal(reader: Reader, orders: Sequence[tuple[str, int, Sequence[Head]]], task: str = "") -> list[RemovalRow]:
    """What is left after 0, 1, 2, ... heads of each order, which has a name and a number of its own."""
    logits = reader.logits([heads[: k + 1] for _, _, heads in orders for k in range(len(heads))])
    exact = reader.answers.read(logits) == reader.right[:, None]
    log_prob = right_log_prob(logits, reader.right, reader.answers).mean(0).tolist()
    rows, at = [], 1
    for order, draw, heads in orders:
        for out, head in enumerate((None, *heads)):
            cell = at + out - 1 if out else 0
            found = share_in_clusters(exact[:, cell], reader.clusters)
            named = None if head is None else str(head)
            rows.append(RemovalRow(task, order, draw, out, named, *found[:3], log_prob[cell], found.n))
        at += len(heads)
    return rows


# --- pairs ---


@dataclass(frozen=True)
class PairRow(Row):
    """What two heads do together."""

    task: str = column("", "what the model is asked")
    heads: str = column("", "among which heads: the strongest, chosen on other prompts, or random others")
    a: str = column("", "head")
    b: str = column("", "head")
    together: float = column("nats", "log-odds of the right answer lost with both out, mean")
    alone: float = column("nats", "sum of what is lost with each out")
    interaction: float = column("nats", "together less alone: above 0 each stands in for the other, below 0 a chain")
    low: float = column("nats", "lower end of interaction, 95% over functions or answers")
    high: float = column("nats", "upper end of interaction")
    log_prob: float = column("nats", "the same in log-probability, which has a ceiling")
    log_prob_low: float = column("nats", "lower end of log_prob")
    log_prob_high: float = column("nats", "upper end of log_prob")
    n: int = column("", "prompts")


def pair_interactions(reader: Reader, heads: Sequence[Head], *, task: str = "", kind: str = "") -> list[PairRow]:
    """Each pair's worth together less the sum of what each is worth alone, in nats of log-odds of the right answer.

    Above 0: each stands in for the other, and only the loss of both is felt. 0: what the two do to the logit adds.
    Below 0: a chain, of which either link is enough to break it. In log-probability, near certainty, two heads that
    add look as if each stood in for the other.
    """
    pairs = list(combinations(heads, 2))
    logits = reader.logits([*([head] for head in heads), *pairs])
    worths = [_pair_worths(score(logits, reader.right, reader.answers), len(heads))
              for score in (right_log_odds, right_log_prob)]  # fmt: skip
    odds, log_prob = (mean_in_clusters(together - alone, reader.clusters) for together, alone in worths)
    together, alone = (part.mean(0).tolist() for part in worths[0])
    return [
        PairRow(task, kind, str(a), str(b), together[i], alone[i], *_cell(odds, i), *_cell(log_prob, i), len(logits))
        for i, (a, b) in enumerate(pairs)
    ]


def _pair_worths(score: Float[Tensor, "n n_sets_1"], n_heads: int) -> tuple[Tensor, Tensor]:
    """What is lost with each pair out, and the sum of what is lost with each of its heads out: ``[n, n_pairs]`` each.

    score: of the plain run, then with each head out, then with each pair out.
    """
    lost = score[:, :1] - score[:, 1:]
    a, b = torch.combinations(torch.arange(n_heads)).T
    return lost[:, n_heads:], lost[:, a] + lost[:, b]


def _cell(found: Ends, *at: int) -> tuple[float, float, float]:
    return found.value[at].item(), found.low[at].item(), found.high[at].item()


# --- backups ---


@dataclass(frozen=True)
class BackupRow(Row):
    """Change of one head's direct effect when others are out."""

    task: str = column("", "what the model is asked")
    out: str = column("", "which heads are out: the strongest, or random ones of the same layers")
    head: str = column("", "the head whose direct effect is measured")
    above: bool = column("", "whether something is out below its layer; no other head can change")
    plain: float = column("stream RMS", "direct effect with nothing out, mean")
    fixed: float = column("stream RMS", "change, with the norm's divisor and the direction of the plain run")
    low: float = column("stream RMS", "lower end of fixed, 95% over functions or answers")
    high: float = column("stream RMS", "upper end of fixed")
    free: float = column("stream RMS", "change, with those of the ablated run, as the post has it")
    free_low: float = column("stream RMS", "lower end of free")
    free_high: float = column("stream RMS", "upper end of free")
    attention: float = column("share", "total variation of the head's pattern at the last token, mean")
    n: int = column("", "prompts")


def backups(reader: Reader, sets: Mapping[str, Sequence[Head]], *, task: str = "") -> list[BackupRow]:
    """Change of every other head's direct effect under each ablation."""
    chosen = ablations(reader.shape, dict(sets))
    run, ends, rows = run_end(reader.ends, chosen, reader.instead), reader.ends, []
    plain = direct_effects(run, ends, 0, scale_from=0, reference_from=0)
    for row, name in list(enumerate(chosen.names))[1:]:
        fixed, free = (
            mean_in_clusters(direct_effects(run, ends, row, scale_from=at, reference_from=at) - plain, reader.clusters)
            for at in (0, row)
        )
        moved, first = pattern_change(run, ends, row).mean(0), chosen.first_layer(row)
        for at in (~chosen.heads[row]).nonzero().tolist():
            rows.append(
                BackupRow(task, name, str(Head(*at)), at[0] > first, plain[:, at[0], at[1]].mean().item(),
                          *_cell(fixed, *at), *_cell(free, *at), moved[at[0], at[1]].item(), len(plain))
            )  # fmt: skip
    return rows


def direct_effects(
    run: EndRun, ends: Forward, row: int, *, scale_from: int, reference_from: int
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


def pattern_change(run: EndRun, ends: Forward, row: int) -> Float[Tensor, "n n_layers n_heads"]:
    """Total variation between a head's attention at ``end`` in the plain run and under one ablation, 0 to 1."""
    heads, out = range(run.z.shape[3]), []
    for layer in range(ends.n_layers):
        both = run.resid[:, [0, row], layer]
        pattern = ends.patterns(layer, both[:, :, None], ends.at_end(), slice(None), heads)[:, :, :, 0]
        out.append(0.5 * pattern.diff(dim=1)[:, 0].abs().sum(-1))
    return torch.stack(out, 1)
