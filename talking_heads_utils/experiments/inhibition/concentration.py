"""How few components carry a head's effect on a mover, and how few directions what several heads tell it.

The order is chosen on one half of the prompts, the effect measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.effects import check_mover, inhibition_score
from talking_heads_utils.forward.closed_form import mover_of, pattern_after_shift
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Head, as_head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

TOP, RANDOM, WHOLE = "top k", "k random", "whole head"
TOGETHER = "all of it"  # in place of a whole head: all that some heads write into a query
SHARE = 0.9


def effect_of_sets(
    recording: Recording, mover: Head | str, writer: Head | str, sets: Float[Tensor, "k d_head"]
) -> Float[Tensor, "n k"]:
    """Change of I(m) when the components marked in each row of ``sets`` leave the mover's query together."""
    mover, writer = check_mover(recording, mover), as_head(writer)
    directions = recording.directions[writer.layer, writer.head].nan_to_num()
    write = recording.write(writer.layer)[:, writer.head]
    shift = -((write @ directions.T)[:, None] * sets.to(write)) @ directions
    return _change(recording, mover, shift)


def order_of(recording: Recording, mover: Head | str, writer: Head | str) -> Int[Tensor, "d_head"]:
    """A head's components by how much taking out each one alone lowers I(m) on these prompts."""
    d_head = recording.weights.d_head
    return effect_of_sets(recording, mover, writer, torch.eye(d_head)).mean(0).argsort()


def concentration(
    selection: Recording, held_out: Recording, mover: Head | str, writer: Head | str, *, k_max: int = 8,
    n_random: int = 20, seed: int = SEED,
) -> pd.DataFrame:  # fmt: skip
    """Change of I(m) on the held-out half: the top k of the selection half, k random ones of the same head, the whole
    head. Columns: k, what, mean, low, high (95% bootstrap over prompts; for random ones over draws), n."""
    d_head = selection.weights.d_head
    order = order_of(selection, mover, writer).cpu()
    k_max = min(k_max, d_head)
    tops = torch.stack([_marked(order[:k], d_head) for k in range(1, k_max + 1)])
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(d_head, generator=generator) for _ in range(n_random)]
    random = torch.stack([_marked(draw[:k], d_head) for k in range(1, k_max + 1) for draw in draws])
    found = effect_of_sets(held_out, mover, writer, torch.cat([tops, torch.ones(1, d_head), random])).cpu()
    return _by_k(found, k_max, WHOLE)


def _by_k(found: Float[Tensor, "n sets"], k_max: int, whole: str) -> pd.DataFrame:
    """The table of effects that stand in this order: the top 1..k_max, all, then the random draws of each k."""
    import pandas as pd

    random = found[:, k_max + 1 :].mean(0).view(k_max, -1)
    rows = []
    for k in range(1, k_max + 1):
        sets = ((TOP, found[:, k - 1]), (RANDOM, random[k - 1]), (whole, found[:, k_max]))
        rows += [dict(k=k, what=what, **bootstrap_mean(values)._asdict()) for what, values in sets]
    return pd.DataFrame(rows)


def needed_for(
    selection: Recording, held_out: Recording, mover: Head | str, writer: Head | str, share: float = SHARE
) -> tuple[int | None, float]:
    """``(k, whole)``: how many of a head's components, in the selection half's order, reach ``share`` of what taking
    out the whole head does to I(m) on the held-out half; None where the whole head does not lower it."""
    d_head = selection.weights.d_head
    order = order_of(selection, mover, writer).cpu()
    sets = torch.stack([_marked(order[:k], d_head) for k in range(1, d_head + 1)])
    means = effect_of_sets(held_out, mover, writer, sets).mean(0)
    whole = means[-1].item()
    if whole >= 0:
        return None, whole
    return int((means <= share * whole).nonzero()[0]) + 1, whole


def channel_curve(
    selection: Recording, held_out: Recording, mover: Head | str, writers: Sequence[Head], *, k_max: int = 8,
    n_random: int = 20, seed: int = SEED,
) -> pd.DataFrame:  # fmt: skip
    """Change of I(m) on the held-out half when k directions of what some heads together write into a mover's query are
    taken out of it: the first k principal ones of the selection half (not centred), k random ones, and all.

    Columns as in :func:`concentration`.
    """
    mover, n_queries = check_mover(selection, mover), selection.weights.d_head
    k_max = min(k_max, n_queries)
    basis = torch.linalg.svd(_into_query(selection, mover, writers)[0], full_matrices=True)[2]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_random, n_queries, n_queries, generator=generator).to(basis)
    tops = [basis[:k].T @ basis[:k] for k in range(1, k_max + 1)]
    turned = torch.linalg.qr(noise)[0]
    random = [draw[:, :k] @ draw[:, :k].T for k in range(1, k_max + 1) for draw in turned]
    everything = torch.eye(n_queries).to(basis)
    found = _without(held_out, mover, writers, torch.stack([*tops, everything, *random])).cpu()
    return _by_k(found, k_max, TOGETHER)


def whole_effect(table: pd.DataFrame) -> float:
    """Change of I(m) when all that the heads of :func:`channel_curve` write is taken out."""
    return float(table["mean"][table["what"] == TOGETHER].iloc[0])


def dimension(table: pd.DataFrame, share: float = SHARE) -> int | None:
    """The smallest k of :func:`channel_curve` that reaches ``share`` of all; None where none does, or all lowers
    nothing."""
    whole = whole_effect(table)
    top = table[(table["what"] == TOP) & (table["mean"] <= share * whole)]
    return None if whole >= 0 or top.empty else int(top["k"].min())


def shares(table: pd.DataFrame, what: str) -> dict[int, float]:
    """k -> share of the effect of all that so many directions of a kind carry, out of :func:`channel_curve`."""
    by = table.pivot(index="k", columns="what", values="mean")
    return (by[what] / by[TOGETHER]).to_dict()


def _into_query(
    recording: Recording, mover: Head, writers: Sequence[Head]
) -> tuple[Float[Tensor, "n d_head"], Float[Tensor, "d_head d_model"]]:
    """What heads together write into a mover's query up to the norm's divisor, and the way back: for each change of
    the query the smallest change of its input that makes it."""
    at = mover_of(recording, mover)
    reads = at.norm.center(at.W_Q.T).T
    write = torch.stack([recording.write(head.layer)[:, head.head] for head in writers]).sum(0)
    return at.norm.center(write) @ reads, torch.linalg.pinv(reads)


def _without(
    recording: Recording, mover: Head, writers: Sequence[Head], projections: Float[Tensor, "k d_head d_head"]
) -> Float[Tensor, "n k"]:
    """Change of I(m) with each projection of what the writers put into the query taken out."""
    written, back = _into_query(recording, mover, writers)
    return _change(recording, mover, -torch.einsum("nq,kqr,rm->nkm", written, projections, back))


def _change(recording: Recording, mover: Head, shift: Float[Tensor, "n k d_model"]) -> Float[Tensor, "n k"]:
    """Change of I(m) when the input of the mover's query is moved."""
    after = pattern_after_shift(mover_of(recording, mover), shift)
    inhibition = (after * contrast(recording.prompts).to(after)[:, None]).sum(-1)
    return inhibition - inhibition_score(recording, mover)[:, None]


def stable_rank(singular_values: Float[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch"]:
    """Sum of squared singular values over the largest square: how many directions a head uses, by its weights."""
    square = singular_values.square()
    return square.sum(-1) / square.amax(-1)


def _marked(index: Int[Tensor, "k"], d_head: int) -> Float[Tensor, "d_head"]:
    return torch.zeros(d_head).index_fill(0, index, 1.0)
