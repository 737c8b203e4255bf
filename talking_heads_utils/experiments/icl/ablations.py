"""The last token of a prompt under many ablations at once, and its residual stream patched into another prompt.

What is done at ``end`` changes nothing before it. So keys and values of both prompts are computed once, and each
variant costs one token through the layers that are left (:mod:`talking_heads_utils.forward.engine`). Sets of heads and
MLPs that agree up to a layer share one run up to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.ablation import MEAN, RESAMPLE, ZERO
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.engine import MLP_OUT, RESID_PRE, Change, Forward, Rows, Z
from talking_heads_utils.labels import Head
from talking_heads_utils.variants import another

NOTHING = "nothing"


@dataclass(frozen=True)
class Ablations:
    """Several sets to take out, one after the other. The first is always empty: the run that nothing is taken from.

    heads: ``[n_sets, n_layers, n_heads]``, True for a head that is out. mlps: ``[n_sets, n_layers]``.
    """

    names: tuple[str, ...]
    heads: Bool[Tensor, "n_sets n_layers n_heads"]
    mlps: Bool[Tensor, "n_sets n_layers"]

    def __len__(self) -> int:
        return len(self.names)

    def first_layer(self, row: int) -> int:
        """The lowest layer that this set takes something out of; the number of layers for the empty set."""
        out = self.heads[row].any(1) | self.mlps[row]
        return int(out.int().argmax()) if out.any() else len(out)


def ablations(
    shape: tuple[int, int],
    heads: Mapping[str, Sequence[Head]] | None = None,
    mlps: Mapping[str, Sequence[int]] | None = None,
) -> Ablations:
    """Sets by name, for a model of ``shape`` = (layers, heads). The empty set is put first.

    Raises :class:`OptionError` for a head or layer that is not there, and for a set of all heads: nothing could then
    come from the examples.
    """
    heads, mlps = dict(heads or {}), dict(mlps or {})
    names = (NOTHING, *heads, *(name for name in mlps if name not in heads))
    if NOTHING in heads or NOTHING in mlps:
        raise OptionError(f"{NOTHING!r} is the run that nothing is taken from; give the set another name.")
    out = Ablations(names, torch.zeros(len(names), *shape, dtype=torch.bool), torch.zeros(len(names), shape[0]).bool())
    for row, name in enumerate(names):
        for head in heads.get(name, ()):
            if not (0 <= head.layer < shape[0] and 0 <= head.head < shape[1]):
                raise OptionError(f"No head {head}: there are {shape[0]} layers of {shape[1]} heads.")
            out.heads[row, head.layer, head.head] = True
        for layer in mlps.get(name, ()):
            if not 0 <= layer < shape[0]:
                raise OptionError(f"No MLP in layer {layer}: there are layers 0..{shape[0] - 1}.")
            out.mlps[row, layer] = True
        if out.heads[row].all():
            raise OptionError(f"{name!r} takes out every head: no example could be read. Leave some in.")
    return out


def random_heads(shape: tuple[int, int], like: Sequence[Head], n_sets: int, seed: int) -> dict[str, list[Head]]:
    """Random sets with as many heads in each layer as ``like`` has, none of them in ``like`` where that can be had."""
    generator = torch.Generator().manual_seed(seed)
    sets = {}
    for i in range(n_sets):
        chosen = []
        for layer in sorted({head.layer for head in like}):
            taken = {head.head for head in like if head.layer == layer}
            free = [head for head in range(shape[1]) if head not in taken] + sorted(taken)
            n_free = max(shape[1] - len(taken), len(taken))
            order = torch.randperm(n_free, generator=generator)[: len(taken)].tolist()
            chosen += [Head(layer, free[j]) for j in order]
        sets[f"random {i + 1}"] = chosen
    return sets


@dataclass(frozen=True)
class EndRun:
    """The last token of n prompts through every layer, for each of ``n_sets`` ablations.

    resid: ``resid_pre`` of each layer and, last, the final residual stream.
    mlp: what each layer's MLP writes. z: what each head gathers, before ``W_O``.
    alike: by layer, a number for each set, the same for those that take out the same in all layers below.
    """

    resid: Float[Tensor, "n n_sets n_layers_1 d_model"]
    mlp: Float[Tensor, "n n_sets n_layers d_model"]
    z: Float[Tensor, "n n_sets n_layers n_heads d_head"]
    alike: list[Int[Tensor, "n_sets"]]


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
    Raises :class:`OptionError` for another ``how``, or to resample from a single prompt."""
    z, mlp = clean.z[:, 0], clean.mlp[:, 0]
    if how == ZERO:
        return Replacements(torch.zeros_like(z), torch.zeros_like(mlp))
    if how == MEAN:
        return Replacements(z.mean(0).expand_as(z), mlp.mean(0).expand_as(mlp))
    if how != RESAMPLE:
        raise OptionError(f"A head is replaced by {ZERO}, {MEAN} or {RESAMPLE}, not {how!r}.")
    other = another(len(z), seed).to(z.device)
    return Replacements(z[other], mlp[other])


