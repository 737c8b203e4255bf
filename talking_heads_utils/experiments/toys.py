"""What the small models that ship with the book saw in training."""

from __future__ import annotations

import json
import math

from talking_heads_utils.known import shipped_models


def longest_trained(name: str) -> float:
    """Items of the longest list that a shipped model saw in training, out of its card; infinity for any other model."""
    folder = shipped_models().get(name)
    if folder is None:
        return math.inf
    return json.loads((folder / "training.json").read_text(encoding="utf-8")).get("longest", math.inf)


def learners() -> list[str]:
    """The trained models that learn functions in context, as far as they ship."""
    names = ("mini-icl", "mini-icl-plain", "mini-icl-noisy")
    return [name for name in names if name in shipped_models()]
