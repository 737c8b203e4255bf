"""What the coordinates tell of the answer: its index or the item, and in how many dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test, random_folds
from talking_heads_utils.experiments.list_prompts import EACH_INDEX, QUICK_EACH_INDEX, Lists, Part, check_each_index
from talking_heads_utils.experiments.positional.coordinates import Feature, coordinates, decode, hypotheses
from talking_heads_utils.experiments.positional.ends import Ends, ends
from talking_heads_utils.experiments.positional.subspace import Chosen, K, Subspace, chosen, nearest_lengths
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.stats import Interval, bootstrap_mean, share

N_LISTS = 400
N_NEW_WORDING = 100  # as many as the held-out lists have of each of their four wordings
N_SHUFFLED = 5
LENGTHS = (4, 6)


class Split(StrEnum):
    """What was left out of the fit: lists at random, all lists of a wording, or all lists of the new objects."""

    LISTS = "lists"
    WORDINGS = "wordings"
    OBJECTS = "objects"


@dataclass(frozen=True)
class DecodingRow(Row):
    """Of matched triples: mean over triples, and the triples' 2.5% and 97.5% points."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "chosen, anywhere, matched (three dimensions alone)")
    k: int = column("dimensions", "components whose coordinates are read")
    feature: str = column("", "of the answer: list_index, identity")
    split: str = column("", "left out of the fit: lists, wordings, objects")
    right: float = column(
        "share", "lists left out whose answer is decoded; one that is as near as m others counts 1 / m"
    )
    low: float = column("share", "95% interval over lists, of matched triples over triples, lower end")
    high: float = column("share", "upper end")
    shuffled: float | None = column("share", "the same where answers are shuffled; empty for matched triples")
    chance: float = column("share", "one in n_items")
    p: float | None = column("", "share of matched triples, this one included, that decode as much; of chosen at k = 3")
    n_draws: int | None = column("triples", "matched ones behind p, or behind the row")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class Pool:
    """Lists of which each fold is left out once, and decoded from a fit to the others."""

    stream: Float[Tensor, "n d_model"]
    items: Int[Tensor, "n n_items"]
    index: Int[Tensor, "n"]
    folds: Int[Tensor, "n"]


def run(c: Context) -> list[DecodingRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` and
    :func:`~talking_heads_utils.experiments.positional.subspace.lengths` do, and :class:`TaskError` for too few lists of
    an index."""
    at = c.kept(chosen)
    return [
        row
        for n_items in nearest_lengths(c, *LENGTHS)
        for split, pool in pools(c, n_items).items()
        for feature in Feature
        for row in decoding_rows(c.model, at, pool, feature, split, c.seed)
    ]


def pools(c: Context, n_items: int) -> dict[Split, Pool]:
    """What is decoded of lists of one length, by what is left out."""
    held_out, wording, objects = (
        ends(c, Lists(part, n_items, c.n(n)))
        for part, n in ((Part.HELD_OUT, N_LISTS), (Part.NEW_WORDING, N_NEW_WORDING), (Part.NEW_OBJECTS, N_LISTS))
    )
    for part in (held_out, objects):
        check_each_index(part.prompts, QUICK_EACH_INDEX if c.quick else EACH_INDEX)
    names = [*held_out.prompts.info["wording"], *wording.prompts.info["wording"]]
    of_wording = torch.tensor([sorted(set(names)).index(name) for name in names])
    of_part = torch.tensor([0] * len(held_out) + [1] * len(objects))
    return {
        Split.LISTS: _pool([held_out], random_folds(len(held_out), c.seed)),
        Split.WORDINGS: _pool([held_out, wording], of_wording),
        Split.OBJECTS: _pool([held_out, objects], of_part),
    }


def _pool(parts: Sequence[Ends], folds: Int[Tensor, "n"]) -> Pool:
    stream, items, index = (
        torch.cat([found.cpu() for found in each]) for each in zip(*((p.stream, p.candidates, p.index) for p in parts))
    )
    return Pool(stream, items, index, folds)


def decoding_rows(model: str, at: Chosen, pool: Pool, feature: Feature, split: Split, seed: int) -> list[DecodingRow]:
    """One row for each number of dimensions of each subspace, one for all matched triples."""
    named = {Subspace.CHOSEN: at.directions, Subspace.ANYWHERE: at.anywhere_directions}
    own = [(name, directions[:k]) for name, directions in named.items() for k in range(1, len(directions) + 1)]
    values = [coordinates(pool.stream, directions.cpu()) for directions in (*(found for _, found in own), *at.matched)]
    regressors, n_items = hypotheses(pool.items, feature), pool.items.shape[1]
    right = decode(values, regressors, pool.index, pool.folds)
    null = torch.stack([
        decode(values[: len(own)], regressors, index, pool.folds).mean(1) for index in _shuffled(pool.index, seed)
    ]).mean(0)  # fmt: skip
    drawn = right[len(own) :].mean(1)
    rows = []
    for (subspace, directions), hits, shuffled in zip(own, right, null.tolist()):
        found, k = _interval(hits), len(directions)
        p = drawn_test(found.mean, drawn).p if (subspace, k) == (Subspace.CHOSEN, K) else None
        rows.append(DecodingRow(
            model, n_items, subspace, k, feature, split, found.mean, found.low, found.high, shuffled, 1 / n_items, p,
            None if p is None else len(drawn), len(hits),
        ))  # fmt: skip
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    rows.append(DecodingRow(
        model, n_items, Subspace.MATCHED, K, feature, split, drawn.mean().item(), low, high, None, 1 / n_items, None,
        len(drawn), len(pool.index),
    ))  # fmt: skip
    return rows


def _interval(hits: Float[Tensor, "n"]) -> Interval:
    """Of a share; where several hypotheses tie, and hits are parts, of their mean."""
    return share(hits == 1) if ((hits == 0) | (hits == 1)).all() else bootstrap_mean(hits, n_boot=2000)


def _shuffled(index: Int[Tensor, "n"], seed: int) -> Iterator[Int[Tensor, "n"]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(N_SHUFFLED):
        yield index[torch.randperm(len(index), generator=generator)]
