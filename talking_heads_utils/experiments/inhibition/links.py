"""Links of a circuit, looked up in the weights: do the writers that others found stand out for those who read them?

One statistic for all links: the percentile of a writer among all earlier heads of its reader, by the component of each
that the reader reads most. A percentile means the same for every reader and input, whatever the size and the spread of
its scores, and no single large score decides a mean of them; a z would let readers with a narrow null weigh most.
Scores rise with the layer, so every null keeps the layers and deals the heads' names anew within them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import DrawnTest, drawn_test, names_within_layers
from talking_heads_utils.experiments.rows import Row, column, maybe
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.roles import Link
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.stats import bootstrap_mean, holm, percentile_among

N_DRAWS = 99_999
JOINT = "all links"  # in place of a link: the test of all of them together
OTHER_READERS, OTHER_INPUT, OTHER_WRITERS = "other readers", "other input", "other writers"  # controls
STATISTIC = "percentile"
Pairs = Sequence[tuple[Head, Head]]
Percentiles = Float[Tensor, "n_layers n_heads n_layers n_heads"]
Names = Int[Tensor, "n_draws layers heads"]


@dataclass(frozen=True)
class LinkRow(Row):
    """One link of the circuit, one control of it, or all links together."""

    link: str = column("", "the link; 'all links' in the row of the joint test")
    writers_role: str = column("", "role of the writers")
    readers_role: str = column("", "role of the readers")
    kind: str = column("", "the input that is read: Q, K or V")
    control: str = column("", "empty for the link itself; 'other readers' for the other heads of the readers' layers, "
                          "'other input' for the readers' other inputs, 'other writers' for the other heads of the "
                          "writers' layers")  # fmt: skip
    statistic: str = column("", "percentile: of the writer among all earlier heads of the reader, by the component "
                            "of each that the reader reads most")  # fmt: skip
    value: float = column("percentile", "mean over pairs of writer and reader, of all links over links")
    low: float | None = maybe("percentile", "lower end of its 95% interval, bootstrap over writers")
    high: float | None = maybe("percentile", "upper end")
    null_mean: float | None = maybe("percentile", "mean over draws of as many heads from the same layers")
    null_high: float | None = maybe("percentile", "their 95th percentile")
    p: float | None = maybe("", "share of draws, and what is tested, that reach it. Drawn are the writers; where "
                            "control is 'other readers', the readers, against the link's own value; of all links "
                            "together the heads' names within each layer, once for all roles")  # fmt: skip
    p_holm: float | None = maybe("", "p after Holm's correction over the links")
    n_writers: int = column("heads", "writers")
    n_readers: int = column("heads", "readers")
    n_pairs: int = column("pairs", "of a writer and a later reader")
    n_draws: int | None = maybe("", "draws that p is made of")


def percentiles(values: Percentiles) -> Percentiles:
    """Percentile of every earlier head among all earlier heads of each reader (100 is the strongest), else NaN."""
    out = torch.full(values.shape, torch.nan, dtype=torch.float64)
    for layer in range(1, len(values)):
        earlier = values[:layer, :, layer].flatten(0, 1)
        out[:layer, :, layer] = percentile_among(earlier).unflatten(0, (layer, -1))
    return out


def over_pairs(
    table: Percentiles, pairs: Pairs, writers: Names | None = None, readers: Names | None = None
) -> Float[Tensor, "n_draws"]:
    """Mean over pairs, in each draw of who bears the writers' names, the readers', or both; a single one without draws.
    Pairs without a value count for nothing."""
    values = []
    for w, r in pairs:
        writer = torch.tensor([w.head]) if writers is None else writers[:, w.layer, w.head]
        reader = torch.tensor([r.head]) if readers is None else readers[:, r.layer, r.head]
        values.append(table[w.layer, writer, r.layer, reader])
    return torch.stack(values).nanmean(0)


def link_tests(
    tables: Mapping[str, Percentiles], links: Sequence[Link], names: Names
) -> tuple[list[DrawnTest], DrawnTest]:
    """Each link against other writers of the same layers, and all together: there the heads' names are dealt once for
    all roles, so that a head that reads in one link and writes in another is the same head in every draw.

    tables: kind -> :func:`percentiles`. Raises :class:`OptionError` for fewer than 99 draws.
    """
    tests = [_by_writers(tables[link.kind], link.pairs, names) for link in links]
    drawn = torch.stack([over_pairs(tables[link.kind], link.pairs, names, names) for link in links])
    return tests, drawn_test(sum(test.observed for test in tests) / len(tests), drawn.mean(0))


def _by_writers(table: Percentiles, pairs: Pairs, names: Names) -> DrawnTest:
    return drawn_test(over_pairs(table, pairs).item(), over_pairs(table, pairs, writers=names))


def link_rows(
    scores: CompositionScores, links: Sequence[Link], *, n_draws: int = N_DRAWS, seed: int = 0
) -> list[LinkRow]:
    """A row per link, corrected by Holm for their number, with its controls, and one for all links together.

    Raises :class:`OptionError` for fewer than 99 draws.
    """
    tables = {kind: percentiles(scores.best_component(kind)) for kind in scores.kinds}
    names = names_within_layers(n_draws, scores.n_layers, scores.n_heads, seed)
    tests, joint = link_tests(tables, links, names)
    corrected = holm(torch.tensor([test.p for test in tests], dtype=torch.float64)).tolist()
    rows = []
    for link, test, p_holm in zip(links, tests, corrected, strict=True):
        rows.append(_row(link, link.name, tables, test=test, p_holm=p_holm))
        rows += _control_rows(link, tables, names)
    whole = Link("", "", "", tuple(pair for link in links for pair in link.pairs))
    return [*rows, filled_row(whole, JOINT, joint.observed, joint)]


def _control_rows(link: Link, tables: Mapping[str, Percentiles], names: Names) -> list[LinkRow]:
    table, n_heads = tables[link.kind], tables[link.kind].shape[1]
    readers = replace(link, pairs=tuple(
        (w, other) for w, r in link.pairs for other in heads_in([r.layer], n_heads) if other not in link.readers
    ))  # fmt: skip
    writers = replace(link, pairs=tuple(
        (other, r) for w, r in link.pairs for other in heads_in([w.layer], n_heads) if other not in link.writers
    ))  # fmt: skip
    by_readers = drawn_test(over_pairs(table, link.pairs).item(), over_pairs(table, link.pairs, readers=names))
    found = [_row(readers, link.name, tables, OTHER_READERS, by_readers)] if readers.pairs else []
    for kind in (kind for kind in tables if kind != link.kind):
        test = _by_writers(tables[kind], link.pairs, names)
        found.append(_row(replace(link, kind=kind), link.name, tables, OTHER_INPUT, test))
    return found + ([_row(writers, link.name, tables, OTHER_WRITERS)] if writers.pairs else [])


def _row(
    link: Link, name: str, tables: Mapping[str, Percentiles], control: str = "", test: DrawnTest | None = None,
    p_holm: float | None = None,
) -> LinkRow:  # fmt: skip
    """With the interval over writers."""
    table = tables[link.kind]
    means = [over_pairs(table, [pair for pair in link.pairs if pair[0] == writer]) for writer in link.writers]
    _, low, high, _ = bootstrap_mean(torch.cat(means)) if len(means) > 1 else (None,) * 4
    value = over_pairs(table, link.pairs).item()
    return filled_row(link, name, value, test, control=control, p_holm=p_holm, low=low, high=high)


def filled_row(
    link: Link, name: str, value: float, test: DrawnTest | None = None, *, control: str = "", **more: Any
) -> LinkRow:
    """more: further columns by name."""
    drawn: dict[str, Any] = {}
    if test is not None:
        drawn = dict(null_mean=test.null_mean, null_high=test.null_high, p=test.p, n_draws=test.n)
    return LinkRow(
        name, link.writers_role, link.readers_role, link.kind, control, STATISTIC, value, n_writers=len(link.writers),
        n_readers=len(link.readers), n_pairs=len(set(link.pairs)), **drawn, **more,
    )  # fmt: skip


def run(c: Context) -> list[LinkRow]:
    """Raises :class:`NotApplicable` for a model in which no head is known to read another."""
    return link_rows(c.scores, known_links(c), seed=c.seed)


def known_links(c: Context) -> tuple[Link, ...]:
    """The links of a model's roles. Raises :class:`NotApplicable` where there are none."""
    if not (links := c.roles.links()):
        raise NotApplicable(f"In {c.model} no head is known to read another.")
    return links
