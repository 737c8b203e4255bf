"""Finished experiments below ``data/results/<model>/``: what they depend on, and whether they may be shown.

A model's folder is a :class:`~talking_heads_utils.resume.Store`. Its plan is the run: model, recipe, seed. What a
single table depends on beyond that, its code and its texts, stands in its note; a table made for other code or texts
is stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talking_heads_utils.errors import NotApplicable, OptionError, ResultError
from talking_heads_utils.experiments.catalogue import BY_NAME, EXPERIMENTS
from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.corpus import OWN_TEXTS, texts_sum
from talking_heads_utils.experiments.result_files import results_folder, shown
from talking_heads_utils.experiments.source_sum import source_sum
from talking_heads_utils.files import data_dir
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, is_real, known_models, shipped_models
from talking_heads_utils.models import find_checkpoint, load_tokenizer
from talking_heads_utils.prompts.prefix import prefix_of
from talking_heads_utils.resume import Store
from talking_heads_utils.weights.heads import NO_NORM, Processing

if TYPE_CHECKING:
    import pandas as pd

QUICK = "-quick"  # ends the name of a folder that no page reads
RUN = "reproduce"  # in a plan, of what kind the run is


@dataclass(frozen=True)
class Finished:
    """One experiment's table, empty where it could not be had, which ``about["not_possible"]`` then explains.

    about: the run's plan and the table's note. stale: what has changed since, such as ``["source"]``.
    """

    about: Mapping[str, Any]
    table: pd.DataFrame
    stale: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """Why there is no table; None where there is one."""
        return self.about["not_possible"]

    def describe(self) -> str:
        """How it was made, as one line to stand under a figure; where the code has changed since, that as well."""
        a = self.about
        where = a["machine"]["gpu"] or a["machine"]["cpu"]
        revision = f", revision {a['revision']}" if a["revision"] else ""
        old = " (made by earlier code)" if self.stale else ""
        return (
            f"{a['shows']}{revision}, {a['dtype']}, {a['processing']}; seed {a['seed']}; {a['seconds']:.0f} s on "
            f"{where}; talking-heads-utils {a['versions']['talking-heads-utils']}, torch {a['versions']['torch']}{old}"
        )


def plan_of(c: Context) -> dict[str, Any]:
    """What all tables of a run depend on. A folder is known by the sum of its files."""
    if planted := c.model in (PLANTED, CONTROL):
        revision, checkpoint, norm = None, None, NO_NORM
    else:
        found = find_checkpoint(c.model)
        revision, norm = found.revision, found.family.norm
        revision = None if c.model == GPT2_WEIGHTS else revision  # a folder or the Hub's: known by its sum
        checkpoint = found.sha256() if revision is None else None
    return {
        "run": RUN,
        "model": c.model if revision or c.model in shipped_models() or planted else Path(c.model).name,
        "revision": revision, "checkpoint": checkpoint, "processing": Processing.default(norm).describe(),
        "dtype": str(c.dtype).removeprefix("torch."), "seed": c.seed, "quick": c.quick,
        "prefix": prefix_of(load_tokenizer(PLANTED if planted else c.model)),
    }  # fmt: skip


def store_of(c: Context, root: Path) -> Store:
    """Where a context's tables go: what no page may show as a real model's whole run has a folder of another name."""
    plan = plan_of(c)
    folder = results_folder(root, c.model, plan["revision"])
    return Store(folder.with_name(folder.name + QUICK) if c.quick else folder, plan)


def key_of(experiment: Experiment, c: Context) -> dict[str, Any]:
    """What a table depends on beyond the plan: the sum of its code and, where it reads running text, of that."""
    source = c.text_source
    texts = (texts_sum(source) if source else OWN_TEXTS) if experiment.reads_texts else None
    return {"source": source_sum(experiment.module), "texts": texts}


def save(store: Store, experiment: Experiment, c: Context, table: pd.DataFrame, seconds: float,
         not_possible: str | None = None) -> Path:  # fmt: skip
    """Write one finished experiment. Returns the table's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.part(experiment.name, c.device) as part:
        plain = pa.Table.from_pandas(table.reset_index(drop=True), preserve_index=False)
        pq.write_table(plain, part.file, compression="zstd")
        part.note |= key_of(experiment, c) | {
            "experiment": experiment.name, "chapter": experiment.chapter, "rows": len(table),
            "shows": ("quick run of " if c.quick else "") + shown(c.model, store.plan["revision"]),
            "seconds": round(seconds, 1), "not_possible": not_possible,
        }  # fmt: skip
    return store.path(experiment.name)


def load(store: Store, experiment: Experiment) -> Finished:
    """Read one finished experiment. Raises :class:`ResultError` for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = store.note(experiment.name)
    try:
        table = pq.read_table(store.path(experiment.name)).to_pandas()
        changed = () if note["source"] == source_sum(experiment.module) else ("source",)
        return Finished({**store.plan, **note, "not_possible": note["not_possible"]}, table, changed)
    except (KeyError, OSError, pa.ArrowException) as error:
        raise ResultError(f"{store.path(experiment.name)} is no result of `reproduce` ({error!r}).") from error


def table_in(store: Store, name: str, c: Context) -> pd.DataFrame | None:
    """The table of an experiment of the same run, None where it is not done or stale. Raises :class:`NotApplicable`
    with its reason where the model could not go through it."""
    experiment = BY_NAME[name]
    if store.stale(name, key_of(experiment, c)) is not None:
        return None
    result = load(store, experiment)
    if result.reason:
        raise NotApplicable(result.reason)
    return result.table


def finished(model: str, root: Path | None = None) -> dict[str, Finished]:
    """A model's finished experiments by name, as a page may show them; those that are not there are left out.

    Raises :class:`ResultError` for one that is damaged, or quick, or of another model, revision or prefix than a real
    model's name stands for. One that the code has gone beyond says so (:attr:`Finished.stale`).
    """
    known = known_models().get(model)
    folder = results_folder(root or data_dir() / "results", model, known.revision if known else None)
    there = [e for e in EXPERIMENTS if (folder / f"{e.name}.json").exists()]
    if not there:
        return {}
    try:
        store = Store.of(folder)
    except OptionError as error:
        raise ResultError(f"{error} Run `reproduce` again.") from error
    plan = store.plan
    right = is_real(model, plan.get("revision")) if known else plan.get("revision") is None
    if plan.get("model") != model or not right or plan.get("quick") or (known and plan.get("prefix") != known.prefix):
        told = ", ".join(f"{name} {plan.get(name)!r}" for name in ("model", "revision", "prefix", "quick"))
        raise ResultError(f"{folder} is of {told}, which must not stand for {model} here. Run `reproduce` again.")
    return {e.name: load(store, e) for e in there}
