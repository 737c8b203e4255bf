"""A finished sweep in two small files, which is what the book keeps and reads: the chunks are too large for it.

``steering.parquet`` has a row per list length, place and setting; ``steering.json`` says how it was made and holds the
sum of both, so that the two cannot be of different sweeps. A control sweep along random directions is called
``steering-random<seed>``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments import result_files
from talking_heads_utils.experiments.positional.sweep import (
    Plan,
    chunk_file,
    missing,
    note_file,
    read_chunk,
    read_note,
    read_plan,
)
from talking_heads_utils.experiments.result_files import FORMAT, results_folder, shown
from talking_heads_utils.files import data_dir
from talking_heads_utils.models import is_real, known_models
from talking_heads_utils.steer import ATTENTION, LOGITS

if TYPE_CHECKING:
    import pyarrow as pa

STEERING = "steering"
STEPS = 10_000  # attention is kept in steps of 1 / 10,000
ON_ANSWER = "attention on the answer"
AGAIN = "Make it again with `merge FOLDER --results ...`, or check it out again."
KEYS = ("n_items", "place", "setting")


@dataclass(frozen=True)
class Result:
    """What is kept of a sweep.

    about: format, what it shows, plan, the answers' places and halves by list length, what it was made with.
    table: columns ``n_items, place, setting``; per mover ``attention:L9H9``, mean over all prompts of its attention to
    the item at that place, and ``attention on the answer:L9H9``, over the prompts whose answer is there (null without
    any), both in steps of 1 / 10,000; with logits ``right``, a bit for each of those prompts.
    """

    about: Mapping[str, Any]
    table: pa.Table

    @cached_property
    def plan(self) -> Plan:
        return Plan(**self.about["plan"])

    @property
    def n_settings(self) -> int:
        return len(self.plan.values) ** len(self.plan.writers)

    def places(self, n_items: int) -> np.ndarray:
        """Place of each prompt's answer, ``[n]``."""
        return np.array(self.about["prompts"][str(n_items)]["place"])

    def held_out(self, n_items: int) -> np.ndarray:
        """Whether each prompt is in the held-out half, ``[n]``."""
        return np.array(self.about["prompts"][str(n_items)]["held_out"], dtype=bool)

    def attention(self, mover: str, n_items: int) -> np.ndarray:
        """Mean attention to each place over the grid, ``[v, v, v, n_items]`` for three writers."""
        flat = self._rows(n_items, f"{ATTENTION}:{mover}").to_numpy().reshape(n_items, -1).T / STEPS
        return flat.reshape(*[len(self.plan.values)] * len(self.plan.writers), n_items)

    def on_answer(self, mover: str, n_items: int) -> np.ndarray:
        """Mean attention to the answer by its place and setting, ``[n_items, n_settings]``; NaN where there is none."""
        values = self._rows(n_items, f"{ON_ANSWER}:{mover}").to_numpy(zero_copy_only=False)
        return values.reshape(n_items, -1) / STEPS

    def right(self, n_items: int) -> np.ndarray:
        """Whether each prompt is answered under each setting, ``[n, n_settings]``."""
        places = self.places(n_items)
        found = np.zeros((len(places), self.n_settings), dtype=bool)
        packed = self._rows(n_items, "right").to_pylist()
        for place in range(n_items):
            at = np.flatnonzero(places == place)
            rows = np.frombuffer(b"".join(packed[place * self.n_settings : (place + 1) * self.n_settings]), np.uint8)
            if len(at):
                found[at] = np.unpackbits(rows.reshape(self.n_settings, -1), axis=1, count=len(at)).T
        return found

    def _rows(self, n_items: int, column: str) -> pa.Array:
        if n_items not in self.plan.n_items or column not in self.table.column_names:
            raise OptionError(f"This sweep of {self.plan.model} holds no {column} for lists of {n_items}.")
        start = self.n_settings * sum(n for n in self.plan.n_items if n < n_items)
        return self.table[column].slice(start, self.n_settings * n_items).combine_chunks()

    def describe(self) -> str:
        """Where it comes from, as one line to stand under a figure."""
        plan, made = self.plan, self.about["made"]
        machines = ", ".join(dict.fromkeys(m["machine"]["gpu"] or m["machine"]["cpu"] for m in made))
        torch = ", ".join(dict.fromkeys(m["versions"]["torch"] for m in made))
        minutes = sum(m["seconds"] for m in made) / 60
        along = f"random directions (seed {plan.random})" if plan.random is not None else ", ".join(plan.writers)
        return (
            f"{self.about['shows']}, revision {plan.revision}, {plan.dtype}; along {along}; {self.n_settings:,} "
            f"settings on {plan.n_prompts} prompts per list length, seed {plan.seed}; {minutes:.1f} minutes on "
            f"{machines}; talking-heads-utils {plan.code}, torch {torch}"
        )


