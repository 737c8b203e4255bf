"""The last token of a prompt under many ablations at once, and its residual stream patched into another prompt.

What is done at ``end`` changes nothing before it. So keys and values of both prompts are computed once, and each
variant costs one token through the layers that are left (:mod:`talking_heads_utils.forward.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.engine import MLP_OUT, RESID_PRE, Change, Forward, Rows, Z
from talking_heads_utils.forward.head_sets import MEAN, ZERO, Ablations, check_how


@dataclass(frozen=True)
class EndRun:
    """The last token of n prompts through every layer, for each of ``n_sets`` ablations.

    resid: ``resid_pre`` of each layer and, last, the final residual stream.
    mlp: what each layer's MLP writes. z: what each head gathers, before ``W_O``.
    twin: by layer and set, the first set that takes out the same heads and MLPs in all layers below (itself, if there
        is none): up to that layer the two runs are the same, so one of them is computed.
    """

    resid: Float[Tensor, "n n_sets n_layers_1 d_model"]
    mlp: Float[Tensor, "n n_sets n_layers d_model"]
    z: Float[Tensor, "n n_sets n_layers n_heads d_head"]
    twin: Int[Tensor, "n_layers_1 n_sets"]


@dataclass(frozen=True)
class Replacements:
    """What stands in the place of a head's z and of an MLP's output at ``end``, per prompt."""

    z: Float[Tensor, "n n_layers n_heads d_head"]
    mlp: Float[Tensor, "n n_layers d_model"]


class _Step(NamedTuple):
    """The variants of one layer: which of those below each goes on from, and what is out in it."""

    before: Int[Tensor, "k"]
    heads: Bool[Tensor, "k n_heads"]
    mlp: Bool[Tensor, "k"]


def replacements(clean: EndRun, how: str, *, seed: int = 0) -> Replacements:
    """Zeros; the mean over prompts; or what another prompt, drawn at random, has there. ``clean``: nothing ablated.
    Raises :class:`OptionError` to resample from a single prompt."""
    z, mlp = clean.z[:, 0], clean.mlp[:, 0]
    if check_how(how) == ZERO:
        return Replacements(torch.zeros_like(z), torch.zeros_like(mlp))
    if how == MEAN:
        return Replacements(z.mean(0).expand_as(z), mlp.mean(0).expand_as(mlp))
    if len(z) < 2:
        raise OptionError("To resample from another prompt there must be two at least.")
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    other = order.roll(1)[order.argsort()].to(z.device)
    return Replacements(z[other], mlp[other])


@torch.no_grad()
def run_end(ends: Forward, ablations: Ablations | None = None, instead: Replacements | None = None) -> EndRun:
    """Every ablation at ``end`` alone. ``ends`` starts at layer 0. Without ablations, the plain run as the one set."""
    if ablations is not None and instead is None:
        raise OptionError("Ablations need what stands in their place: see replacements.")
    seen: dict[str, list[Tensor]] = {RESID_PRE: [], Z: [], MLP_OUT: []}
    out = _out(_apart(ablations), instead, slice(None)) if ablations is not None and instead is not None else None

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        value = value if out is None else out(site, layer, value)
        if site in seen:
            seen[site].append(value[:, :, 0])
        return value

    final = ends.run(ends.resid[:, None, None], ends.at_end(), change=change)[:, :, 0]
    resid, z, mlp = (torch.stack(values, 2) for values in ([*seen[RESID_PRE], final], seen[Z], seen[MLP_OUT]))
    return EndRun(resid, mlp, z, _twins(ablations, ends.n_layers))


def _twins(ablations: Ablations | None, n_layers: int) -> Int[Tensor, "n_layers_1 n_sets"]:
    if ablations is None:
        return torch.zeros(n_layers + 1, 1, dtype=torch.long)
    out = torch.cat([ablations.heads.cpu(), ablations.mlps.cpu()[..., None]], 2)
    alike = [(out[:, None, :layer] == out[:, :layer]).all(3).all(2) for layer in range(n_layers + 1)]
    return torch.stack([same.int().argmax(1) for same in alike])


def _apart(ablations: Ablations) -> list[_Step]:
    """Every set a variant of its own."""
    n_sets, n_layers, _ = ablations.heads.shape
    own = torch.arange(n_sets)
    return [
        _Step(own if layer else own * 0, ablations.heads[:, layer], ablations.mlps[:, layer])
        for layer in range(n_layers)
    ]


def _together(ablations: Ablations) -> tuple[list[_Step], Int[Tensor, "n_sets"]]:
    """Sets that agree so far as one variant, and which variant each set is in the end."""
    steps, which = [], torch.zeros(len(ablations), dtype=torch.long)
    for layer in range(ablations.heads.shape[1]):
        out = torch.cat([which[:, None], ablations.heads[:, layer].cpu(), ablations.mlps[:, layer, None].cpu()], 1)
        different, which = out.long().unique(dim=0, return_inverse=True)
        steps.append(_Step(different[:, 0], different[:, 1:-1] > 0, different[:, -1] > 0))
    return steps, which


def _out(steps: list[_Step], instead: Replacements, rows: Rows) -> Change:
    """What takes heads and MLPs out."""

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        step = steps[layer]
        if site == RESID_PRE:
            return value[:, step.before]
        if site == Z and step.heads.any():
            out = step.heads.to(value.device)[:, None, :, None]
            return torch.where(out, instead.z[rows, layer][:, None, None], value)
        if site == MLP_OUT and step.mlp.any():
            return torch.where(step.mlp.to(value.device)[:, None, None], instead.mlp[rows, layer][:, None, None], value)
        return value

    return change


@torch.no_grad()
def ablated_logits(
    ends: Forward, ablations: Ablations, instead: Replacements, tokens: Int[Tensor, "n_tokens"], *, batch: int = 64
) -> Float[Tensor, "n n_sets n_tokens"]:
    """Logits of some tokens under every ablation at ``end``, keeping nothing else: for very many sets.

    Sets are run apart from the layer on where they first differ: below it they share one run.
    """
    (steps, which), out = _together(ablations), []
    for rows in batches.blocks(len(ends.end), batch):
        x = ends.resid[rows, None, None]
        final = ends.run(x, ends.at_end(), change=_out(steps, instead, rows), rows=rows)[:, :, 0]
        out.append(ends.logits(final, tokens.expand(len(final), -1))[:, which])
    return torch.cat(out)


@dataclass(frozen=True)
class PatchGrid:
    """Logits of ``tokens`` after a patch: from each of A's ablated runs, at each layer, into B's plain run.

    own: of A itself. plain: of B, nothing patched. patched: of B with A's activation at one layer.
    """

    own: Float[Tensor, "n n_sets n_tokens"]
    plain: Float[Tensor, "n n_tokens"]
    patched: Float[Tensor, "n n_layers n_sets n_tokens"]


@torch.no_grad()
def patch_grid(run: EndRun, a: Forward, b: Forward, tokens: Int[Tensor, "n_tokens"], *, batch: int = 16) -> PatchGrid:
    """Patch A's ``resid_pre`` at ``end`` into B's, every layer and every set at once.

    run: of :func:`run_end` on ``a``. Above the patch B is run as it is. Sets that are still alike at a layer share its
    cell. batch: prompts at a time; memory grows with layers x sets x batch. Raises :class:`OptionError` for sets of
    different size.
    """
    if len(a.end) != len(b.end):
        raise OptionError(f"A has {len(a.end)} prompts and B {len(b.end)}; each of A's is patched into one of B's.")
    twin = run.twin[:-1]
    cells = twin == torch.arange(twin.shape[1])  # those that are computed, by layer and set
    place = (cells.flatten().cumsum(0) - 1).view_as(cells).gather(1, twin)
    own, plain, patched = [], [], []
    for rows in batches.blocks(len(b.end), batch):
        final = b.run(b.resid[rows, None, None], b.at_end(), change=_joining(run, rows, cells), rows=rows)[:, :, 0]
        some = tokens.expand(len(final), -1)
        own.append(a.logits(run.resid[rows, :, -1], some))
        plain.append(b.logits(final[:, :1], some)[:, 0])
        patched.append(b.logits(final[:, 1:], some)[:, place])
    return PatchGrid(*map(torch.cat, (own, plain, patched)))


def _joining(run: EndRun, rows: slice, cells: Bool[Tensor, "n_layers n_sets"]) -> Change:
    """The plain run, then by layer those sets in ``cells``."""

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        if site != RESID_PRE:
            return value
        return torch.cat([value, run.resid[rows, cells[layer], layer][:, :, None]], 1)

    return change
