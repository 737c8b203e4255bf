"""The last token of a prompt under many ablations at once, and its residual stream patched into another prompt.

What is done at ``end`` changes nothing before it. So keys and values of both prompts are computed once
(:mod:`talking_heads_utils.forward.suffix`), and each variant costs one token through the layers that are left. Where
heads are out at *every* position, the prefix changes too and is run again, once for each set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import OptionError
from talking_heads_utils.forward.head_sets import MEAN, RESAMPLE, ZERO, Ablations, check_how
from talking_heads_utils.forward.suffix import Suffix, suffix
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

    from talking_heads_utils.weights.bridge import Hook

RESID, ATTENTION, MLP = "resid_pre", "attention out", "MLP out"


@dataclass(frozen=True)
class EndRun:
    """The last token of n prompts through every layer, for each of ``n_sets`` ablations.

    resid: ``resid_pre`` of each layer and, last, the final residual stream.
    attention, mlp: what each layer's attention and MLP write.
    z: the mean value that each head gathers, before ``W_O``.
    twin: by layer and set, the first set that takes out the same heads and MLPs in all layers below (itself, if there
        is none): up to that layer the two runs are the same, so one of them is computed.
    """

    resid: Float[Tensor, "n n_sets n_layers_1 d_model"]
    attention: Float[Tensor, "n n_sets n_layers d_model"]
    mlp: Float[Tensor, "n n_sets n_layers d_model"]
    z: Float[Tensor, "n n_sets n_layers n_heads d_head"]
    twin: Int[Tensor, "n_layers_1 n_sets"]


@dataclass(frozen=True)
class Replacements:
    """What stands in the place of a head's z and of an MLP's output at ``end``, per prompt."""

    z: Float[Tensor, "n n_layers n_heads d_head"]
    mlp: Float[Tensor, "n n_layers d_model"]


def replacements(clean: EndRun, how: str, *, seed: int = 0) -> Replacements:
    """Zeros; the mean over prompts; or what another prompt, drawn at random, has there. ``clean``: nothing ablated."""
    z, mlp = clean.z[:, 0], clean.mlp[:, 0]
    if check_how(how) == ZERO:
        return Replacements(torch.zeros_like(z), torch.zeros_like(mlp))
    if how == MEAN:
        return Replacements(z.mean(0).expand_as(z), mlp.mean(0).expand_as(mlp))
    other = _another(len(z), seed).to(z.device)
    return Replacements(z[other], mlp[other])


def _another(n: int, seed: int) -> Int[Tensor, "n"]:
    """For each prompt another one. Raises :class:`OptionError` for a single prompt."""
    if n < 2:
        raise OptionError("To resample from another prompt there must be two at least.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order.roll(1)[order.argsort()]


@torch.no_grad()
def run_end(ends: Suffix, ablations: Ablations | None = None, instead: Replacements | None = None) -> EndRun:
    """Every ablation at ``end`` alone. ``ends`` starts at layer 0. Without ablations, the plain run as the one set."""
    steps = list(_layers(ends, ablations, instead, slice(None)))
    read, *written, last = (list(kind) for kind in zip(*steps))
    resid, attention, mlp, z = (torch.stack(kind, 2) for kind in ([*read, last[-1]], *written))
    return EndRun(resid, attention, mlp, z, _twins(ablations, len(ends.layers)))


def _twins(ablations: Ablations | None, n_layers: int) -> Int[Tensor, "n_layers_1 n_sets"]:
    if ablations is None:
        return torch.zeros(n_layers + 1, 1, dtype=torch.long)
    out = torch.cat([ablations.heads.cpu(), ablations.mlps.cpu()[..., None]], 2)
    alike = [(out[:, None, :layer] == out[:, :layer]).all(3).all(2) for layer in range(n_layers + 1)]
    return torch.stack([same.int().argmax(1) for same in alike])


@torch.no_grad()
def ablated_logits(
    ends: Suffix, ablations: Ablations, instead: Replacements, tokens: Int[Tensor, "n_tokens"], *, batch: int = 64
) -> Float[Tensor, "n n_sets n_tokens"]:
    """Logits of some tokens under every ablation at ``end``, keeping nothing else: for very many sets.

    Sets are run apart from the layer on where they first differ: below it they share one run.
    """
    out = []
    for rows in batches.blocks(len(ends.resid), batch):
        final, which = _final(ends, ablations, instead, rows)
        out.append(ends.logits(final, tokens.expand(len(final), -1))[:, which])
    return torch.cat(out)


def _final(
    ends: Suffix, ablations: Ablations, instead: Replacements, rows: slice
) -> tuple[Float[Tensor, "rows n_different d_model"], Int[Tensor, "n_sets"]]:
    """The final residual stream of every different ablation, and which of them each set is."""
    x, which = ends.resid[rows, None], torch.zeros(len(ablations), dtype=torch.long)
    for layer, part in enumerate(ends.layers):
        out = torch.cat([which[:, None], ablations.heads[:, layer].cpu(), ablations.mlps[:, layer, None].cpu()], 1)
        different, which = out.long().unique(dim=0, return_inverse=True)
        before, heads, mlp = (part.to(x.device) for part in different.split((1, ablations.heads.shape[2], 1), 1))
        z = torch.where(heads[..., None] > 0, instead.z[rows, None, layer], ends.z(part, x, rows)[:, before[:, 0]])
        x = x[:, before[:, 0]]
        middle = x + ends.write(part, z)
        written = ends.after_attention(part, x, middle) - middle
        x = middle + torch.where(mlp > 0, instead.mlp[rows, None, layer], written)
    return x, which


def _layers(ends: Suffix, ablations: Ablations | None, instead: Replacements | None, rows: slice) -> Iterator[tuple]:
    """Layer by layer: what it reads, what its attention and its MLP write, its heads' z, and what it leaves."""
    if ablations is not None and instead is None:
        raise OptionError("Ablations need what stands in their place: see replacements.")
    x = ends.resid[rows, None].expand(-1, 1 if ablations is None else len(ablations), -1)
    for layer, part in enumerate(ends.layers):
        z = ends.z(part, x, rows)
        if ablations is not None and instead is not None:
            z = torch.where(ablations.heads[:, layer, :, None].to(z.device), instead.z[rows, None, layer], z)
        attention = ends.write(part, z)
        middle = x + attention
        mlp = ends.after_attention(part, x, middle) - middle
        if ablations is not None and instead is not None:
            mlp = torch.where(ablations.mlps[:, layer, None].to(z.device), instead.mlp[rows, None, layer], mlp)
        yield x, attention, mlp, z, middle + mlp
        x = middle + mlp