def aggregate(folder: Path) -> Result:
    """Reduce a finished sweep. Raises :class:`OptionError` for one that is not finished."""
    import pyarrow as pa

    if left := missing(folder):
        raise OptionError(f"{len(left)} chunks of {folder} are missing. Run the sweep again to finish it.")
    plan = read_plan(folder)
    found = {str(n_items): _reduced(folder, plan, n_items) for n_items in sorted(plan.n_items)}
    about = {
        "format": FORMAT, "experiment": experiment(plan), "shows": shown(plan.model, plan.revision),
        "plan": asdict(plan), "prompts": {n: prompts for n, (prompts, _) in found.items()},
        "made": _made(folder, plan),
    }  # fmt: skip
    return Result(json.loads(json.dumps(about)), pa.concat_tables([table for _, table in found.values()]))


def experiment(plan: Plan) -> str:
    return STEERING if plan.random is None else f"{STEERING}-random{plan.random}"


def _reduced(folder: Path, plan: Plan, n_items: int) -> tuple[dict[str, list], pa.Table]:
    """One list length: the prompts' places and halves, and the rows of the table."""
    import pyarrow as pa

    n_settings = len(plan.values) ** len(plan.writers)
    movers = plan.movers if ATTENTION in plan.read else ()
    sums = {m: (np.zeros((n_items, n_settings)), np.zeros((n_items, n_settings))) for m in movers}
    places, held_out, right = [], [], []
    for chunk in (chunk for chunk in plan.chunks if chunk[0] == n_items):
        table = read_chunk(chunk_file(folder, chunk), plan, chunk)
        here = table["place"].to_numpy()[::n_settings]
        places += here.tolist()
        held_out += table["held_out"].to_numpy()[::n_settings].tolist()
        for mover, (everywhere, on_answer) in sums.items():
            values = _values(table, f"{ATTENTION}:{mover}", len(here), n_settings, n_items)
            everywhere += values.sum(0).T
            np.add.at(on_answer, here, values[np.arange(len(here)), :, here])
        if LOGITS in plan.read:
            right.append(_right(_values(table, LOGITS, len(here), n_settings, n_items), here))
    count = np.bincount(places, minlength=n_items)
    columns = {
        "n_items": pa.array(np.full(n_items * n_settings, n_items, np.int8)),
        "place": pa.array(np.repeat(np.arange(n_items, dtype=np.int8), n_settings)),
        "setting": pa.array(np.tile(np.arange(n_settings, dtype=np.int32), n_items)),
    }
    for mover, (everywhere, on_answer) in sums.items():
        columns[f"{ATTENTION}:{mover}"] = _steps(everywhere / len(places))
        columns[f"{ON_ANSWER}:{mover}"] = _steps(on_answer / np.maximum(count, 1)[:, None], count == 0)
    if right:
        columns["right"] = _bits(np.concatenate(right), np.array(places), n_items)
    return {"place": places, "held_out": held_out}, pa.table(columns)


def _values(table: pa.Table, name: str, n: int, n_settings: int, n_items: int) -> np.ndarray:
    flat = table[name].combine_chunks().values.to_numpy(zero_copy_only=False)
    return flat.reshape(n, n_settings, n_items).astype(np.float32)


