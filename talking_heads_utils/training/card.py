"""The card that a small model ships with, out of its own training log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talking_heads_utils.settings import FINAL
from talking_heads_utils.training.spec import CHECKED, FREE, N_CHECK

if TYPE_CHECKING:
    import pandas as pd


def write_card(folder: Path, measured: Mapping[str, Any] | None = None) -> Path:
    """``README.md`` beside a checkpoint of :class:`~talking_heads_utils.training.loop.Run`, from its training.json.

    measured: what :func:`talking_heads_utils.training.seeds.measure` found of its channel, once that was asked.
    """
    path = folder / "README.md"
    path.write_text(card_text(folder, measured), encoding="utf-8")
    return path


def card_text(folder: Path, measured: Mapping[str, Any] | None = None) -> str:
    """What :func:`write_card` writes."""
    run = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return _text(run, run["spec"], _channel(measured) if measured else "")


def _text(run: dict, spec: dict, channel: str) -> str:
    return f"""# {spec["name"]}, {run["stage"]}, seed {run["seed"]}

A GPT-2 of {spec["n_layers"]} layers, {spec["n_heads"]} heads and d_model {spec["d_model"]}, trained from nothing on
{_functions(spec) if "n_pairs" in spec else _lists_and_names(spec)} Made by

    python -m talking_heads_utils train {spec["name"]} --seed {run["seed"]} --out FOLDER

{_steps(run, spec)}{_time(run)}.{"" if "n_pairs" in spec else " " + _lists(run, spec)}{_checks(run)}
Accuracy over the whole vocabulary on 200 fixed prompts each{_more(run)}:

{_table(run)}{_by_function(run) if "by_function" in run else ""}{channel}

