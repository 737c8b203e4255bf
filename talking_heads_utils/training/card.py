"""The card that a small model ships with, out of its own training log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from talking_heads_utils.training.spec import CHECKED, N_CHECK

RUN = ("step", "rounds", "minutes", "longest", "complete_at", "early_at")  # what became of a run


def card_text(run: Mapping[str, Any]) -> str:
    """The text of a checkpoint's README.md. run: its training.json, which holds the whole log."""
    spec = run["spec"]
    settings = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "name")
    went = ", ".join(f"{name} {run[name]}" for name in RUN)
    measured = {"200 fixed": run["accuracy"]}
    if "last" in run:
        measured[f"{run['last']['n']:,} others"] = run["last"]["accuracy"]
    if "exact_reader" in run:
        measured["exact reader"] = run["exact_reader"]
    rows = [["prompts", *measured], ["---"] * (1 + len(measured))]
    rows += [[kind, *(f"{accuracy[kind]:.1%}" for accuracy in measured.values())] for kind in run["accuracy"]]
    parts = [
        f"# {spec['name']}, {run['stage']}, seed {run['seed']}",
        "A toy: a GPT-2 trained from nothing on the prompts of this book. Its paths may be constrained, nothing was "
        "planted. No result on it is a result on a language model. It loads in plain `transformers`, and by "
        "`talking_heads_utils.load_model`. Made by",
        f"    python -m talking_heads_utils train {spec['name']} --seed {run['seed']} --out FOLDER",
        f"Settings, explained in `talking_heads_utils/training/spec.py`: {settings}.",
        f"The run, explained in `talking_heads_utils/training/loop.py`: {went}.",
        *([rounds_told(run)] if run["checks"] else []),
        "Accuracy over the whole vocabulary by kind of prompt; training.json has it step by step:",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n\n".join(parts) + "\n"


def rounds_told(run: Mapping[str, Any]) -> str:
    """By what a run of lists went on in further rounds, and what stood at the end of each; from its training.json. A
    last round that did not help is kept."""
    told = "; ".join(
        f"after step {check['step']} loss {check['loss']:.4f}, {min(check['accuracy'].values()):.1%} of the worst kind"
        for check in run["checks"]
    )
    return (
        f"{run['spec']['name']} was to be trained in further rounds, {run['spec']['rounds']} at most, until "
        f"{CHECKED:.1%} were right of {N_CHECK} prompts of each kind that serve this alone, or their loss no longer "
        f"fell: {told}."
    )


def trained(folders: Mapping[str, Path]) -> pd.DataFrame:
    """One row per trained checkpoint, out of its training.json: seed, step, and accuracy by kind of prompt."""
    runs = {name: json.loads((Path(f) / "training.json").read_text(encoding="utf-8")) for name, f in folders.items()}
    return pd.DataFrame({"model": n, "seed": r["seed"], "step": r["step"], **r["accuracy"]} for n, r in runs.items())
