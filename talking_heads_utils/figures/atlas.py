"""The atlas: every score of a model that stands out, in one compressed script for the explorer page.

The page's ``atlas.js`` draws it. A script, unlike a fetched file, also loads on a page opened from ``file://``. What
the page shows is what the scores' own file says: scores travel as the float16 that it holds, ranks are places in a list
that is kept from its first place on, and z is computed there from the null's mean and standard deviation.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from talking_heads_utils.experiments.inhibition.links import Roles
from talking_heads_utils.figures.style import CONTROL, KIND_COLOURS, KIND_READS, ROLE_COLOURS
from talking_heads_utils.files import written_whole
from talking_heads_utils.roles import GPT2_SMALL_SOURCE, gpt2_small_roles
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.settings import KINDS

LEAST_Z = 3.0  # scores below are left out: about what the largest of a reader's random directions reaches


def pack(scores: CompositionScores, roles: Roles, *, least_z: float = LEAST_Z) -> dict[str, Any]:
    """What the page needs, as plain values; ``payload`` is base64 of a deflated run of little-endian arrays.

    In this order, readers being every head of layers 1 and up, layer by layer, for each of ``kinds`` in turn: mean,
    then standard deviation of each layer's null (float32); how many components each reader keeps (uint32); singular
    values ``[n_layers, n_heads, d_head]`` (float16); the kept components of all readers, the strongest first (index
    into ``[n_layers, n_heads, d_head]``, uint32); by how much the float16 pattern of each score lies below the one
    before it, 65536 before the first (uint32). The last two are laid out byte by byte, which deflates better.
    """
    kinds = sorted({kind for kind, _ in scores.blocks}, key=KINDS.index)
    blocks = [scores.blocks[kind, layer] for kind in kinds for layer in range(1, scores.n_layers)]
    kept = [_kept(block, head, least_z) for block in blocks for head in range(scores.n_heads)]
    index, bits = zip(*kept)
    payload = b"".join([
        np.stack([np.concatenate([block.null_mean, block.null_std]) for block in blocks]).astype("<f4").tobytes(),
        np.array([len(part) for part in index], "<u4").tobytes(),
        scores.singular_values.numpy().astype("<f2").tobytes(),
        _planes(np.concatenate(index)),
        _planes(np.concatenate([-np.diff(part, prepend=[1 << 16]) for part in bits])),
    ])  # fmt: skip
    random_z = [(block.null_max - block.null_mean) / block.null_std for block in blocks]
    return {
        "about": dict(scores.about),
        "kinds": kinds,
        "null_rms": scores.null_rms,
        "least_z": least_z,
        "largest_random_z": max(z.nan_to_num(nan=-np.inf).max().item() for z in random_z),
        "n_scores": sum(int((~block.score.isnan()).sum()) for block in blocks),
        "roles": {role: [str(head) for head in heads] for role, heads in roles.items()},
        "role_source": GPT2_SMALL_SOURCE if roles else None,
        "colours": {"roles": ROLE_COLOURS, "kinds": KIND_COLOURS, "none": CONTROL},
        "reads": KIND_READS,
        "payload": base64.b64encode(zlib.compress(payload, 9)).decode(),
    }


def write_atlas(scores: CompositionScores, path: Path) -> None:
    """The script that the explorer page loads. Roles are those published for GPT-2 small; other models have none."""
    roles = gpt2_small_roles() if scores.about["model"] == "gpt2-small" else {}
    content = json.dumps(pack(scores, roles), separators=(",", ":"))
    with written_whole(path) as part:
        part.write_text(f"window.bookAtlas = {content};\n", encoding="utf-8")


def _kept(block: ReaderScores, head: int, least_z: float) -> tuple[np.ndarray, np.ndarray]:
    """Components of one reader with z of at least ``least_z``, by rank, and the float16 patterns of their scores."""
    index = (block.z[..., head].flatten() >= least_z).nonzero()[:, 0]
    index = index[block.rank[..., head].flatten()[index].argsort()]
    return index.numpy(), block.score[..., head].flatten()[index].numpy().astype("<f2").view("<u2").astype(np.int64)


def _planes(values: np.ndarray) -> bytes:
    return values.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()
