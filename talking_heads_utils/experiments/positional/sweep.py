"""A whole grid of settings, in chunks of prompts: stopped at any point it goes on, and Ray can share its chunks.

A chunk, an npz file, holds for its prompts the answers' list indices and, by setting, each item's share of every
mover's attention to all items, the candidates' logits and the list index that is answered. What is kept of them is one
small table: ``steering.parquet`` has a row for each setting; ``steering.json`` says how it was made and holds the sum
of both, so that the two cannot be of different sweeps.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talking_heads_utils import resume
from talking_heads_utils.cluster import Unit, run_units
from talking_heads_utils.errors import OptionError, ResultError, TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part, build
from talking_heads_utils.experiments.positional.grid import ATTENTION, LOGITS, Steering, answer, grid, prepare, steer
from talking_heads_utils.experiments.result_files import shown
from talking_heads_utils.experiments.rows import ModelRow, column, frame, rows
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_with_tokenizer
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.sets import PromptSet, check_count, check_seed

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

SUFFIX, TABLE = ".npz", "steering.parquet"
PROMPTS_PER_CHUNK = 10
MAX_PROMPTS, MAX_SETTINGS, MAX_WRITERS = 100_000, 1_000_000, 3
ANSWER = "answer"


@dataclass(frozen=True)
class Plan:
    """All that a sweep's numbers depend on. Two runs of one plan give the same chunks on one machine.

    movers: whose attention is read. logits: whether the candidates' are. part: which lists. revision: the Hub's commit,
    None for a model that is not from the Hub.
    """

    model: str
    writers: tuple[str, ...]
    movers: tuple[str, ...]
    n_items: tuple[int, ...]
    n_prompts: int
    seed: int
    values: tuple[float, ...]
    logits: bool
    dtype: str
    code: str
    part: str = Part.HELD_OUT
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("writers", "movers", "n_items", "values"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "n_items", tuple(sorted(set(self.n_items))))
        if not all(isinstance(name, str) for name in (self.model, *self.writers, *self.movers)):
            raise OptionError("A plan names its model, writers and movers.")
        for n in self.n_items:
            check_count("n_items", n, 2)
        check_seed(self.seed)
        if self.part not in [*Part]:
            raise OptionError(f"Lists are one of {', '.join(Part)}, not {self.part!r}.")
        if check_count("n_prompts", self.n_prompts, 2) > MAX_PROMPTS:
            raise OptionError(f"A sweep takes {MAX_PROMPTS:,} prompts per list length at most, not {self.n_prompts:,}.")
        for label, names in ((Component, self.writers), (Head, self.movers)):
            for name in names:
                label.parse(name)
        if not self.n_items or not 1 <= len(self.writers) <= MAX_WRITERS:
            raise OptionError(f"A sweep needs one list length at least, and 1 to {MAX_WRITERS} writers.")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in self.values):
            raise OptionError("The values of a grid are finite numbers.")
        if not self.values or self.n_settings > MAX_SETTINGS:
            raise OptionError(
                f"A grid of {len(self.values)} values for {len(self.writers)} writers has {self.n_settings:,} "
                f"settings; 1 to {MAX_SETTINGS:,} can be swept. Take fewer values or writers."
            )
        if self.logits not in (True, False) or not (self.movers or self.logits):
            raise OptionError("Nothing to read: name movers, or ask for logits.")

    @property
    def n_settings(self) -> int:
        return len(self.values) ** len(self.writers)

    @property
    def bytes_per_list(self) -> dict[int, int]:
        """What one list takes on disk at most, by list length."""
        each = 2 * (len(self.movers) + self.logits)
        return {n: self.n_settings * (each * n + self.logits) + 1 for n in self.n_items}

    @property
    def settings(self) -> torch.Tensor:
        return grid(self.values, len(self.writers))

    @property
    def chunks(self) -> dict[str, tuple[int, int]]:
        """Name of every chunk -> its list length and first prompt."""
        firsts = range(0, self.n_prompts, PROMPTS_PER_CHUNK)
        return {f"n{n:02d}-{first:04d}": (n, first) for n in self.n_items for first in firsts}

    def rows(self, first: int) -> slice:
        """The lists of the chunk that begins with this one."""
        return slice(first, min(first + PROMPTS_PER_CHUNK, self.n_prompts))

    def store(self, folder: Path) -> resume.Store:
        """Its chunks in a folder."""
        return resume.Store(Path(folder), asdict(self), SUFFIX)


def usual(model: str, device: str = "cpu") -> tuple[Context, tuple[Component, ...], tuple[Head, ...]]:
    """A model, chapter 2's triple of writers and the movers above them, from what is stored where it is: in single
    precision and with the book's seed, so that they are the same each time."""
    from talking_heads_utils.experiments import store
    from talking_heads_utils.experiments.positional import subspace

    done = store.finished(model)
    tables = {name: result.table for name, result in done.items() if not result.reason}
    context = Context(model, device=device, finished=tables.get)
    at = context.kept(subspace.chosen)
    return context, at.writers[: subspace.K], at.movers


def run_sweep(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    folder: Path,
    *,
    batch_size: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
) -> None:
    """Compute the chunks that are not there yet.

    ray: the address of a Ray whose workers load the plan's model, onto ``device``, and share the chunks; None: in this
    process. Raises :class:`OptionError` for a folder that holds another plan or has no room for the chunks, or values
    so large that what is read is no number; :class:`TaskError` for lists too long for the model.
    """
    left = plan.store(folder).left(list(plan.chunks))
    _check_room(plan, left, folder)
    if ray is None:
        grid = _Grid(bridge, tokenizer, plan)
        for name in follow(left, "chunks of 10 prompts"):
            grid.chunk(name, folder, batch_size)
    elif left:
        units = [Unit(name, _chunk, (plan, device, name, Path(folder).absolute(), batch_size)) for name in left]
        weights = sum(p.numel() * p.element_size() for p in bridge.parameters())
        failed = run_units(units, ray, gpus=int(device != "cpu"), memory=2 * weights)
        if failed:
            raise ResultError(f"{len(failed)} of {len(left)} chunks are not there; {next(iter(failed.values()))}")


