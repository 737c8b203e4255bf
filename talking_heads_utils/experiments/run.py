"""Running experiments one after the other: what is finished is kept and not run again, and time left is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from talking_heads_utils import batches, resume
from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments import store
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context, Experiment


def chosen(chapters: Sequence[int], shard: tuple[int, int] = (0, 1), *, of_own: bool = False) -> list[Experiment]:
    """This shard's experiments of some chapters. Shards are cut so that each has about the same work. of_own: those
    that the book's own models go through.

    Raises :class:`OptionError` for a chapter or shard that is not there.
    """
    known = sorted({e.chapter for e in EXPERIMENTS})
    if bad := [c for c in chapters if c not in known]:
        raise OptionError(f"There is no chapter {bad[0]}: {known[0]} to {known[-1]}.")
    by_name = {e.name: e for e in EXPERIMENTS if e.chapter in chapters and (e.of_own or not of_own)}
    return [by_name[name] for name in resume.share({name: e.weight for name, e in by_name.items()}, shard)]


def reproduce(
    c: Context, experiments: Sequence[Experiment], root: Path, say: Callable[[str], None] = print
) -> tuple[Path, dict[str, Exception]]:
    """Run what is not there yet, and again what was made by other code or from other texts; ``(folder, errors by
    experiment)``.

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
    return results.folder, failed


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
