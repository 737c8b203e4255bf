"""What is taken out of a run: sets of heads and of MLPs, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Head

ZERO, MEAN, RESAMPLE = "zero", "mean", "resample"
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


def check_how(how: str) -> str:
    """Raises :class:`OptionError` unless it is one of zero, mean and resample."""
    if how not in (ZERO, MEAN, RESAMPLE):
        raise OptionError(f"A head is replaced by {ZERO}, {MEAN} or {RESAMPLE}, not {how!r}.")
    return how


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
