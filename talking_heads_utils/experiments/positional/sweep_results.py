"""A finished sweep as one small table, which is what the book keeps and reads: the chunks are too large for it.

``steering.parquet`` has a row for each setting; ``steering.json`` says how it was made and holds the sum of both, so
that the two cannot be of different sweeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talking_heads_utils import resume
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.positional.grid import ATTENTION
from talking_heads_utils.experiments.positional.sweep import ANSWER, MAX_WRITERS, Plan, read_plan
from talking_heads_utils.experiments.result_files import shown
from talking_heads_utils.experiments.rows import Row, column, frame, rows

if TYPE_CHECKING:
    import pandas as pd

FILE = "steering.parquet"


@dataclass(frozen=True)
class SweepRow(Row):
    """One setting of the grid; what was not read is empty."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    first: float = column("stream units", "added along the first writer's direction")
    second: float = column("stream units", "along the second's, 0 where there is none")
    third: float = column("stream units", "along the third's, 0 where there is none")
    attended: int | None = column("list index", "item with the most of the movers' attention, mean over lists")
    attention: float | None = column("share", "of the movers' attention to all items, that this one has")
    answer: int | None = column("list index", "item that is answered most often")
    answered: float | None = column("share", "lists answered with it")
    right: float | None = column("share", "lists answered rightly")
    n: int = column("prompts", "lists")


@dataclass(frozen=True)
class Sweep:
    """What is kept of a sweep. about: what it shows, its plan, what it was made with."""

    about: Mapping[str, Any]
    table: pd.DataFrame

    @cached_property
    def plan(self) -> Plan:
        return Plan(**self.about["plan"])

    def describe(self) -> str:
        """Where it comes from, as one line to stand under a figure."""
        plan, about = self.plan, self.about
        return (
            f"{about['shows']}, revision {plan.revision}, {plan.dtype}; along {', '.join(plan.writers)}; "
            f"{plan.n_settings:,} settings on {plan.n_prompts} prompts per list length, seed {plan.seed}; "
            f"{about['chunks_seconds'] / 60:.1f} minutes on {', '.join(about['machines'])}; talking-heads-utils "
            f"{plan.code}, torch {', '.join(about['torch'])}"
        )


def aggregate(folder: Path) -> Sweep:
    """The table of a finished sweep. Raises :class:`OptionError` where chunks are missing, :class:`ResultError` where
    one is damaged."""
    plan = read_plan(folder)
    store = plan.store(folder)
    if left := store.left(list(plan.chunks)):
        raise OptionError(f"{folder} lacks {len(left)} of {len(plan.chunks)} chunks, {left[0]} first: go on with it.")
    notes = [store.note(name) for name in plan.chunks]
    about = dict(
        shows=shown(plan.model, plan.revision),
        plan=asdict(plan),
        chunks_seconds=round(sum(note["seconds"] for note in notes), 3),
        machines=sorted({note["machine"]["gpu"] or note["machine"]["cpu"] for note in notes}),
        torch=sorted({note["versions"]["torch"] for note in notes}),
    )
    return Sweep(about, frame([row for n in plan.n_items for row in _rows(store, plan, n)], SweepRow))


def _rows(store: resume.Store, plan: Plan, n_items: int) -> Iterator[SweepRow]:
    """Of one list length, setting by setting."""
    seen, said = np.zeros((2, plan.n_settings, n_items))
    right = np.zeros(plan.n_settings)
    for name in (name for name, (n, _) in plan.chunks.items() if n == n_items):
        with np.load(store.path(name), allow_pickle=False) as chunk:
            if plan.movers:
                seen += chunk[ATTENTION].astype(np.float32).mean(2).sum(0)
            if plan.logits:
                said += (chunk[ANSWER][..., None] == np.arange(n_items)).sum(0)
                right += (chunk[ANSWER] == chunk["list_index"][:, None]).sum(0)
    n, none = plan.n_prompts, [None] * plan.n_settings
    attention = [seen.argmax(1).tolist(), (seen.max(1) / n).tolist()] if plan.movers else [none] * 2
    answers = [said.argmax(1), said.max(1) / n, right / n] if plan.logits else None
    columns = [*attention, *([values.tolist() for values in answers] if answers else [none] * 3)]
    for alphas, *found in zip(plan.settings.tolist(), *columns):
        yield SweepRow(plan.model, n_items, *[*alphas, *[0.0] * (MAX_WRITERS - len(alphas)), *found, n])


def save(sweep: Sweep, folder: Path) -> Path:
    """Write both files. Returns the path of the table."""
    path = Path(folder) / FILE
    with resume.written(path) as part:
        sweep.table.to_parquet(part.file, compression="zstd", index=False)
        part.note |= sweep.about
    return path


def load(path: Path) -> Sweep:
    """Read what :func:`save` wrote. Raises :class:`ResultError` for one that is missing, damaged or of another
    format."""
    import pandas as pd

    about = resume.read_note(path)
    try:
        sweep = Sweep(about, frame(rows(pd.read_parquet(path), SweepRow), SweepRow))
        sweep.plan  # noqa: B018  whether it is one
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OptionError, ResultError) as error:
        raise ResultError(f"{path} is no result of a sweep ({error}). Make it again.") from error
    return sweep