@torch.no_grad()
def run_everywhere(
    bridge: TransformerBridge, prompts: PromptSet, ablations: Ablations, how: str = ZERO, *, seed: int = 0
) -> EndRun:
    """Every ablation at all positions: one forward pass of the whole prompts for each set.

    For mean and resample prompts must be of one length, so that a position means the same in each. Raises
    :class:`OptionError` otherwise.
    """
    if check_how(how) != ZERO and not prompts.mask.all():
        raise OptionError(f"To replace at every position by the {how}, prompts must be of one length.")
    clean = run_end(suffix(bridge, prompts, 0, batch=len(prompts)))
    instead = replacements(clean, how, seed=seed)
    names = {
        layer: (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out") for layer in range(bridge.cfg.n_layers)
    }
    swap = _swapper(bridge, prompts, how, seed, {name for pair in names.values() for name in pair})
    runs = []
    for heads, mlps in zip(ablations.heads, ablations.mlps):
        hooks = [(z, swap(z, out)) for (z, _), out in zip(names.values(), heads) if out.any()]
        hooks += [(mlp, swap(mlp, None)) for (_, mlp), out in zip(names.values(), mlps) if out]
        with bridge.hooks(fwd_hooks=hooks):
            ends = suffix(bridge, prompts, 0, batch=len(prompts), check=False)  # hooks have a hand in it
        runs.append(run_end(ends, Ablations(("",), heads[None], mlps[None]), instead))
    resid, attention, mlp, z = (
        torch.cat([getattr(r, name) for r in runs], 1) for name in ("resid", "attention", "mlp", "z")
    )
    twins = torch.arange(len(ablations)).expand(bridge.cfg.n_layers + 1, -1)  # prefixes differ: there are none
    return EndRun(resid, attention, mlp, z, twins)


def _swapper(
    bridge: TransformerBridge, prompts: PromptSet, how: str, seed: int, names: set[str]
) -> Callable[[str, Tensor | None], Hook]:
    """Makes hooks that replace some heads' z (with None, all) everywhere, by zero, the mean or another prompt's."""
    clean, other = {}, None
    if how != ZERO:
        _, clean = bridge.run_with_cache(prompts.tokens.to(bridge.cfg.device), names_filter=lambda name: name in names)
        other = _another(len(prompts), seed) if how == RESAMPLE else None

    def swap(name: str, heads: Tensor | None) -> Hook:
        def hook(value: Tensor, hook: HookPoint) -> Tensor:
            new = torch.zeros_like(value)
            if how != ZERO:
                new = clean[name].mean(0).expand_as(value) if other is None else clean[name][other]
            return new if heads is None else torch.where(heads.to(value.device)[:, None], new, value)

        return hook

    return swap


@dataclass(frozen=True)
class PatchGrid:
    """Logits of ``tokens`` after a patch: from each of A's ablated runs, at each layer, into B's plain run.

    own: of A itself. plain: of B, nothing patched. patched: of B with A's activation at one layer.
    """

    own: Float[Tensor, "n n_sets n_tokens"]
    plain: Float[Tensor, "n n_tokens"]
    patched: Float[Tensor, "n n_layers n_sets n_tokens"]


@torch.no_grad()
def patch_grid(
    run: EndRun, a: Suffix, b: Suffix, tokens: Int[Tensor, "n_tokens"], *, what: str = RESID, batch: int = 16
) -> PatchGrid:
    """Patch A's ``resid_pre``, attention output or MLP output at ``end`` into B's, every layer and every set at once.

    run: of :func:`run_end` on ``a``. Above the patch B is run as it is. Sets that are still alike at a layer share its
    cell. batch: prompts at a time; memory grows with layers x sets x batch. Raises :class:`OptionError` for another
    ``what`` or sets of different size.
    """
    if what not in (RESID, ATTENTION, MLP):
        raise OptionError(f"Patch {RESID!r}, {ATTENTION!r} or {MLP!r}, not {what!r}.")
    if len(a.resid) != len(b.resid):
        raise OptionError(f"A has {len(a.resid)} prompts and B {len(b.resid)}; each of A's is patched into one of B's.")
    n, twin = len(b.resid), run.twin[:-1] if what == RESID else run.twin[1:]
    cells = twin == torch.arange(twin.shape[1])  # those that are computed, by layer and set
    place = (cells.flatten().cumsum(0) - 1).view_as(cells).gather(1, twin)
    own, plain, patched = [], [], []
    for rows in batches.blocks(n, batch):
        some = tokens.expand(len(b.resid[rows]), -1)
        final = _patched(run, b, what, rows, cells)
        own.append(a.logits(run.resid[rows, :, -1], some))
        plain.append(b.logits(final[:, :1], some)[:, 0])
        patched.append(b.logits(final[:, 1:], some)[:, place])
    return PatchGrid(*map(torch.cat, (own, plain, patched)))


def _patched(
    run: EndRun, b: Suffix, what: str, rows: slice, cells: Bool[Tensor, "n_layers n_sets"]
) -> Float[Tensor, "n variants d_model"]:
    """B's final residual stream: the plain one, then by layer those sets in ``cells``. Variants join at their layer."""
    x = b.resid[rows, None]
    for layer, part in enumerate(b.layers):
        joins = cells[layer]
        if what == RESID:
            x = torch.cat([x, run.resid[rows, joins, layer]], 1)
        middle = x + b.attend(part, x, rows)
        if what == ATTENTION:
            new = run.attention[rows, joins, layer]
            middle = torch.cat([middle, x[:, :1] + new], 1)
            x = torch.cat([x, x[:, :1].expand_as(new)], 1)
        after = b.after_attention(part, x, middle)
        x = torch.cat([after, middle[:, :1] + run.mlp[rows, joins, layer]], 1) if what == MLP else after
    return x
