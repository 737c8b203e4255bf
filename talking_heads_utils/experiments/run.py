"""Running experiments one after the other: what is finished is kept and not run again, and time left is told."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from talking_heads_utils import batches
from talking_heads_utils.errors import (
    DownloadError,
    NotApplicable,
    OptionError,
    ResultError,
    TaskError,
    UnsupportedModelError,
)
from talking_heads_utils.experiments import store
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.files import written_whole


def chosen(chapters: Sequence[int], shard: tuple[int, int] = (0, 1), *, of_own: bool = False) -> list[Experiment]:
    """This shard's experiments of some chapters. Shards are cut so that each has about the same work. of_own: those
    that the book's own models go through.

    Raises :class:`OptionError` for a chapter or shard that is not there.
    """
    known = sorted({e.chapter for e in EXPERIMENTS})
    if bad := [c for c in chapters if c not in known]:
        raise OptionError(f"There is no chapter {bad[0]}: {known[0]} to {known[-1]}.")
    index, of = shard
    if not 0 <= index < of:
        raise OptionError(f"A shard is one of 0/{of} to {of - 1}/{of}, not {index}/{of}.")
    loads, mine = [0.0] * of, []
    mine_to_do = (e for e in EXPERIMENTS if e.chapter in chapters and (e.of_own or not of_own))
    for experiment in sorted(mine_to_do, key=lambda e: -e.weight):
        least = loads.index(min(loads))
        loads[least] += experiment.weight
        mine += [experiment] if least == index else []
    return sorted(mine, key=EXPERIMENTS.index)


def reproduce(
    s: Context, experiments: Sequence[Experiment], root: Path, say: Callable[[str], None] = print
) -> tuple[Path, list[str]]:
    """Run what is not there yet; ``(folder, what could not be finished and why)``.

    An experiment that the model cannot do (a tokenizer that splits numbers, no mover, another kind of attention) is
    finished: its result says so.
    Raises :class:`ResultError` where other results are in the way.
    """
    key = store.key_of(s)
    folder, failed = store.folder_of(root, s, key), []
    s.finished = lambda name: store.table_in(folder, name, key)
    left = [e for e in experiments if not store.is_done(folder / f"{e.name}.json", key | {"experiment": e.name})]
    say(f"{folder}: {len(experiments) - len(left)} of {len(experiments)} experiments are there; {store.shown(s, key)}")
    started, total, done, chapter = time.perf_counter(), sum(e.weight for e in left), 0.0, None
    for i, experiment in enumerate(left, 1):
        if experiment.chapter != chapter:
            s.forget()
            chapter = experiment.chapter
        try:
            found = _one(s, experiment, folder, key, say)
        except DownloadError as error:
            failed.append(f"{experiment.name}: {error}")
            found = "not finished"
        done += experiment.weight
        spent = time.perf_counter() - started
        remaining = spent * (total - done) / done
        said = f"{i}/{len(left)} {experiment.name} ({experiment.about})" + (f": {found}" if found else "")
        say(f"{said}; {spent:.0f} s, about {remaining:.0f} s left")
    return folder, failed


def _one(
    s: Context, experiment: Experiment, folder: Path, key: dict[str, Any], say: Callable[[str], None]
) -> str | None:
    """Run and store one experiment; what there is to say, where it is not possible with this model."""
    import pandas as pd

    started = time.perf_counter()
    reason, table = None, pd.DataFrame()
    try:
        table = batches.halving(lambda: experiment.table(s), say)
    except (NotApplicable, TaskError, OptionError, UnsupportedModelError) as error:
        reason = str(error)
    store.save(folder, experiment, key, s, table, time.perf_counter() - started, reason)
    return reason and f"not possible, {reason}"


def merge(parts: Sequence[Path], folder: Path) -> int:
    """Bring the results of several shards together; returns how many the folder then has.

    Raises :class:`ResultError` where parts are of different runs, or the folder holds another's; nothing is copied
    then.
    """
    found: dict[str, Path] = {}
    keys = []
    for path in (path for part in parts for path in sorted(Path(part).glob("*.json"))):
        about = store.load(path).about
        found.setdefault(about["experiment"], path)
        keys.append({name: about[name] for name in store.KEY if name != "experiment"})
    if not found or any(key != keys[0] for key in keys):
        raise ResultError("The parts are no results, or not of one run: model, seed, version or options differ.")
    for experiment in EXPERIMENTS:
        store.is_done(Path(folder) / f"{experiment.name}.json", keys[0] | {"experiment": experiment.name})
    for name, source in found.items():
        for suffix in (".parquet", ".json"):
            if source.parent != Path(folder):
                with written_whole(Path(folder) / f"{name}{suffix}") as part:
                    shutil.copyfile(source.with_suffix(suffix), part)
    return len(found)