def _right(logits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the answer alone has the largest logit, ``[n, n_settings]``: a tie is no answer."""
    own = logits[np.arange(len(logits)), :, places]
    return (own >= logits.max(2)) & ((logits >= own[..., None]).sum(2) == 1)


def _steps(values: np.ndarray, empty: np.ndarray | None = None) -> pa.Array:
    import pyarrow as pa

    mask = None if empty is None else np.repeat(empty, values.shape[1])
    return pa.array(np.rint(values * STEPS).astype(np.uint16).ravel(), mask=mask)


def _bits(right: np.ndarray, places: np.ndarray, n_items: int) -> pa.Array:
    """Per place and setting, a bit for each prompt whose answer is there, in the order of the prompts."""
    import pyarrow as pa

    packed = [np.packbits(right[places == place].T, axis=1) for place in range(n_items)]
    return pa.array([row.tobytes() for rows in packed for row in rows], type=pa.binary())


def _made(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Machines and versions that made the chunks, each with its seconds and how many chunks it made."""
    seconds: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for chunk in plan.chunks:
        note = read_note(note_file(folder, chunk))
        key = json.dumps({name: note[name] for name in ("machine", "versions")})
        seconds[key] += note["seconds"]
        chunks[key] += 1
    return [json.loads(key) | {"seconds": round(seconds[key], 3), "chunks": chunks[key]} for key in seconds]


def save(result: Result, folder: Path) -> Path:
    """Write both files. Returns the table's path."""
    path = Path(folder) / f"{result.about['experiment']}.parquet"
    deltas = {name: "DELTA_BINARY_PACKED" for name in result.table.column_names if name not in (*KEYS[:2], "right")}
    return result_files.write(
        result.about, result.table, path, compression_level=15, use_dictionary=[*KEYS[:2], "right"],
        column_encoding=deltas,
    )  # fmt: skip


def load(path: Path) -> Result:
    """Read ``steering.json`` and the table beside it.

    Raises :class:`ResultError` for a file that is missing, damaged or of another format.
    """
    about, table = result_files.read(path, AGAIN)
    try:
        result = Result(about, table)
        rows = result.n_settings * sum(result.plan.n_items)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultError(f"{path} is no whole result ({error!r}). {AGAIN}") from error
    if len(table) != rows:
        raise ResultError(f"{path} and the table beside it are damaged, or not of one result. {AGAIN}")
    return result


@dataclass(frozen=True)
class Finished:
    """A known real model's sweep and its controls along random directions."""

    own: Result
    controls: tuple[Result, ...]


def load_real(model: str, root: Path | None = None) -> Finished | None:
    """The finished sweeps of a known real model; None where there are none.

    root: the folder of all results, by default the book's. Raises :class:`ResultError` also for a result of another
    model, such as a toy or a rehearsal, or of another revision, and for a control that is not one of this sweep.
    """
    known = known_models()[model]
    folder = results_folder(root or data_dir() / "results", model, known.revision)
    if not (folder / f"{STEERING}.json").exists() and not (folder / f"{STEERING}.parquet").exists():
        return None
    own, *controls = [load(p) for p in (folder / f"{STEERING}.json", *sorted(folder.glob(f"{STEERING}-random*.json")))]
    for result in (own, *controls):
        if not is_real(result.plan.model, result.plan.revision) or result.plan.model != model:
            raise ResultError(
                f"{folder} holds a result of {result.about['shows']} (revision {result.plan.revision}), which must not "
                f"stand for {model} at {known.revision}. Remove it."
            )
    if len(own.plan.writers) != 3 or not own.plan.movers:
        raise ResultError(f"{folder} holds a sweep without a mover or three writers: there is nothing to traverse.")
    same = ("writers", "n_items", "n_prompts", "seed", "values")
    for control in controls:
        if control.plan.random is None or any(getattr(control.plan, f) != getattr(own.plan, f) for f in same):
            raise ResultError(f"{folder} holds a control of another sweep: {experiment(control.plan)}. Make it again.")
    return Finished(own, tuple(controls))


def not_run(model: str, n_controls: int = 2) -> str:
    """What a page says in place of a sweep that is not there: that it is not, and what makes it and its controls."""
    folder = f"runs/{model.rsplit('/', 1)[-1]}"
    start = f"python -m talking_heads_utils sweep --model {model} --n-items 5,10,20 --logits"
    runs = [("", folder), *((f" --random {seed}", f"{folder}-random{seed}") for seed in range(1, n_controls + 1))]
    lines = "\n".join(f"{start}{random} \\\n    --out {out} --results data/results" for random, out in runs)
    return f"**{model}: not run yet.** These make it and its controls:\n\n```bash\n{lines}\n```"
