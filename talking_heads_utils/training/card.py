"""The card that a small model ships with, out of its own training log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talking_heads_utils.settings import FINAL
from talking_heads_utils.training.spec import CHECKED, N_CHECK

if TYPE_CHECKING:
    import pandas as pd

RUN = ("step", "rounds", "minutes", "longest", "complete_at", "early_at")  # what became of a run


def write_card(folder: Path, measured: Mapping[str, Any] | None = None) -> Path:
    """``README.md`` beside a checkpoint of :class:`~talking_heads_utils.training.loop.Run`, from its training.json.

    measured: what :func:`talking_heads_utils.training.seeds.measure` found of its channel, once that was asked.
    """
    path = folder / "README.md"
    path.write_text(card_text(folder, measured), encoding="utf-8")
    return path


def card_text(folder: Path, measured: Mapping[str, Any] | None = None) -> str:
    """What :func:`write_card` writes."""
    run = _training(folder)
    spec = run["spec"]
    settings = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "name")
    went = ", ".join(f"{name} {run[name]}" for name in RUN if name in run)
    parts = [
        f"# {spec['name']}, {run['stage']}, seed {run['seed']}",
        "A toy: a GPT-2 trained from nothing on the prompts of this book. Its paths may be constrained, nothing was "
        "planted. No result on it is a result on a language model. It loads in plain `transformers`, and by "
        "`talking_heads_utils.load_model`. Made by",
        f"    python -m talking_heads_utils train {spec['name']} --seed {run['seed']} --out FOLDER",
        f"Settings, explained in `talking_heads_utils/training/spec.py`: {settings}.",
        f"The run, explained in `talking_heads_utils/training/job.py`: {went}.",
        *([rounds_told(run)] if run.get("checks") else []),
        "Accuracy over the whole vocabulary on 200 fixed prompts of each kind:",
        _table(_accuracy(run)),
        *(["By function after all examples, 20 prompts each; in brackets functions held out:", _table(_functions(run))]
          if "by_function" in run else []),
        *(_channel(measured) if measured else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _training(folder: Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))


def _table(rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _accuracy(run: Mapping[str, Any]) -> list[list[str]]:
    """Every thousandth step and the checkpoint's own; where they are there, more prompts and the exact reader."""
    kinds = list(run["accuracy"])
    log = [entry for entry in run["log"] if entry["step"] % 1000 == 0 and entry["step"] < run["step"]]
    lines = [(e["step"], f"{e['loss']:.3f}", e["accuracy"]) for e in log]
    lines.append((run["step"], f"{run['running_loss']:.3f}", run["accuracy"]))
    if "last" in run:
        lines.append((f"{run['last']['n']:,} others", "", run["last"]["accuracy"]))
    if "exact_reader" in run:
        lines.append(("exact reader", "", run["exact_reader"]))
    head = [["step", "loss", *kinds], ["---"] * (len(kinds) + 2)]
    return head + [[str(step), loss, *(f"{accuracy[kind]:.1%}" for kind in kinds)] for step, loss, accuracy in lines]


def _functions(run: Mapping[str, Any]) -> list[list[str]]:
    """Accuracy, a by b, held-out functions in brackets."""
    cells = {(row["a"], row["b"]): ("[{:.2f}]" if row["held_out"] else "{:.2f}").format(row["accuracy"])
             for row in run["by_function"]}  # fmt: skip
    every_a, every_b = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    lines = [[str(a), *(cells[a, b] for b in every_b)] for a in every_a]
    return [["a \\ b", *map(str, every_b)], ["---"] * (len(every_b) + 1), *lines]


def _channel(measured: Mapping[str, Any]) -> list[str]:
    """Which heads inhibit the mover, by what their absence does to it, through which components and directions."""
    heads, title = measured["inhibition_heads"], "## Its channel, as chapter 1 measures it"
    if not heads:
        return [title, "No head inhibits a mover here, so there is no channel to measure."]
    score, order = measured["inhibition_score"], measured["agreement"]
    told = (
        f"I(m) of {', '.join(measured['movers'])}: {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}].",
        f"Directions by which the heads below together speak to its query, for 90% of their effect: "
        f"{measured['dimension'] or 'more than 8'}.",
        f"Rank correlation of scores and effects (cross-validated), all components: {order['spearman']:.2f} "
        f"[{order['low']:.2f}, {order['high']:.2f}]; in random bases of each head {order['rotated']:.2f}.",
        f"Score of a random direction: {heads[0]['null']:.3f} (root mean square).",
    )
    columns = ("head", "change of I(m) without it", "components for 90%", "scores of its strongest components")
    rows: list[Sequence[str]] = [columns, ("---",) * 4]
    for head in heads:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in head["scores"].items())
        rows.append((head["head"], f"{head['change']:.3f}", str(head["components"] or "more than 8"), scores))
    how = f"Lists of {measured['n_items']}, {score['n']} held-out prompts, seed {measured['prompts_seed']}"
    return [
        title,
        f"{how}; weights with {measured['processing']}.",
        "\n".join(f"* {line}" for line in told),
        _table(rows),
    ]


def rounds_told(run: Mapping[str, Any]) -> str:
    """By what a run of lists went on in further rounds, what stood at the end of each, and why it stopped; from its
    training.json. A last round that did not help is kept."""
    told = "; ".join(
        f"after step {check['step']} loss {check['loss']:.4f}, {min(check['accuracy'].values()):.1%} of the worst kind"
        for check in run["checks"]
    )
    return (
        f"{run['spec']['name']} was to be trained in further rounds, {run['spec']['rounds']} at most, until "
        f"{CHECKED:.1%} were right of {N_CHECK} prompts of each kind that serve this alone, or their loss no longer "
        f"fell: {told}. {_stopped(run)}"
    )


def _stopped(run: Mapping[str, Any]) -> str:
    *before, last = run["checks"]
    if run["stage"] != FINAL:
        return "It was still going on."
    if min(last["accuracy"].values()) >= CHECKED:
        return "That was reached."
    if before and not last["loss"] < before[-1]["loss"]:
        return "So it had stopped improving; the weights are those after that round."
    return "It was still improving when its rounds were used up."


def trained(folders: Mapping[str, Path]) -> pd.DataFrame:
    """One row per trained checkpoint, out of its training.json: seed, step, and accuracy on IOI and by list length."""
    import pandas as pd

    runs = {name: _training(folder) for name, folder in folders.items()}
    return pd.DataFrame({"model": n, "seed": r["seed"], "step": r["step"], **r["accuracy"]} for n, r in runs.items())
