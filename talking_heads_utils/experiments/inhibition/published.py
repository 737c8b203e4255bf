"""Known links of a circuit, looked up in the weights: do published writers stand out among other heads?

Each reader ranks every earlier head of the model by one of two measures: the largest score of any single
component (``one component``) or the head-level score of Elhage et al. (``whole head``). What is compared is the
percentile of the published writers in that ranking, against other heads of the same layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import LabelError
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.scores.scores import MEASURES, ONE_COMPONENT, WHOLE_HEAD, CompositionScores
from talking_heads_utils.stats import ExactTest, bootstrap_mean, exact_head_test, percentile_among

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "ONE_COMPONENT", "WHOLE_HEAD"]  # beside the functions here
Roles = dict[str, list[Head]]
Link = tuple[str, str, str]  # role of the writers, role of the readers, kind


def reader_percentiles(
    values: Float[Tensor, "n_layers n_heads n_layers n_heads"], reader: Head
) -> Float[Tensor, "n_layers n_heads"]:
    """Percentile of every earlier head among all earlier heads of one reader (100 is the strongest), else NaN."""
    out = torch.full(values.shape[:2], torch.nan, dtype=torch.float64)
    earlier = values[: reader.layer, :, reader.layer, reader.head]
    out[: reader.layer] = percentile_among(earlier.flatten()).view_as(earlier)
    return out


def link_table(scores: CompositionScores, roles: Roles, links: Sequence[Link]) -> pd.DataFrame:
    """One row per link, measure and pair of heads: published pairs, and as controls the same readers with every
    other head of the writers' layers. Columns: link, measure, writer, reader, published, percentile."""
    import pandas as pd

    rows = []
    for writers_role, readers_role, kind in links:
        writers = roles[writers_role]
        layers = sorted({head.layer for head in writers})
        for measure in MEASURES:
            values = scores.pairs(kind, measure)
            for reader in roles[readers_role]:
                percentiles = reader_percentiles(values, reader)
                for head in heads_in((layer for layer in layers if layer < reader.layer), scores.n_heads):
                    rows.append({
                        "link": link_name(writers_role, readers_role, kind), "measure": measure, "writer": str(head),
                        "reader": str(reader), "published": head in writers,
                        "percentile": percentiles[head.layer, head.head].item(),
                    })  # fmt: skip
    return pd.DataFrame(rows)


def link_summary(scores: CompositionScores, roles: Roles, links: Sequence[Link]) -> pd.DataFrame:
    """Per link and measure, over the published pairs of :func:`link_table` and all choices of as many heads from the
    same layers. Columns: link, measure; percentile, mean of the ``pairs`` published pairs, with its 95% bootstrap
    interval ``low`` to ``high``; others, mean over the ``choices``; p, the exact share of them that do as well."""
    import pandas as pd

    table = link_table(scores, roles, links)
    rows = []
    for link in links:
        for measure in MEASURES:
            name = link_name(*link)
            pairs = table[(table["link"] == name) & (table["measure"] == measure) & table["published"]]
            mean = bootstrap_mean(torch.tensor(pairs["percentile"].to_numpy()))
            values = scores.pairs(link[2], measure)
            per_writer = torch.stack([reader_percentiles(values, reader) for reader in roles[link[1]]]).nanmean(0)
            test = exact_head_test(per_writer, roles[link[0]])
            rows.append({
                "link": name, "measure": measure, "percentile": mean.mean, "low": mean.low, "high": mean.high,
                "pairs": mean.n, "others": test.null_mean, "p": test.p, "choices": test.n,
            })  # fmt: skip
    return pd.DataFrame(rows)


def link_name(writers_role: str, readers_role: str, kind: str) -> str:
    return f"{writers_role} → {readers_role} ({kind})"


