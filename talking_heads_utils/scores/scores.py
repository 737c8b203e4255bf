"""The finished composition scores of a model: to look up, rank, compare, save and load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import LabelError
from talking_heads_utils.files import data_dir
from talking_heads_utils.labels import Component, Head, as_head
from talking_heads_utils.provenance import describe_weights, versions
from talking_heads_utils.scores.composition import ReaderScores, check_kinds, head_level, iter_composition, null_rms
from talking_heads_utils.scores.files import read_file, tensors_of, write_file
from talking_heads_utils.scores.tables import component_rows
from talking_heads_utils.settings import KINDS, N_RANDOM, SEED
from talking_heads_utils.weights.heads import HeadWeights, describe

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = "composition.safetensors"
WHOLE_BYTES = 50_000_000  # files up to this size are read at once


@dataclass(frozen=True)
class CompositionScores:
    """Scores of all components into all later heads, with what they were made from.

    blocks: ``(kind, reader layer)`` -> :class:`~talking_heads_utils.scores.composition.ReaderScores`.
    singular_values: ``[n_layers, n_heads, d_head]``.
    about: model, processing, checkpoint, seed and number of random directions, versions.
    """

    blocks: Mapping[tuple[str, int], ReaderScores]
    singular_values: Float[Tensor, "n_layers n_heads d_head"]
    about: Mapping[str, Any]
    _pairs: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        return self.singular_values.shape[0]

    @property
    def n_heads(self) -> int:
        return self.singular_values.shape[1]

    @property
    def d_head(self) -> int:
        return self.singular_values.shape[2]

    @property
    def kinds(self) -> list[str]:
        """The kinds that are held, in the order Q, K, V."""
        return [kind for kind in KINDS if any(held == kind for held, _ in self.blocks)]

    @property
    def null_rms(self) -> float:
        """1 / sqrt(d_model'): root mean square score of a random direction."""
        return null_rms(self.about["d_model_effective"])

    def describe(self) -> str:
        """Model and processing in one line."""
        return describe(self.about["model"], self.about["processing"], self.about["d_model_effective"])

    def block(self, reader: Head | str, kind: str) -> tuple[ReaderScores, Head]:
        """The block that holds a reader. Raises :class:`LabelError` for a head that has no earlier writer."""
        head = as_head(reader)
        if (kind, head.layer) not in self.blocks or head.head >= self.n_heads:
            held = [layer for _, layer in self.blocks]
            layers = f"{min(held)}..{max(held)}"
            raise LabelError(
                f"No scores of kind {kind} into {head}: the kinds here are {', '.join(self.kinds)}, "
                f"with readers in layers {layers} and heads 0..{self.n_heads - 1}."
            )
        return self.blocks[kind, head.layer], head

    def pair(self, writer: Head | str, reader: Head | str, kind: str) -> Float[Tensor, "d_head"]:
        """Score of every component of one writer into one reader; NaN unless the reader is in a later layer."""
        block, into = self.block(reader, kind)
        out = as_head(writer)
        if out.layer >= self.n_layers or out.head >= self.n_heads:
            raise LabelError(f"{out} is not in {self.about['model']}.")
        if out.layer >= into.layer:
            return torch.full((self.d_head,), torch.nan)
        return block.score[out.layer, out.head, :, into.head]

    def largest_random_z(self, reader: Head | str, kind: str) -> float:
        """The largest z among the random directions that were sampled for a reader."""
        block, head = self.block(reader, kind)
        return ((block.null_max - block.null_mean) / block.null_std)[head.head].item()

    def table(self, reader: Head | str, kind: str) -> pd.DataFrame:
        """Every earlier component of one reader, the strongest first: the columns of
        :func:`~talking_heads_utils.scores.tables.component_rows` that name the writer and its score, and ``writer``."""
        block, head = self.block(reader, kind)
        frame = component_rows(block, self.singular_values, head.head)
        rows = zip(frame["writer_layer"], frame["writer_head"], frame["component"])
        frame.insert(0, "writer", [str(Component(*row)) for row in rows])
        frame = frame.drop(columns=["kind", "reader_layer", "reader_head"])
        return frame.sort_values("score", ascending=False, ignore_index=True, kind="stable")

    def head_level(self, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
        """Elhage et al.'s score ``[writer layer, writer head, reader layer, reader head]``; NaN where undefined."""
        return self._over_pairs("head level", kind, lambda block: head_level(block.score, self.singular_values))

    def best_component(self, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
        """Largest score of any single component of a writer into a reader, shaped as :meth:`head_level`."""
        return self._over_pairs("component", kind, lambda block: _largest(block.score))

    def best_z(self, kind: str) -> Float[Tensor, "n_layers n_heads n_layers n_heads"]:
        """Largest z of any single component of a writer into a reader, shaped as :meth:`head_level`."""
        return self._over_pairs("z", kind, lambda block: _largest(block.z))

    def _over_pairs(self, name: str, kind: str, measure: Callable[[ReaderScores], Tensor]) -> Tensor:
        """Computed once and kept, since rankings ask for it reader by reader."""
        kind = check_kinds(kind)
        if (name, kind) in self._pairs:
            return self._pairs[name, kind]
        if kind not in self.kinds:
            raise LabelError(f"These scores of {self.about['model']} do not hold kind {kind}.")
        pairs = torch.full((self.n_layers, self.n_heads, self.n_layers, self.n_heads), torch.nan)
        for layer in (layer for held, layer in self.blocks if held == kind):
            pairs[:layer, :, layer] = measure(self.blocks[kind, layer])
        self._pairs[name, kind] = pairs
        return pairs


def _largest(values: Float[Tensor, "layer n_heads d_head n_heads"]) -> Float[Tensor, "layer n_heads n_heads"]:
    """Maximum over components; NaN only where all of them are."""
    return values.nan_to_num(nan=-torch.inf).amax(2).masked_fill(values.isnan().all(2), torch.nan)


def compute_scores(
    weights: HeadWeights,
    kinds: str = KINDS,
    *,
    n_random: int = N_RANDOM,
    seed: int = SEED,
    layers: Sequence[int] | None = None,
) -> CompositionScores:
    """All scores of a model, or those into some reader layers, kept on the CPU: for GPT-2 small 7 MB, 1.8 million
    scores. Raises as :func:`~talking_heads_utils.scores.composition.iter_composition`."""
    directions, S = write_directions(weights)
    found = iter_composition(weights, kinds, n_random=n_random, seed=seed, layers=layers, directions=directions)
    blocks = {(block.kind, block.layer): block.cpu() for block in found}
    about = describe_weights(weights) | {"n_random": n_random, "seed": seed, "versions": versions()}
    return CompositionScores(blocks, S.cpu(), about)


def save_scores(scores: CompositionScores, path: Path) -> None:
    """Write scores in the format of :mod:`talking_heads_utils.scores.files`: float16, checksums, ``about``."""
    write_file(path, scores.about, tensors_of(scores.blocks.values(), scores.singular_values))


def load_scores(path: Path) -> CompositionScores:
    """Read a file of scores, as float32. Of a large one blocks are read when they are asked for, a few at a time.

    Raises :class:`CheckpointError` for any other file, and for damage where it is read.
    """
    blocks, S, about = read_file(path)
    return CompositionScores(dict(blocks) if path.stat().st_size <= WHOLE_BYTES else blocks, S, about)


def load_shipped_scores(model: str = "gpt2-small") -> CompositionScores:
    """The scores of a real model that come with the book, so that a page needs no weights and no network."""
    return load_scores(data_dir() / model / SHIPPED)
