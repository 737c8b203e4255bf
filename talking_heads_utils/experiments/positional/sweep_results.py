"""A finished sweep in two small files, which is what the book keeps and reads: the chunks are too large for it.

``steering.npz`` holds means over prompts and who is right; ``steering.json`` says how it was made and holds the sum of
both, so that the two cannot be of different sweeps. A control along random directions is called
``steering-random<seed>``.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from talking_heads_utils import resume
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.positional.sweep import SUFFIX, Plan, read_plan, save_arrays
from talking_heads_utils.experiments.result_files import results_folder, shown
from talking_heads_utils.files import data_dir
from talking_heads_utils.forward.steer import ATTENTION, LOGITS
from talking_heads_utils.models import is_real, known_models

FORMAT = 2
STEERING = "steering"
STEPS = 10_000  # attention is kept in steps of 1 / 10,000


class Traversal(NamedTuple):
    """Mean attention of a mover to each item over a grid of three alphas, and the values of each axis."""

    attention: np.ndarray  # [v, v, v, n_items]
    values: Sequence[float]


@dataclass(frozen=True)
class Result:
    """What is kept of a sweep.

    about: format, what it shows, plan, what it was made with. arrays: by list length n, ``n/list_index`` and
    ``n/held_out`` of each prompt; with movers ``n/attention`` ``[n_settings, n_movers, n]``, mean over all prompts in
    steps of 1 / 10,000; with logits ``n/right``, of each prompt a bit for each setting.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @cached_property
    def plan(self) -> Plan:
        return Plan(**self.about["plan"])

    @property
    def experiment(self) -> str:
        return STEERING if self.plan.random is None else f"{STEERING}-random{self.plan.random}"

    def traversal(self, mover: str, n_items: int) -> Traversal:
        """Mean attention to each item over the grid."""
        if mover not in self.plan.movers:
            raise OptionError(f"This sweep of {self.plan.model} holds no attention of {mover}.")
        flat = self._of(n_items, ATTENTION)[:, self.plan.movers.index(mover)] / STEPS
        grid = [len(self.plan.values)] * len(self.plan.writers)
        return Traversal(flat.reshape(*grid, n_items), self.plan.values)

    def right(self, n_items: int) -> np.ndarray:
        """Whether each prompt is answered under each setting, ``[n, n_settings]``."""
        return np.unpackbits(self._of(n_items, "right"), axis=1, count=self.plan.n_settings).astype(bool)

    def _of(self, n_items: int, name: str) -> np.ndarray:
        if (key := f"{n_items}/{name}") not in self.arrays:
            raise OptionError(f"This sweep of {self.plan.model} holds no {name} for lists of {n_items}.")
        return self.arrays[key]

    def describe(self) -> str:
        """Where it comes from, as one line to stand under a figure."""
        plan, made = self.plan, self.about["made"]
        machines = ", ".join(dict.fromkeys(m["machine"]["gpu"] or m["machine"]["cpu"] for m in made))
        versions = ", ".join(dict.fromkeys(m["versions"]["torch"] for m in made))
        minutes = sum(m["seconds"] for m in made) / 60
        along = f"random directions (seed {plan.random})" if plan.random is not None else ", ".join(plan.writers)
        return (
            f"{self.about['shows']}, revision {plan.revision}, {plan.dtype}; along {along}; {plan.n_settings:,} "
            f"settings on {plan.n_prompts} prompts per list length, seed {plan.seed}; {minutes:.1f} minutes on "
            f"{machines}; talking-heads-utils {plan.code}, torch {versions}"
        )


def aggregate(folder: Path) -> Result:
    """Reduce a finished sweep. Raises :class:`OptionError` for one that is not finished, :class:`ResultError` naming a
    damaged chunk."""
    plan = read_plan(folder)
    store = plan.store(folder)
    if left := store.left(list(plan.chunks)):
        raise OptionError(f"{len(left)} chunks of {folder} are missing. Run the sweep again to finish it.")
    about = dict(format=FORMAT, shows=shown(plan.model, plan.revision), plan=asdict(plan), made=_made(store, plan))
    arrays = {f"{n}/{name}": values for n in plan.n_items for name, values in _reduced(store, plan, n).items()}
    return Result(json.loads(json.dumps(about)), arrays)


def _reduced(store: resume.Store, plan: Plan, n_items: int) -> dict[str, np.ndarray]:
    total, parts = np.zeros((plan.n_settings, len(plan.movers), n_items)), []
    for name in (name for name, (n, _) in plan.chunks.items() if n == n_items):
        with np.load(store.path(name), allow_pickle=False) as chunk:
            part = {key: chunk[key] for key in ("list_index", "held_out")}
            if plan.movers:
                total += chunk[ATTENTION].astype(np.float32).sum(0)
            if plan.logits:
                part["right"] = np.packbits(_right(chunk[LOGITS], part["list_index"]), axis=1)
            parts.append(part)
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return found | ({ATTENTION: np.rint(total / plan.n_prompts * STEPS).astype(np.uint16)} if plan.movers else {})


def _right(logits: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Whether the answer alone has the largest logit, ``[n, n_settings]``: a tie is no answer."""
    own = logits[np.arange(len(logits)), :, index]
    return (own >= logits.max(2)) & ((logits >= own[..., None]).sum(2) == 1)


def _made(store: resume.Store, plan: Plan) -> list[dict[str, Any]]:
    """Machines and versions that made the chunks, each with its seconds and how many chunks it made."""
    seconds: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for note in map(store.note, plan.chunks):
        key = json.dumps({name: note[name] for name in ("machine", "versions")})
        seconds[key] += note["seconds"]
        chunks[key] += 1
    return [json.loads(key) | {"seconds": round(seconds[key], 3), "chunks": chunks[key]} for key in seconds]


def save(result: Result, folder: Path) -> Path:
    """Write both files. Returns the path of the arrays."""
    path = Path(folder) / f"{result.experiment}{SUFFIX}"
    with resume.written(path) as part:
        save_arrays(part.file, result.arrays)
        part.note.update(result.about)
    return path


def load(path: Path) -> Result:
    """Read a result. Raises :class:`ResultError` for one that is missing, damaged or of another format."""
    about = resume.read_note(path)
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}")
        with np.load(path, allow_pickle=False) as arrays:
            result = Result(about, dict(arrays))
        result.plan  # noqa: B018  whether it is one
    except (OSError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ResultError(f"{path} is no result of a sweep ({error}). Make it again.") from error
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
    first = folder / f"{STEERING}{SUFFIX}"
    if not first.exists() and not first.with_suffix(".json").exists():
        return None
    own, *controls = map(load, (first, *sorted(folder.glob(f"{STEERING}-random*{SUFFIX}"))))
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
            raise ResultError(f"{folder} holds a control of another sweep: {control.experiment}. Make it again.")
    return Finished(own, tuple(controls))


def not_run(model: str, n_controls: int = 2) -> str:
    """The commands that make a real model's sweep and its controls."""
    folder = f"runs/{model.rsplit('/', 1)[-1]}"
    start = f"python -m talking_heads_utils sweep --model {model} --n-items 5,10,20 --logits"
    runs = [("", folder), *((f" --random {seed}", f"{folder}-random{seed}") for seed in range(1, n_controls + 1))]
    return "\n".join(f"{start}{random} \\\n    --out {out} --results data/results" for random, out in runs)