def strongest_writers(
    scores: CompositionScores, reader: Head, kind: str, k: int, measure: str
) -> list[tuple[Head, Component, float]]:
    """The k earlier heads that a reader reads most by one measure, each with its strongest component and value.

    Heads whose score is undefined are never among them, so there can be fewer than k.
    """
    values = scores.pairs(kind, measure)[: reader.layer, :, reader.layer, reader.head].flatten()
    k = min(k, int((~values.isnan()).sum()))
    found = []
    for index in values.nan_to_num(nan=-torch.inf).topk(k).indices.tolist():
        head = Head(index // scores.n_heads, index % scores.n_heads)
        best = int(scores.pair(head, reader, kind).nan_to_num(nan=-1.0).argmax())
        found.append((head, Component(head.layer, head.head, best), values[index].item()))
    return found


def published_edges(
    scores: CompositionScores, roles: Roles, links: Sequence[Link], k: int, measure: str
) -> list[tuple[Head, Component, Head, str, float, bool]]:
    """The k strongest writers of every reader in ``links``: writer, its component, reader, kind, value, and whether
    the literature links the two."""
    edges = []
    for (reader, kind), known in _linked_writers(roles, links).items():
        for head, component, value in strongest_writers(scores, reader, kind, k, measure):
            edges.append((head, component, reader, kind, value, head in known))
    return edges


def published_counts(scores: CompositionScores, roles: Roles, links: Sequence[Link], ks: Sequence[int]) -> pd.DataFrame:
    """How many of the k strongest writers of every reader are published ones: a row per measure, a column per k."""
    import pandas as pd

    counts = {
        measure: [sum(known for *_, known in published_edges(scores, roles, links, k, measure)) for k in ks]
        for measure in MEASURES
    }
    return pd.DataFrame(counts, index=list(ks)).T.rename_axis(columns="published edges by k")


def edges_by_chance(scores: CompositionScores, roles: Roles, links: Sequence[Link], k: int) -> float:
    """How many of the edges would be published, on average, if the k writers of every reader in ``links`` were drawn
    evenly from all earlier heads, none twice."""
    expected = 0.0
    for (reader, _), known in _linked_writers(roles, links).items():
        earlier = reader.layer * scores.n_heads
        expected += min(k, earlier) * sum(head.layer < reader.layer for head in known) / max(earlier, 1)
    return expected


def _linked_writers(roles: Roles, links: Sequence[Link]) -> dict[tuple[Head, str], set[Head]]:
    """Every reader in ``links`` with the input it reads, in order -> the heads that the literature links to it."""
    found: dict[tuple[Head, str], set[Head]] = {}
    for writers, role, kind in links:
        for reader in roles[role]:
            found.setdefault((reader, kind), set()).update(roles[writers])
    return dict(sorted(found.items()))


def edges_above(
    scores: CompositionScores, roles: Roles, link: Link, least_z: float
) -> list[tuple[Head, Head, str, bool]]:
    """Every earlier head of which a reader of the link reads some component with at least this z: writer, reader, what
    the two and the strongest component are called, and whether the literature links the two."""
    writers, readers, kind = link
    z = scores.best_z(kind)
    edges = []
    for reader in roles[readers]:
        block, _ = scores.block(reader, kind)
        for layer, head in (z[:, :, reader.layer, reader.head] >= least_z).nonzero().tolist():
            best = Component(layer, head, int(block.z[layer, head, :, reader.head].nan_to_num(nan=-torch.inf).argmax()))
            text = f"{best} → {reader}<br>z = {z[layer, head, reader.layer, reader.head]:.1f}"
            edges.append((Head(layer, head), reader, text, Head(layer, head) in roles[writers]))
    return edges


def expected_published(roles: Roles, link: Link, edges: Sequence[tuple], n_heads: int) -> float:
    """How many of :func:`edges_above` would come from published writers if those out of each layer fell evenly on its
    heads. Within layers, for scores rise with the layer."""
    layers = [head.layer for head in roles[link[0]]]
    return sum(layers.count(writer.layer) for writer, *_ in edges) / n_heads


def share_of_head(scores: CompositionScores, writer: Head, reader: Head, kind: str) -> tuple[Component, float]:
    """The component that carries most of a head-level score, and the share of its square that it carries.

    C_head^2 = sum_i s_i^2 C_i^2 / sum_i s_i^2, so the terms add and the share is exact.
    """
    terms = (scores.singular_values[writer.layer, writer.head] * scores.pair(writer, reader, kind)).square()
    best = int(terms.nan_to_num().argmax())
    return Component(writer.layer, writer.head, best), (terms[best] / terms.nansum()).item()


def share_table(scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str) -> pd.DataFrame:
    """:func:`share_of_head` for each writer and reader. Columns: writer, reader, head_level, component, share."""
    import pandas as pd

    whole = scores.pairs(kind, WHOLE_HEAD)
    rows = []
    for w, r in product(writers, readers):
        component, share = share_of_head(scores, w, r, kind)
        rows.append((str(w), str(r), whole[w.layer, w.head, r.layer, r.head].item(), str(component), share))
    return pd.DataFrame(rows, columns=["writer", "reader", "head_level", "component", "share"])


def best_components(
    scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str
) -> pd.DataFrame:
    """The best component of each writer into each reader: reader, component, score, z, rank, of (components), singular
    value, gap; as a control, others_median_rank and others_best_rank, of the best components of the other heads of the
    writer's layer (NaN where there are none).

    Raises :class:`LabelError` for a writer that is not in an earlier layer than every reader.
    """
    import pandas as pd

    rows = []
    for reader in readers:
        table = scores.table(reader, kind)
        first = table.drop_duplicates(subset=["writer_layer", "writer_head"])
        for writer in writers:
            if writer.layer >= reader.layer:
                raise LabelError(f"{writer} is not in an earlier layer than {reader}, so {reader} cannot read it.")
            layer = first[first["writer_layer"] == writer.layer]
            best = layer[layer["writer_head"] == writer.head].iloc[0]
            others = layer[~layer["writer_head"].isin([w.head for w in writers if w.layer == writer.layer])]["rank"]
            rows.append({
                "reader": str(reader), "component": best["writer"], "score": best["score"], "z": best["z"],
                "rank": best["rank"], "of": len(table), "singular_value": best["singular_value"], "gap": best["gap"],
                "others_median_rank": others.median(), "others_best_rank": others.min(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def led_by_one(
    scores: CompositionScores, heads: Sequence[Head], readers: Sequence[Head], kind: str
) -> tuple[dict[Head, Component | None], list[Head], list[Head]]:
    """``(best, others, control)``: of every head the one component that all readers read most, or None; the other heads
    of the same layers; and those of them that have such a component too."""
    layers = sorted({head.layer for head in heads})
    rest = [head for head in heads_in(layers, scores.n_heads) if head not in heads]
    best = {head: constant_best(scores, head, readers, kind) for head in heads}
    return best, rest, [head for head in rest if constant_best(scores, head, readers, kind)]


def constant_best(scores: CompositionScores, writer: Head, readers: Sequence[Head], kind: str) -> Component | None:
    """The component of a writer that every one of the readers reads most, if it is the same for all; else None, also
    where a reader cannot read the writer at all."""
    found = torch.stack([scores.pair(writer, reader, kind) for reader in readers])
    if found.isnan().all(1).any():
        return None
    best = set(found.nan_to_num(nan=-1.0).argmax(1).tolist())
    return Component(writer.layer, writer.head, best.pop()) if len(best) == 1 else None


def best_z_test(scores: CompositionScores, writers: Sequence[Head], readers: Sequence[Head], kind: str) -> ExactTest:
    """Exact test of the z of the best component, meaned over readers: do these writers stand out of their layers?

    Raises :class:`OptionError` for a writer that a reader cannot read.
    """
    z = torch.stack([scores.best_z(kind)[:, :, reader.layer, reader.head] for reader in readers])
    return exact_head_test(z.mean(0), writers)
