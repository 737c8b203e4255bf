"""Measures of how strongly one head reads another, held against the links of the circuit that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.links import known_links
from talking_heads_utils.experiments.rows import Row, column, maybe
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import Link
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.stats import bootstrap_mean, percentile_among
from talking_heads_utils.weights.heads import HeadWeights

BEST_COMPONENT, TOP_COMPONENTS = "best_component", "top_components"
HEAD_COMPOSITION, PROJECTION_KERNEL = "head_composition", "projection_kernel"
MEASURES = (BEST_COMPONENT, TOP_COMPONENTS, HEAD_COMPOSITION, PROJECTION_KERNEL)
TOP = 3  # components that top_components adds up
EVERY = "all"  # in place of a link or a reader


@dataclass(frozen=True)
class RivalRow(Row):
    """How well one measure ranks the known writers of one reader among all earlier heads; means over readers."""

    measure: str = column("", "best_component; top_components, the sum of the three largest scores; "
                          "head_composition, the score of Elhage et al. 2021; "
                          "projection_kernel, that of Yamagiwa et al. 2026")  # fmt: skip
    link: str = column("", "the link; 'all' for all known writers of a reader together")
    reader: str = column("", "the reader; 'all' for the mean over readers")
    kind: str = column("", "its input, Q, K or V; empty for several")
    auc: float = column("share", "of pairs of a known writer and another earlier head in which the writer comes first")
    auc_low: float | None = maybe("share", "lower end of its 95% interval, bootstrap over readers")
    auc_high: float | None = maybe("share", "upper end")
    r_precision: float = column("share", "of the first R heads that are known writers, where R is how many there are")
    r_precision_low: float | None = maybe("share", "lower end of its 95% interval, bootstrap over readers")
    r_precision_high: float | None = maybe("share", "upper end")
    ahead: float | None = maybe("share", "auc of best_component less that of this measure, mean over readers")
    ahead_low: float | None = maybe("share", "lower end of its 95% interval, bootstrap over readers")
    ahead_high: float | None = maybe("share", "upper end")
    n_writers: int = column("heads", "known writers, summed over readers")
    n_earlier: int = column("heads", "earlier heads that are ranked, summed over readers")
    n_readers: int = column("heads", "readers")


def projection_kernels(weights: HeadWeights, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
    """``||U^T R||_F^2`` of what each head writes and what each later head reads, with orthonormal bases of the rows of
    W_O and of the columns of W_Q, W_K or W_V (Yamagiwa, Takase and Shimodaira 2026, arXiv 2601.10266); else NaN.

    Heads that share keys and values have the same kernel there.
    """
    W = {"Q": weights.W_Q, "K": weights.W_K, "V": weights.W_V}[kind]
    U, R = torch.linalg.qr(weights.W_O.mT)[0], torch.linalg.qr(W)[0]
    out = W.new_full((weights.n_layers, weights.n_heads, weights.n_layers, weights.n_heads), torch.nan)
    for layer in range(1, weights.n_layers):
        written = U[:layer].flatten(0, 1).mT.flatten(0, 1)  # all directions that earlier heads write
        met = (written @ R[layer]).square().sum(-1)  # [n_kv_heads or n_heads, n_directions]
        found = met.view(len(met), layer, weights.n_heads, -1).sum(-1)
        out[:layer, :, layer] = (found if kind == "Q" else found[weights.kv_index]).permute(1, 2, 0)
    return out


def top_components(scores: CompositionScores, kind: str) -> Float[Tensor, "layers heads layers heads"]:
    """Sum of the :data:`TOP` largest scores of a writer's components into a reader; else NaN."""
    shape = (scores.n_layers, scores.n_heads, scores.n_layers, scores.n_heads)
    out = torch.full(shape, torch.nan)
    for layer in (layer for held, layer in scores.blocks if held == kind):
        score = scores.blocks[kind, layer].score
        best = score.nan_to_num().topk(min(TOP, score.shape[2]), dim=2).values.sum(2)
        out[:layer, :, layer] = best.masked_fill(score.isnan().all(2), torch.nan)
    return out


