"""Finished experiments below ``data/results/<model>/``: what they are keyed by, and when they may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import talking_heads_utils
from talking_heads_utils.errors import NotApplicable, ResultError
from talking_heads_utils.experiments import result_files
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.corpus import texts_provenance
from talking_heads_utils.files import data_dir
from talking_heads_utils.models import PLANTED, find_checkpoint, is_real, known_models, load_tokenizer, shipped_models
from talking_heads_utils.prompts.prefix import prefix_of
from talking_heads_utils.provenance import machine, versions
from talking_heads_utils.weights.heads import NO_NORM, Processing

if TYPE_CHECKING:
    import pandas as pd

QUICK = "-quick"  # ends the name of a folder that no page reads
KEY = ("experiment", "model", "revision", "checkpoint", "processing", "dtype", "prefix", "seed", "quick", "texts",
       "code")  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """One experiment's table, empty where it could not be had, which ``about["not_possible"]`` then explains."""

    about: dict[str, Any]
    table: pd.DataFrame

    @property
    def reason(self) -> str | None:
        """Why there is no table; None where there is one."""
        return self.about["not_possible"]

    def describe(self) -> str:
        """How it was made, as one line to stand under a figure."""
        a = self.about
        where = a["machine"]["gpu"] or a["machine"]["cpu"]
        revision = f", revision {a['revision']}" if a["revision"] else ""
        return (
            f"{a['shows']}{revision}, {a['dtype']}, {a['processing']}; seed {a['seed']}; {a['seconds']:.0f} s on "
            f"{where}; talking-heads-utils {a['code']}, torch {a['versions']['torch']}"
        )


def key_of(s: Context) -> dict[str, Any]:
    """All that a subject's results depend on, but for the experiment. A folder is known by the sum of its files."""
    if s.model == PLANTED:
        revision, checkpoint, norm = None, None, NO_NORM
    else:
        found = find_checkpoint(s.model)
        revision, norm = found.revision, found.family.norm
        checkpoint = found.sha256() if revision is None else None
    return {
        "model": s.model if revision or s.model in shipped_models() or s.model == PLANTED else Path(s.model).name,
        "revision": revision, "checkpoint": checkpoint, "processing": Processing.default(norm).describe(),
        "dtype": str(s.dtype).removeprefix("torch."), "prefix": prefix_of(load_tokenizer(s.model)), "seed": s.seed,
        "quick": s.quick,
        "texts": texts_provenance(s.text_source) if s.text_source else None,
        "code": talking_heads_utils.__version__,
    }  # fmt: skip


def folder_of(root: Path, s: Context, key: dict[str, Any]) -> Path:
    """Where a subject's results go: what no page may show as a real model's whole run has a folder of another name."""
    folder = result_files.results_folder(root, s.model, key["revision"])
    return folder.with_name(folder.name + QUICK) if s.quick else folder


def save(folder: Path, experiment: Experiment, key: dict[str, Any], s: Context, table: pd.DataFrame, seconds: float,
         not_possible: str | None = None) -> Path:  # fmt: skip
    """Write one finished experiment. Returns the table's path."""
    import pyarrow as pa

    about = {
        "format": result_files.FORMAT, "experiment": experiment.name, **key, "chapter": experiment.chapter,
        "shows": shown(s, key), "rows": len(table), "not_possible": not_possible, "seconds": round(seconds, 1),
        "machine": machine(s.device), "versions": versions(),
    }  # fmt: skip
    plain = pa.Table.from_pandas(table.reset_index(drop=True), preserve_index=False)
    return result_files.write(about, plain, folder / f"{experiment.name}.parquet")


def shown(s: Context, key: dict[str, Any]) -> str:
    """What a figure of a result must say it shows."""
    return ("quick run of " if s.quick else "") + result_files.shown(s.model, key["revision"])


def load(path: Path) -> Finished:
    """Read one finished experiment. Raises :class:`ResultError` for a damaged one."""
    about, table = result_files.read(path, "Delete it and run `reproduce` again, or check it out again.")
    if lacking := [name for name in (*KEY, "shows", "not_possible", "machine", "versions") if name not in about]:
        raise ResultError(f"{path} is no experiment of `reproduce`: it lacks {', '.join(lacking)}.")
    return Finished(about, table.to_pandas())


def is_done(path: Path, key: dict[str, Any]) -> bool:
    """Whether this very result is there. Raises :class:`ResultError` if another one is in its place."""
    if not path.exists():
        return False
    about = load(path).about
    if changed := [f"{name} {about[name]!r}, not {value!r}" for name, value in key.items() if about[name] != value]:
        raise ResultError(
            f"{path} is of {'; '.join(changed)}. Nothing was overwritten: choose another --out, or remove that folder."
        )
    return True


def table_in(folder: Path, name: str, key: dict[str, Any]) -> pd.DataFrame | None:
    """The table of an experiment of the same run, None where it is not done. Raises :class:`NotApplicable` with its
    reason where the model could not go through it."""
    path = folder / f"{name}.json"
    if not is_done(path, key | {"experiment": name}):
        return None
    result = load(path)
    if result.reason:
        raise NotApplicable(result.reason)
    return result.table


def finished(model: str, root: Path | None = None) -> dict[str, Finished]:
    """A model's finished experiments by name, as a page may show them; those that are not there are left out.

    Raises :class:`ResultError` for one that is damaged, quick, of another version of the package, or of another model
    or revision than a real model's name stands for.
    """
    known = known_models().get(model)
    folder = result_files.results_folder(root or data_dir() / "results", model, known.revision if known else None)
    found = {e.name: load(path) for e in EXPERIMENTS if (path := folder / f"{e.name}.json").exists()}
    for name, result in found.items():
        about = result.about
        right = is_real(model, about["revision"]) if known else about["revision"] is None
        stale = about["code"] != talking_heads_utils.__version__ or (known and about["prefix"] != known.prefix)
        if about["model"] != model or not right or about["quick"] or stale:
            raise ResultError(
                f"{folder / name}.json is of {about['shows']} (revision {about['revision']}, version {about['code']}), "
                f"which must not stand for {model} here. Run `reproduce` again."
            )
    return found
