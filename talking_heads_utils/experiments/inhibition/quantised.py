"""How far quantising the weights moves composition scores: rounded as in a GGUF file, dequantised and scored again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.experiments.inhibition.published import Link, Roles, link_table
from talking_heads_utils.files import data_dir, written_whole
from talking_heads_utils.scores.scores import ONE_COMPONENT, CompositionScores, compute_scores
from talking_heads_utils.settings import KINDS, SEED
from talking_heads_utils.stats import spearman
from talking_heads_utils.weights.checkpoints import Checkpoint, assembled
from talking_heads_utils.weights.safetensor_files import SafeTensors

if TYPE_CHECKING:
    import pandas as pd

SHIPPED = "gpt2-small/quantised.json"
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
    checkpoint: Checkpoint,
    quantisations: Sequence[str] = QUANTISATIONS,
    *,
    kinds: str = KINDS,
    roles: Roles | None = None,
    links: Sequence[Link] = (),
    seed: int = SEED,
) -> pd.DataFrame:
    """One row per quantisation and kind, each against the float scores of the same checkpoint.

    Columns: ``quantisation``, ``kind``; ``n``, scores compared, one per component and reader; ``median_change`` and
    ``p95_change``, of the score of the component with the same number, as a share of the float score; ``spearman``
    over all of them; ``pairs``, of a reader and a writer head; ``best_median_change`` and ``best_spearman``, of
    the largest score of each pair, whichever component has it; ``same_best``, share of pairs whose best component keeps
    its number; ``same_direction``, share whose best component keeps its write direction (|cosine| above
    :data:`SAME`: neighbours in singular value may swap numbers); ``published``, mean percentile of the published
    writers, by their best component, among the earlier heads, and ``published_float``; NaN without ``roles``.
    """
    import pandas as pd

    plain = _scored(checkpoint, kinds, seed)
    rows = []
    for name in quantisations:
        other = _scored(quantised(checkpoint, name), kinds, seed)
        for kind in kinds:
            of_kind = [link for link in links if roles is not None and link[2] == kind]
            rows.append({
                "quantisation": name, "kind": kind, **_moved(plain, other, kind),
                "published": _published(other[0], roles, of_kind),
                "published_float": _published(plain[0], roles, of_kind),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _scored(checkpoint: Checkpoint, kinds: str, seed: int) -> tuple[CompositionScores, Tensor]:
    weights = assembled(checkpoint)
    return compute_scores(weights, kinds, seed=seed), write_directions(weights)[0]


def _published(scores: CompositionScores, roles: Roles | None, links: Sequence[Link]) -> float:
    if roles is None or not links:
        return float("nan")
    table = link_table(scores, roles, links)
    return float(table.loc[table["published"] & (table["measure"] == ONE_COMPONENT), "percentile"].mean())


def _moved(
    plain: tuple[CompositionScores, Tensor], other: tuple[CompositionScores, Tensor], kind: str
) -> dict[str, float]:
    parts: dict[str, list[Tensor]] = {name: [] for name in ("x", "y", "best_x", "best_y", "same", "along")}
    for layer in range(1, plain[0].n_layers):
        was, now = (scores.blocks[kind, layer].score.double() for scores, _ in (plain, other))
        (top_was, best_was), (top_now, best_now) = (s.nan_to_num(nan=-1.0).max(2) for s in (was, now))
        first, second = (  # write directions of the best component of each writer, per reader head
            directions[:layer].gather(2, best[..., None].expand(*best.shape, directions.shape[-1]))
            for directions, best in ((plain[1], best_was), (other[1], best_now))
        )
        along = (first * second).sum(-1).abs()
        for name, values in zip(parts, (was, now, top_was, top_now, best_was == best_now, along), strict=True):
            parts[name].append(values.flatten())
    x, y, best_x, best_y, same, along = map(torch.cat, parts.values())
    held = ~(x.isnan() | y.isnan())
    x, y = x[held], y[held]
    change = (y - x).abs() / x
    return {
        "n": len(x), "median_change": change.median().item(), "p95_change": change.quantile(0.95).item(),
        "spearman": spearman(x, y[None]).item(), "pairs": len(best_x),
        "best_median_change": ((best_y - best_x).abs() / best_x).median().item(),
        "best_spearman": spearman(best_x, best_y[None]).item(),
        "same_best": same.double().mean().item(), "same_direction": (along > SAME).double().mean().item(),
    }  # fmt: skip


def save_quantised(frame: pd.DataFrame, about: Mapping[str, Any], path: Path) -> None:
    """Write the frame as JSON, with what it was made from."""
    rows = json.loads(frame.round(6).to_json(orient="records"))
    with written_whole(path) as part:
        part.write_text(json.dumps({"about": dict(about), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def load_quantised(path: Path | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
    """What it was made from, and the frame; without a path GPT-2 small's, which ships with the book."""
    import pandas as pd

    content = json.loads((path or data_dir() / SHIPPED).read_text(encoding="utf-8"))
    return content["about"], pd.DataFrame(content["rows"])


def shown_quantised(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as a page shows it: shares as percentages, in the words of the book."""
    shown = {
        "quantisation": ("weights", "{}"), "kind": ("kind", "{}"), "n": ("scores", "{:,}"),
        "median_change": ("median change", "{:.2g}%"), "p95_change": ("95% change less than", "{:.2g}%"),
        "spearman": ("Spearman", "{:.3f}"), "best_median_change": ("best component: median change", "{:.2g}%"),
        "best_spearman": ("best component: Spearman", "{:.3f}"), "same_best": ("same best component", "{:.1f}%"),
        "same_direction": ("same best direction", "{:.1f}%"),
        "published": ("published writers, mean percentile", "{:.1f}"),
        "published_float": ("of float weights", "{:.1f}"),
    }  # fmt: skip
    columns = {
        text: (100 * frame[name] if "%" in form else frame[name]).map(form.format)
        for name, (text, form) in shown.items()
    }
    return frame.assign(**columns)[list(columns)]