@dataclass
class _Grid:
    """A plan and its model, with the lists of one length prepared at a time."""

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    prepared: dict[int, tuple[PromptSet, Steering]] = field(default_factory=dict)

    def chunk(self, name: str, folder: Path, batch_size: int | None) -> None:
        """Make one chunk."""
        plan, (n_items, first) = self.plan, self.plan.chunks[name]
        prompts, steering = self._lists(n_items)
        rows = plan.rows(first)
        started, movers = time.perf_counter(), [Head.parse(m) for m in plan.movers]
        found = steer(steering, plan.settings, rows=rows, batch_size=batch_size, movers=movers, logits=plan.logits)
        arrays = _arrays(found, prompts.info["index"][rows], plan)
        with plan.store(folder).part(name, str(steering.middle.device)) as part:  # what cannot run leaves no folder
            with part.file.open("wb") as stream:
                np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
            part.note["seconds"] = round(time.perf_counter() - started, 3)

    def _lists(self, n_items: int) -> tuple[PromptSet, Steering]:
        plan, n_ctx = self.plan, self.bridge.cfg.n_ctx
        if n_items not in self.prepared:
            prompts = build(self.tokenizer, Lists(Part(plan.part), n_items, plan.n_prompts), plan.seed)
            if (n_pos := prompts.tokens.shape[1]) > n_ctx:
                raise TaskError(f"Lists of {n_items} have {n_pos} tokens; the model takes {n_ctx}.")
            steering = prepare(self.bridge, prompts, [Component.parse(w) for w in plan.writers])
            self.prepared = {n_items: (prompts, steering)}
        return self.prepared[n_items]


@lru_cache(maxsize=1)
def _grid_of(plan: Plan, device: str) -> _Grid:
    return _Grid(*load_with_tokenizer(plan.model, device, getattr(torch, plan.dtype)), plan)


def _chunk(plan: Plan, device: str, name: str, folder: Path, batch_size: int | None) -> None:
    """One chunk on a worker, which keeps the model for the next one."""
    _grid_of(plan, device).chunk(name, folder, batch_size)


def _check_room(plan: Plan, left: Sequence[str], folder: Path) -> None:
    lists = [(n, plan.rows(first)) for n, first in (plan.chunks[name] for name in left)]
    needed = sum(plan.bytes_per_list[n] * (rows.stop - rows.start) for n, rows in lists)
    there = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise OptionError(
            f"The grid's {len(left)} chunks take up to {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB "
            "left. Take fewer values or prompts, or another folder."
        )


def _arrays(found: dict[str, torch.Tensor], index: Sequence[int], plan: Plan) -> dict[str, np.ndarray]:
    """One chunk: attention ``[n, n_settings, n_movers, n_items]`` and logits ``[n, n_settings, n_items]`` in half
    precision, and the list index with the largest logit, ``[n, n_settings]``, before they are rounded.

    Logits count from the prompt's largest candidate: GPT-2's lie near -100, where half precision has steps of 0.06.
    """
    arrays = {"list_index": np.array(index, dtype=np.int8)}
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise OptionError(
                f"Steering so far makes {name} infinite or no number in {plan.dtype}: take smaller values."
            )
        if name == LOGITS:
            values = values - values.amax(-1, keepdim=True)
            arrays[ANSWER] = answer(values).to(torch.int8).cpu().numpy()
        arrays[name] = values.to(torch.float16).cpu().numpy()
    return arrays


def read_plan(folder: Path) -> Plan:
    """The plan of a folder. Raises :class:`OptionError` if there is none or it is none of a sweep."""
    try:
        return Plan(**resume.Store.of(folder).plan)
    except TypeError as error:
        raise OptionError(f"{folder} holds no sweep ({error}).") from error


# --- what a finished sweep gives ---


@dataclass(frozen=True)
class SweepRow(ModelRow):
    """One setting of the grid; what was not read is empty."""

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


def aggregate(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """What a finished sweep shows, its plan and what it was made with; and its table. Raises :class:`OptionError` where
    chunks are missing, :class:`ResultError` where one is damaged."""
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
    return about, frame([row for n in plan.n_items for row in _rows(store, plan, n)], SweepRow)


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
    attention = [seen.argmax(1), seen.max(1) / n] if plan.movers else [none] * 2
    answers = [said.argmax(1), said.max(1) / n, right / n] if plan.logits else [none] * 3
    for alphas, *found in zip(plan.settings.tolist(), *attention, *answers):
        yield SweepRow(plan.model, n_items, *[*alphas, *[0.0] * (MAX_WRITERS - len(alphas)), *found, n])


def load(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """What :func:`save` wrote. Raises :class:`ResultError` for what is missing, damaged or no table of a sweep."""
    import pandas as pd

    about = resume.read_note(path)
    try:
        return about, frame(rows(pd.read_parquet(path), SweepRow), SweepRow)
    except (OSError, ValueError, ResultError) as error:
        raise ResultError(f"{path} is no table of a sweep ({str(error)[:200]}). Run `sweep` again.") from error


def save(about: Mapping[str, Any], table: pd.DataFrame, folder: Path) -> Path:
    """Write what :func:`aggregate` gave, both files. Returns the path of the table."""
    path = Path(folder) / TABLE
    with resume.written(path) as part:
        table.to_parquet(part.file, compression="zstd", index=False)
        part.note |= about
    return path