Loads in plain `transformers`, and by `talking_heads_utils.models.load_model`. This is a toy: no result on it is a
result on GPT-2{" or on Llama" if "n_pairs" in spec else ""}.
"""


def _by_function(run: dict) -> str:
    """Accuracy after all examples, a by b, held-out functions in brackets."""
    rows = run["by_function"]
    every_b = sorted({row["b"] for row in rows})
    lines = [["a \\ b", *map(str, every_b)], ["---"] * (len(every_b) + 1)]
    for a in sorted({row["a"] for row in rows}):
        cells = {row["b"]: f"[{row['accuracy']:.2f}]" if row["held_out"] else f"{row['accuracy']:.2f}"
                 for row in rows if row["a"] == a}  # fmt: skip
        lines.append([str(a), *(cells[b] for b in every_b)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n\nAfter all examples, function by function, 20 prompts each; in brackets functions held out:\n\n{table}"


def _channel(measured: Mapping[str, Any]) -> str:
    """Which heads inhibit the mover, by what their absence does to it, through which components and directions."""
    heads, title = measured["inhibition_heads"], "## Its channel, as chapter 1 measures it"
    if not heads:
        return f"\n\n{title}\n\nNo head inhibits a mover here, so there is no channel to measure."
    score, order = measured["inhibition_score"], measured["agreement"]
    how = f"Lists of {measured['n_items']}, {score['n']} held-out prompts, seed {measured['prompts_seed']}"
    told = (
        f"{how}; weights with {measured['processing']}.",
        f"* I(m) of {', '.join(measured['movers'])}: {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}].",
        f"* Directions by which the heads below together speak to its query, for 90% of their effect: "
        f"{measured['dimension'] or 'more than 8'}.",
        f"* Rank correlation of scores and effects (cross-validated), all components: {order['spearman']:.2f} "
        f"[{order['low']:.2f}, {order['high']:.2f}]; in random bases of each head {order['rotated']:.2f}.",
        f"* Score of a random direction: {heads[0]['null']:.3f} (root mean square).",
    )
    columns = ("head", "change of I(m) without it", "components for 90%", "scores of its strongest components")
    rows = [columns, ("---",) * 4, *map(_head, heads)]
    return "\n".join(("\n", title, "", told[0], "", *told[1:], "", *(f"| {' | '.join(row)} |" for row in rows)))


def _head(head: Mapping[str, Any]) -> tuple[str, ...]:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in head["scores"].items())
    return head["head"], f"{head['change']:.3f}", str(head["components"] or "more than 8"), scores


def _functions(spec: dict) -> str:
    noise = f"Every label shown is replaced with probability {spec['noise']}." if spec["noise"] else "Labels are exact."
    return (
        f"functions y = a x + b learned in context: a in 1..{spec['n_a']}, b in 0..{spec['n_b'] - 1}, x in "
        f"0..{spec['n_x'] - 1}, {spec['n_pairs']} examples and a question, a fifth of the functions held out. {noise} "
        f"Attention dropout {spec['dropout']} while it trained."
    )


def _lists_and_names(spec: dict) -> str:
    power = spec.get("length_power")
    often = f" Lists of n items were drawn as often as n to the power of {power:g}." if power else ""
    return f"the book's IOI and Laundry List prompts, all wordings.{often} {_constraint(spec)}"


def _constraint(spec: dict) -> str:
    if spec["keys"] == FREE:
        return "Nothing about it is constrained and nothing was planted: the negative control."
    return (
        f"Its paths are constrained, not its content: blocks below the last write to {spec['work']} dimensions, the "
        f"mover L{spec['n_layers'] - 1}H0 alone copies to the output, its keys read `{spec['keys']}` (see "
        "`talking_heads_utils/training/model.py`). Nothing was planted."
    )


def _steps(run: dict, spec: dict) -> str:
    rounds = run.get("rounds", 0)
    if not rounds:
        return f"Step {run['step']} of {spec['n_steps']}"
    more = f"{rounds} further round{'s' * (rounds > 1)} of {spec['round_steps']}"
    return f"Step {run['step']} of {spec['n_steps'] + rounds * spec['round_steps']} ({spec['n_steps']} and {more})"


def _checks(run: dict) -> str:
    return f"\n{rounds_told(run)}" if run.get("checks") else ""


def rounds_told(run: dict) -> str:
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


def _stopped(run: dict) -> str:
    *before, last = run["checks"]
    if run["stage"] != FINAL:
        return "It was still going on."
    if min(last["accuracy"].values()) >= CHECKED:
        return "That was reached."
    if before and not last["loss"] < before[-1]["loss"]:
        return "So it had stopped improving; the weights are those after that round."
    return "It was still improving when its rounds were used up."


def _time(run: dict) -> str:
    return f", after {run['minutes']:.0f} minutes of training" if run.get("minutes", 0.0) >= 0.5 else ""


def _lists(run: dict, spec: dict) -> str:
    if run["complete_at"] is None:
        return f"Lists grew to {run['longest']} items of {spec['n_items']} wanted; longer ones were never trained on."
    return f"Lists grew to {run['longest']} items, which were in training from step {run['complete_at']} on."


def trained(folders: Mapping[str, Path]) -> pd.DataFrame:
    """One row per trained checkpoint, out of its training.json: seed, step, and accuracy on IOI and by list length."""
    import pandas as pd

    rows = []
    for name, folder in folders.items():
        run = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        rows.append({"model": name, "seed": run["seed"], "step": run["step"], **run["accuracy"]})
    return pd.DataFrame(rows)


def _more(run: dict) -> str:
    if "last" in run:
        return f"; last row: this checkpoint on {run['last']['n']:,} others"
    return ", after k examples"


def _table(run: dict) -> str:
    """Every thousandth step and the checkpoint's own."""
    log = [entry for entry in run["log"] if entry["step"] % 1000 == 0 and entry["step"] < run["step"]]
    log.append(dict(step=run["step"], loss=run["running_loss"], accuracy=run["accuracy"]))
    lengths = list(run["accuracy"])
    rows = [["step", "loss", *lengths], ["---"] * (len(lengths) + 2)]
    rows += [[str(e["step"]), f"{e['loss']:.3f}", *(f"{e['accuracy'][name]:.1%}" for name in lengths)] for e in log]
    if "last" in run:
        last = run["last"]["accuracy"]
        rows.append([f"{run['last']['n']:,} others", "", *(f"{last[name]:.1%}" for name in lengths)])
    if "exact_reader" in run:
        rows.append(["exact reader", "", *(f"{run['exact_reader'][name]:.1%}" for name in lengths)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