@torch.no_grad()
def run_end(ends: Forward, ablations: Ablations | None = None, instead: Replacements | None = None) -> EndRun:
    """Every ablation at ``end`` alone. ``ends`` starts at layer 0. Without ablations, the plain run as the one set."""
    steps, alike = _steps(ablations) if ablations else ([], [torch.zeros(1, dtype=torch.long)] * (ends.n_layers + 1))
    if steps and instead is None:
        raise OptionError("Ablations need what stands in their place: see replacements.")
    seen: dict[str, list[Tensor]] = {RESID_PRE: [], Z: [], MLP_OUT: []}
    out = _out(steps, instead, slice(None)) if instead else None

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        value = value if out is None else out(site, layer, value)
        if site in seen:
            seen[site].append(value[:, alike[layer + 1], 0])
        return value

    final = ends.run(ends.resid[:, None, None], ends.at_end(), change=change)[:, alike[-1], 0]
    resid, z, mlp = (torch.stack(values, 2) for values in ([*seen[RESID_PRE], final], seen[Z], seen[MLP_OUT]))
    return EndRun(resid, mlp, z, alike)


def _steps(ablations: Ablations) -> tuple[list[_Step], list[Int[Tensor, "n_sets"]]]:
    """Sets that agree so far as one variant; and which variant each set is, before the first layer and after each."""
    steps, which = [], [torch.zeros(len(ablations), dtype=torch.long)]
    for heads, mlp in zip(ablations.heads.cpu().unbind(1), ablations.mlps.cpu().unbind(1)):
        out = torch.cat([which[-1][:, None], heads, mlp[:, None]], 1)
        different, now = out.long().unique(dim=0, return_inverse=True)
        steps.append(_Step(different[:, 0], different[:, 1:-1] > 0, different[:, -1] > 0))
        which.append(now)
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
    """Logits of some tokens under every ablation at ``end``, keeping nothing else: for very many sets."""
    (steps, which), out = _steps(ablations), []
    for rows in batches.blocks(len(ends.end), batch):
        x = ends.resid[rows, None, None]
        final = ends.run(x, ends.at_end(), change=_out(steps, instead, rows), rows=rows)[:, :, 0]
        out.append(ends.logits(final, tokens.expand(len(final), -1))[:, which[-1]])
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
    firsts = [[same.tolist().index(i) for i in range(int(same.max()) + 1)] for same in run.alike[:-1]]
    before = torch.tensor([0, *map(len, firsts)])[:-1].cumsum(0)  # cells of lower layers
    place = torch.stack(run.alike[:-1]) + before[:, None]
    own, plain, patched = [], [], []

    for rows in batches.blocks(len(b.end), batch):

        def join(site: str, layer: int, value: Tensor, rows: slice = rows) -> Tensor:
            if site != RESID_PRE:
                return value
            return torch.cat([value, run.resid[rows, firsts[layer], layer][:, :, None]], 1)

        final = b.run(b.resid[rows, None, None], b.at_end(), change=join, rows=rows)[:, :, 0]
        some = tokens.expand(len(final), -1)
        own.append(a.logits(run.resid[rows, :, -1], some))
        plain.append(b.logits(final[:, :1], some)[:, 0])
        patched.append(b.logits(final[:, 1:], some)[:, place])
    return PatchGrid(*map(torch.cat, (own, plain, patched)))
