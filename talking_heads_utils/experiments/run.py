"""Running experiments one after the other: what is finished is kept and not run again, and time left is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from talking_heads_utils import batches, resume
from talking_heads_utils.cluster import Unit, run_units
from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments import store
from talking_heads_utils.experiments.catalogue import BY_NAME, EXPERIMENTS
from talking_heads_utils.experiments.context import GATE, ROLES, Context, Experiment
from talking_heads_utils.known import known_models


def chosen(chapters: Sequence[int], *, of_own: bool = False) -> list[Experiment]:
    """The experiments of some chapters. of_own: those that the book's own models go through.

    Raises :class:`OptionError` for a chapter that is not there.
    """
    known = sorted({e.chapter for e in EXPERIMENTS})
    if bad := [c for c in chapters if c not in known]:
        raise OptionError(f"There is no chapter {bad[0]}: {known[0]} to {known[-1]}.")
    return [e for e in EXPERIMENTS if e.chapter in chapters and (e.of_own or not of_own)]


# What an experiment reads of others, beside the gate and the roles, which all do.
READS = {"edit-tried": ("edit-gains",), "edit-costs": ("edit-gains", "words"), "edit-baked": ("edit-gains",)}
FIRST = (GATE, ROLES, "tasks")


def reproduce(
    c: Context,
    experiments: Sequence[Experiment],
    root: Path,
    say: Callable[[str], None] = print,
    ray: str | None = None,
) -> tuple[Path, dict[str, Exception]]:
    """Run what is not there yet, and again what was made by other code or from other texts; ``(folder, errors by
    experiment)``.

    ray: the address of a Ray whose workers share the experiments; None: in this process, one after the other.
    An experiment that the model cannot do is finished: its result says so. Any other error is said, and the other
    experiments go on. Raises :class:`OptionError` where results of another run are in the way.
    """
    results = store.store_of(c, root)
    keys = {e.name: store.key_of(e, c) for e in experiments}
    names = set(results.left(list(keys), keys=keys))
    left = [e for e in experiments if e.name in names]
    stale = [e.name for e in left if results.path(e.name).exists()]
    c.finished = lambda name: store.table_in(results, name, c)
    say(f"{results.folder}: {len(experiments) - len(left)} of {len(experiments)} experiments are there")
    if stale:
        say(f"made by other code or from other texts, and made again: {', '.join(stale)}")
    failed = _in_turn(c, left, results, say) if ray is None else _on_ray(c, left, results, say, ray)
    return results.folder, failed


def _in_turn(
    c: Context, left: Sequence[Experiment], results: resume.Store, say: Callable[[str], None]
) -> dict[str, Exception]:
    started, total, done, failed, chapter = time.perf_counter(), sum(e.weight for e in left), 0.0, {}, None
    for i, experiment in enumerate(left, 1):
        if experiment.chapter != chapter:
            c.forget()
            chapter = experiment.chapter
        said = f"{i}/{len(left)} {experiment.name} ({experiment.about})"
        try:
            said += _one(c, experiment, results, say)
        except Exception as error:  # whatever it is, it is this experiment's alone
            failed[experiment.name] = error
            said += f": {type(error).__name__}, {error}"
        done += experiment.weight
        spent = time.perf_counter() - started
        say(f"{said}; {spent:.0f} s, about {spent * (total - done) / done:.0f} s left")
    return failed


def _on_ray(
    c: Context, left: Sequence[Experiment], results: resume.Store, say: Callable[[str], None], ray: str
) -> dict[str, Exception]:
    """Those that others read first, the heaviest before the rest."""
    if not left:
        return {}
    fresh = Context(c.model, c.seed, c.quick, c.device, c.dtype, c.texts, own=c.own)
    root = results.folder.absolute()
    order = sorted(left, key=lambda e: (e.name not in FIRST, bool(READS.get(e.name)), -e.weight))
    units = [Unit(e.name, _elsewhere, (fresh, e.name, replace(results, folder=root)), _before(e.name)) for e in order]
    known = known_models().get(c.model)
    memory = int(2e9 * known.gigabytes(c.dtype)) if known else 0
    return run_units(units, ray, say, gpus=int(c.device != "cpu"), memory=memory)


def _before(name: str) -> tuple[str, ...]:
    return FIRST[: FIRST.index(name)] if name in FIRST else (*FIRST, *READS.get(name, ()))


_HERE: list[tuple[Context, Context]] = []  # on a worker: what it was given, and the same with its model loaded


def _elsewhere(fresh: Context, name: str, results: resume.Store) -> None:
    """One experiment on a worker, which keeps the model for the next one."""
    if not _HERE or _HERE[0][0] != fresh:
        _HERE[:] = [(fresh, replace(fresh))]
    c = _HERE[0][1]
    c.finished = lambda name: store.table_in(results, name, c)
    c.forget()
    experiment = BY_NAME[name]
    if results.stale(name, store.key_of(experiment, c)) is not None:
        _one(c, experiment, results, print)


def _one(c: Context, experiment: Experiment, results: resume.Store, say: Callable[[str], None]) -> str:
    """Run and store one experiment; what there is to say, where it is not possible with this model."""
    import pandas as pd

    started, reason, table = time.perf_counter(), None, pd.DataFrame()
    try:
        table = batches.halving(lambda: experiment.table(c), say)
    except NotApplicable as error:
        reason = str(error)
    store.save(results, experiment, c, table, time.perf_counter() - started, reason)
    return f": not possible, {reason}" if reason else ""
