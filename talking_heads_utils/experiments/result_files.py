"""Where a model's results lie, and what a figure of them must say."""

from __future__ import annotations

from pathlib import Path

from talking_heads_utils.known import NAMED, is_real, known_models, shipped_models, shown_as


def shown(model: str, revision: str | None) -> str:
    """What a figure of a result must say it shows; a real model is one whose revision is the known one."""
    if is_real(model, revision):
        return known_models()[model].shown
    if model in NAMED or model in shipped_models():
        return shown_as(model)
    return f"rehearsal on {Path(model).name}, no known real model"


def results_folder(root: Path, model: str, revision: str | None) -> Path:
    """Where a model's results go below ``root``; what is no known real model never goes where one would."""
    name = model.replace("/", "-").replace(", ", "-").replace(" ", "-")
    if is_real(model, revision):
        name = model.rsplit("/", 1)[-1]
    elif model not in NAMED and model not in shipped_models():
        name = f"rehearsal-{Path(model).name}"
    return Path(root) / name
