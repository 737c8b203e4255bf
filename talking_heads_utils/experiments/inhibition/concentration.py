"""How few components carry a head's effect on a mover, and how few directions what several heads tell it.

The order is chosen on one half of the prompts, the effect measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.effects import check_mover, inhibition_change
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.closed_form import mover_of
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Head, as_head
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean

TOP, RANDOM, WHOLE = "top k", "k random", "whole head"
TOGETHER = "all of it"  # in place of a whole head: all that some heads write into a query
SHARE = 0.9


@dataclass(frozen=True)
class ConcentrationRow(Row):
    """How many components of one inhibition head do most of what it does to the strongest mover, held-out half."""

    model: str = column("", "name of the model")
    head: str = column("", "inhibition head")
    whole: float = column("share of attention", "change of I(m) with the whole head out of the mover's query")
    n_for_90: int | None = column("components", "how many reach 90% of that; empty where it does not lower I(m)")
    stable_rank: float = column("", "sum of the squared singular values of its OV matrix over the largest square")
    d_head: int = column("components", "how many it has")
    n: int = column("prompts", "of the held-out half")


@dataclass(frozen=True)
class CurveRow(Row):
    """Change of I(m) when k components, or directions, leave the mover's query together, on held-out prompts."""

    model: str = column("", "name of the model")
    head: str = column("", "the head, or all inhibition heads together")
    k: int = column("components", "how many are out")
    what: str = column("", "top k of the selection half, k random ones, or all")
    mean: float = column("share of attention", "change of I(m)")
    low: float = column("share of attention", "lower end of its 95% interval: over prompts, of random ones over draws")
    high: float = column("share of attention", "upper end")
    n: int = column("", "prompts, or draws")


def run(c: Context) -> list[ConcentrationRow]:
    """A row per inhibition head. Raises :class:`NotApplicable` for a model without any."""
    at = c.kept(mover_runs)
    if not at.heads:
        raise NotApplicable(f"No head of {c.model} was found to inhibit the mover: nothing can be concentrated in one.")
    ranks, rows = stable_rank(at.held_out.singular_values), []
    for head in at.heads:
        k, whole = needed_for(at.selection, at.held_out, at.mover, head)
        rank = ranks[head.layer, head.head].item()
        rows.append(ConcentrationRow(c.model, str(head), whole, k, rank, c.weights.d_head, len(at.held_out.prompts)))
    return rows


def effect_of_sets(
    recording: Recording, mover: Head | str, writer: Head | str, sets: Float[Tensor, "k d_head"]
) -> Float[Tensor, "n k"]:
    """Change of I(m) when the components marked in each row of ``sets`` leave the mover's query together."""
    mover, writer = check_mover(recording, mover), as_head(writer)
    directions = recording.directions[writer.layer, writer.head].nan_to_num()
    write = recording.write(writer.layer)[:, writer.head]
    shift = -((write @ directions.T)[:, None] * sets.to(write)) @ directions
    return inhibition_change(recording, mover, shift)


def order_of(recording: Recording, mover: Head | str, writer: Head | str) -> Int[Tensor, "d_head"]:
    """A head's components by how much taking out each one alone lowers I(m) on these prompts."""
    d_head = recording.weights.d_head
    return effect_of_sets(recording, mover, writer, torch.eye(d_head)).mean(0).argsort()


def concentration(
    selection: Recording, held_out: Recording, mover: Head | str, writer: Head | str, *, k_max: int = 8,
    n_random: int = 20, seed: int = SEED, model: str = "",
) -> list[CurveRow]:  # fmt: skip
    """Change of I(m) on the held-out half: the top k of the selection half, k random ones of the same head, the whole
    head."""
    d_head = selection.weights.d_head
    order = order_of(selection, mover, writer).cpu()
    k_max = min(k_max, d_head)
    tops = torch.stack([_marked(order[:k], d_head) for k in range(1, k_max + 1)])
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(d_head, generator=generator) for _ in range(n_random)]
    random = torch.stack([_marked(draw[:k], d_head) for k in range(1, k_max + 1) for draw in draws])
    found = effect_of_sets(held_out, mover, writer, torch.cat([tops, torch.ones(1, d_head), random])).cpu()
    return _by_k(found, k_max, WHOLE, model, str(writer))


def _by_k(found: Float[Tensor, "n sets"], k_max: int, whole: str, model: str, head: str) -> list[CurveRow]:
    """The rows of effects that stand in this order: the top 1..k_max, all, then the random draws of each k."""
    random = found[:, k_max + 1 :].mean(0).view(k_max, -1)
    rows = []
    for k in range(1, k_max + 1):
        sets = ((TOP, found[:, k - 1]), (RANDOM, random[k - 1]), (whole, found[:, k_max]))
        rows += [CurveRow(model, head, k, what, *bootstrap_mean(values)) for what, values in sets]
    return rows


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
    n_random: int = 20, seed: int = SEED, model: str = "",
) -> list[CurveRow]:  # fmt: skip
    """Change of I(m) on the held-out half when k directions of what some heads together write into a mover's query are
    taken out of it: the first k principal ones of the selection half (not centred), k random ones, and all."""
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
    return _by_k(found, k_max, TOGETHER, model, ", ".join(map(str, writers)))


def whole_effect(curve: Sequence[CurveRow]) -> float:
    """Change of I(m) when all that the heads of :func:`channel_curve` write is taken out."""
    return next(row.mean for row in curve if row.what == TOGETHER)


def dimension(curve: Sequence[CurveRow], share: float = SHARE) -> int | None:
    """The smallest k of :func:`channel_curve` that reaches ``share`` of all; None where none does, or all lowers
    nothing."""
    whole = whole_effect(curve)
    reach = [row.k for row in curve if row.what == TOP and row.mean <= share * whole]
    return min(reach) if reach and whole < 0 else None


def shares(curve: Sequence[CurveRow], what: str) -> dict[int, float]:
    """k -> share of the effect of all that so many directions of a kind carry, out of :func:`channel_curve`."""
    return {row.k: row.mean / whole_effect(curve) for row in curve if row.what == what}


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
    return inhibition_change(recording, mover, -torch.einsum("nq,kqr,rm->nkm", written, projections, back))


def stable_rank(singular_values: Float[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch"]:
    """Sum of squared singular values over the largest square: how many directions a head uses, by its weights."""
    square = singular_values.square()
    return square.sum(-1) / square.amax(-1)


def _marked(index: Int[Tensor, "k"], d_head: int) -> Float[Tensor, "d_head"]:
    return torch.zeros(d_head).index_fill(0, index, 1.0)
