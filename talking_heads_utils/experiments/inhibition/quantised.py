"""How far quantising the weights moves composition scores: rounded as in a GGUF file, dequantised and scored again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS
from talking_heads_utils.stats import spearman
from talking_heads_utils.weights.checkpoints import Checkpoint, SafeTensors, assembled

if TYPE_CHECKING:
    import pandas as pd

CONTROL = "F16"  # GPT-2's copy at hand is stored so, and must not move at all
QUANTISATIONS = (CONTROL, "Q8_0", "Q4_1", "Q4_0")
SAME = 0.9  # |cosine| from which two write directions count as one


@dataclass(frozen=True)
class Rounded(SafeTensors):
    """Tensors whose matrices come as a GGUF file of a quantisation would give them back, in float32.

    Blocks run along what a matrix reads, as in llama.cpp; across: the matrices lie the other way (GPT-2's do).
    """

    quantisation: str
    across: bool

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        for part, tensor in super().read(names):
            yield part, self._rounded(tensor.float()) if tensor.ndim == 2 else tensor

    def _rounded(self, tensor: Tensor) -> Tensor:
        from gguf import GGMLQuantizationType, dequantize, quantize

        kind = GGMLQuantizationType[self.quantisation]
        plain = np.ascontiguousarray((tensor.T if self.across else tensor).numpy())
        back = torch.from_numpy(np.array(dequantize(quantize(plain, kind), kind), dtype=np.float32))
        return back.T.contiguous() if self.across else back


def quantised(checkpoint: Checkpoint, quantisation: str) -> Checkpoint:
    """The checkpoint with its attention matrices rounded. Raises :class:`CheckpointError` for one that is a GGUF."""
    if checkpoint.gguf is not None:
        raise CheckpointError(f"{checkpoint.name} is quantised as it comes. Give a checkpoint in safetensors.")
    across = checkpoint.family.name == "gpt2"
    return replace(checkpoint, stored=Rounded(checkpoint.files, quantisation, across), dtype=quantisation)


def quantised_frame(
    checkpoint: Checkpoint, quantisations: Sequence[str] = QUANTISATIONS, *, kinds: str = KINDS
) -> pd.DataFrame:
    """One row per quantisation and kind, each against the float scores of the same checkpoint.

    Columns: ``quantisation``, ``kind``; ``n``, scores compared, one per component and reader; ``median_change`` and
    ``p95_change``, of the score of the component with the same number, as a share of the float score; ``spearman``
    over all of them. Of every pair of a reader and a writer head, by the writer's best component, whichever it is:
    ``best_spearman``, of its score; ``same_best``, share of pairs whose best component keeps its number;
    ``same_direction``, or its write direction (|cosine| above :data:`SAME`: neighbours in singular value may swap
    numbers).
    """
    import pandas as pd

    plain, rows = _scored(checkpoint, kinds), []
    for name in quantisations:
        other = _scored(quantised(checkpoint, name), kinds)
        rows += [{"quantisation": name, "kind": kind, **_moved(plain, other, kind)} for kind in kinds]
    return pd.DataFrame(rows)


def _scored(checkpoint: Checkpoint, kinds: str) -> tuple[CompositionScores, Tensor]:
    weights = assembled(checkpoint)
    return compute_scores(weights, kinds), write_directions(weights)[0]


def _moved(
    plain: tuple[CompositionScores, Tensor], other: tuple[CompositionScores, Tensor], kind: str
) -> dict[str, float]:
    parts = []
    for layer in range(1, plain[0].n_layers):
        scores = [of.blocks[kind, layer].score.double() for of, _ in (plain, other)]
        (top_was, best_was), (top_now, best_now) = (score.nan_to_num(nan=-1.0).max(2) for score in scores)
        first, second = (  # write directions of the best component of each writer, per reader head
            directions[:layer].gather(2, best[..., None].expand(*best.shape, directions.shape[-1]))
            for directions, best in ((plain[1], best_was), (other[1], best_now))
        )
        along = (first * second).sum(-1).abs()
        parts.append([part.flatten() for part in (*scores, top_was, top_now, best_was == best_now, along)])
    was, now, best_was, best_now, same, along = (torch.cat(some) for some in zip(*parts))
    held = ~(was.isnan() | now.isnan())
    was, now = was[held], now[held]
    change = (now - was).abs() / was
    return {
        "n": len(was), "median_change": change.median().item(), "p95_change": change.quantile(0.95).item(),
        "spearman": spearman(was, now[None]).item(), "best_spearman": spearman(best_was, best_now[None]).item(),
        "same_best": same.double().mean().item(), "same_direction": (along > SAME).double().mean().item(),
    }  # fmt: skip