def measured(weights: HeadWeights, scores: CompositionScores, kind: str) -> dict[str, Tensor]:
    """Each of :data:`MEASURES`, ``[writer layer, writer head, reader layer, reader head]``."""
    found = (
        scores.best_component(kind), top_components(scores, kind), scores.head_level(kind),
        projection_kernels(weights, kind).cpu(),
    )  # fmt: skip
    return dict(zip(MEASURES, found, strict=True))


def precision(values: Float[Tensor, "n"], known: Bool[Tensor, "n"]) -> tuple[float, float]:
    """``(auc, r_precision)`` of a ranking by ``values``; a head without a value is ranked last."""
    values = values.double().nan_to_num(nan=-torch.inf)
    n, n_known = len(values), int(known.sum())
    ranks = 1 + percentile_among(values)[known] * (n - 1) / 100
    auc = (ranks.sum() - n_known * (n_known + 1) / 2) / (n_known * (n - n_known))
    return auc.item(), known[values.topk(n_known).indices].double().mean().item()


def rival_rows(weights: HeadWeights, scores: CompositionScores, links: Sequence[Link]) -> list[RivalRow]:
    """Each measure on every reader of every link, where the reader's other known writers are left out; on every reader
    with all its known writers together, link ``'all'``; and the means over readers of both."""
    tables = {kind: measured(weights, scores, kind) for kind in dict.fromkeys(link.kind for link in links)}
    writers: dict[tuple[Head, str], set[Head]] = {}
    for link in links:
        for writer, reader in link.pairs:
            writers.setdefault((reader, link.kind), set()).add(writer)
    asked = [
        (link.name, reader, link.kind, {w for w, r in link.pairs if r == reader})
        for link in links for reader in link.readers
    ]  # fmt: skip
    asked += [(EVERY, reader, kind, known) for (reader, kind), known in sorted(writers.items())]
    rows: dict[tuple[str, str], list[RivalRow]] = {}
    for name, reader, kind, known in asked:
        left_out = writers[reader, kind] - known
        for measure, table in tables[kind].items():
            row = _reader_row(measure, name, reader, kind, table, known, left_out)
            rows.setdefault((name, measure), []).append(row)
    means = [_mean_row(found, rows[name, BEST_COMPONENT]) for (name, _), found in rows.items()]
    return [*(row for found in rows.values() for row in found), *means]


def _reader_row(
    measure: str, name: str, reader: Head, kind: str, table: Tensor, known: set[Head], left_out: set[Head]
) -> RivalRow:
    earlier = table[: reader.layer, :, reader.layer, reader.head]
    marked, held = torch.zeros(earlier.shape, dtype=torch.bool), torch.ones(earlier.shape, dtype=torch.bool)
    for head in known:
        marked[head.layer, head.head] = True
    for head in left_out:
        held[head.layer, head.head] = False
    auc, r_precision = precision(earlier[held], marked[held])
    return RivalRow(measure, name, str(reader), kind, auc=auc, r_precision=r_precision, n_writers=len(known),
                    n_earlier=int(held.sum()), n_readers=1)  # fmt: skip


def _mean_row(rows: Sequence[RivalRow], best: Sequence[RivalRow]) -> RivalRow:
    """Means over readers, with intervals where there are two or more."""
    kinds = {row.kind for row in rows}
    cells: dict[str, Any] = dict(
        measure=rows[0].measure, link=rows[0].link, reader=EVERY, kind=kinds.pop() if len(kinds) == 1 else "",
        n_writers=sum(row.n_writers for row in rows), n_earlier=sum(row.n_earlier for row in rows),
        n_readers=len({row.reader for row in rows}),
    )  # fmt: skip
    for name, values in (
        ("auc", [row.auc for row in rows]), ("r_precision", [row.r_precision for row in rows]),
        ("ahead", [other.auc - row.auc for other, row in zip(best, rows, strict=True)]),
    ):  # fmt: skip
        cells[name] = values[0]
        if len(values) > 1:
            found = bootstrap_mean(torch.tensor(values, dtype=torch.float64))
            cells |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return RivalRow(**cells)


def run(c: Context) -> list[RivalRow]:
    """Raises :class:`NotApplicable` for a model in which no head is known to read another."""
    return rival_rows(c.weights, c.scores, known_links(c))
