"""Who listens: every later head, ranked by how strongly its query reads what the S-inhibition heads write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test, mean_over_draws, names_within_layers
from talking_heads_utils.experiments.inhibition.links import N_DRAWS, percentiles
from talking_heads_utils.experiments.rows import Row, column, maybe
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import BACKUP_MOVER, NAME_MOVER, S_INHIBITION, Roles
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.stats import middle, percentile_among

N_BOOT = 2000
EVERY = "all"  # in place of a head: the row of the test over all of them


@dataclass(frozen=True)
class ListenerRow(Row):
    """One later head as a reader of the S-inhibition heads' components; then a row of the test by either measure."""

    head: str = column("", "the reader; 'all' in the rows of the test")
    layer: int | None = maybe("", "its layer")
    role: str = column("", "its role; empty for none, and in the rows of the test")
    listener: bool | None = maybe("", "whether it is a name mover or a backup of one: the claim is of them")
    value: float | None = maybe("percentile", "of the S-inhibition heads among all earlier heads, by the component of "
                                "each that this reader's query reads most, mean over S-inhibition heads: the links' "
                                "statistic, of one reader")  # fmt: skip
    rank: int | None = maybe("", "of value among all later heads, 1 for the strongest")
    shared: float | None = maybe("percentile", "of the S-inhibition heads' components among all earlier components, "
                                 "mean over those heads; of each the component that all other later heads read most "
                                 "on average")  # fmt: skip
    by: str = column("", "in the rows of the test, by which of the two columns: 'value' or 'shared'")
    auc: float | None = maybe("share", "of pairs of a listener and another later head in which the listener's is "
                              "larger")  # fmt: skip
    low: float | None = maybe("share", "lower end of its 95% interval, bootstrap over heads")
    high: float | None = maybe("share", "upper end")
    null_mean: float | None = maybe("share", "its mean over as many heads drawn from the same layers")
    null_high: float | None = maybe("share", "and their 95th percentile")
    p: float | None = maybe("", "share of those draws, and the listeners, that reach it")
    n_listeners: int | None = maybe("heads", "listeners among the later heads")
    n: int | None = maybe("heads", "later heads")
    n_draws: int | None = maybe("", "draws that p is made of")


def own_components(scores: CompositionScores, writers: Sequence[Head]) -> Float[Tensor, "n_later n_heads"]:
    """How strongly the query of every head in a later layer than all writers reads them: mean over writers of their
    percentile among all earlier heads, each head by the component that this reader reads most. Every reader is treated
    alike, so nothing is chosen by a role."""
    table = percentiles(scores.best_component("Q"))
    first = _later(scores, writers)[0]
    return torch.stack([table[writer.layer, writer.head, first:] for writer in writers]).mean(0)


def shared_components(scores: CompositionScores, writers: Sequence[Head]) -> Float[Tensor, "n_later n_heads"]:
    """As :func:`own_components`, but of one component a writer for all readers, as a percentile among all earlier
    components. That with the highest mean percentile over all *other* later heads is taken, so it is chosen without the
    reader that is asked about, and without knowing any reader's role.
    """
    at = [writer.layer for writer in writers], [writer.head for writer in writers]
    blocks = [scores.blocks["Q", layer].score for layer in _later(scores, writers)]
    read = torch.stack([_component_percentiles(score)[at] for score in blocks])
    n_readers = read.shape[0] * read.shape[-1]  # of [n_later, n_writers, d_head, n_heads]
    others = (read.sum((0, 3))[None, :, :, None] - read) / (n_readers - 1)
    best = others.argmax(2, keepdim=True)
    return read.gather(2, best)[:, :, 0].mean(1)


def _later(scores: CompositionScores, writers: Sequence[Head]) -> range:
    return range(max(writer.layer for writer in writers) + 1, scores.n_layers)


def _component_percentiles(score: Float[Tensor, "layers heads d_head readers"]) -> Tensor:
    """Of every component among all earlier ones; one that writes nothing is the last."""
    return percentile_among(score.flatten(0, 2).nan_to_num(nan=-1.0)).view_as(score)


def listener_rows(
    scores: CompositionScores, roles: Roles, *, n_draws: int = N_DRAWS, seed: int = 0
) -> list[ListenerRow]:
    """A row per later head, the strongest first, and a row of the test by either measure.

    Raises :class:`NotApplicable` where there are no S-inhibition heads, no later name movers, or no other later heads.
    """
    writers = roles.heads(S_INHIBITION)
    later = list(_later(scores, writers)) if writers else []
    listeners = [head for head in roles.heads(NAME_MOVER, BACKUP_MOVER) if head.layer in later]
    heads = heads_in(later, scores.n_heads)
    if not listeners or len(listeners) == len(heads):
        raise NotApplicable("No name mover and other head come after all S-inhibition heads, so none can be compared.")
    values = {"value": own_components(scores, writers), "shared": shared_components(scores, writers)}
    own, shared = (each.flatten() for each in values.values())
    rank = rankdata(-own.numpy(), method="min")
    rows = [
        ListenerRow(
            str(head), layer=head.layer, role=roles.role_of(head), listener=head in listeners, value=own[i].item(),
            rank=int(rank[i]), shared=shared[i].item(), by="",
        )
        for i, head in sorted(enumerate(heads), key=lambda at: -own[at[0]].item())
    ]  # fmt: skip
    at = [Head(head.layer - later[0], head.head) for head in listeners]
    return [*rows, *(auc_row(by, each, at, n_draws, seed) for by, each in values.items())]


def auc_row(
    by: str, value: Float[Tensor, "n_later n_heads"], listeners: Sequence[Head], n_draws: int, seed: int
) -> ListenerRow:
    """Area under the curve of the listeners against all other heads, with its null: as many heads of the same layers.

    listeners: by their row of ``value``, as layer. The interval is a bootstrap over heads, within each of the groups.
    """
    ranks = torch.from_numpy(rankdata(value.flatten().numpy())).view_as(value)
    n, rest = len(listeners), value.numel() - len(listeners)
    chosen = torch.zeros_like(value, dtype=torch.bool)
    for head in listeners:
        chosen[head.layer, head.head] = True

    def auc(mean_rank: Tensor) -> Tensor:
        return (mean_rank - (n + 1) / 2) / rest

    names = names_within_layers(n_draws, value.shape[0], value.shape[1], seed)
    observed = auc(torch.stack([ranks[head.layer, head.head] for head in listeners]).mean()).item()
    test = drawn_test(observed, auc(mean_over_draws(ranks, listeners, names)))
    above = ranks[chosen][:, None] - ranks[~chosen][None]
    wins = (above > 0).double() + 0.5 * (above == 0)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (N_BOOT, n, 1), generator=generator)
    columns = torch.randint(rest, (N_BOOT, 1, rest), generator=generator)
    low, high = middle(wins[rows, columns].mean((1, 2)))
    return ListenerRow(
        EVERY, role="", by=by, auc=observed, low=low, high=high, null_mean=test.null_mean, null_high=test.null_high,
        p=test.p, n_listeners=n, n=value.numel(), n_draws=test.n,
    )  # fmt: skip


def run(c: Context) -> list[ListenerRow]:
    """Raises :class:`NotApplicable` as :func:`listener_rows` does, and for a model without roles."""
    return listener_rows(c.scores, c.roles, seed=c.seed)
