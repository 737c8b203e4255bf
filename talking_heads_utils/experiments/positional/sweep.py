"""A whole grid of settings, in chunks that are written whole: stopped at any point it goes on from the last one.

A folder holds ``plan.json``, one parquet file per chunk of prompts and a note beside each of where and how long it ran.
Several machines may take shards of one plan, into one folder or into several that :func:`merge` joins.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.files import written_whole
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT, build_laundry
from talking_heads_utils.prompts.sets import PromptSet, check_count, check_seed
from talking_heads_utils.provenance import machine, versions
from talking_heads_utils.steer import ATTENTION, LOGITS, Steering, grid, prepare, random_directions, steer

if TYPE_CHECKING:
    import pyarrow as pa
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

PLAN, CHUNKS, NOTES = "plan.json", "chunks", "notes"
PROMPTS_PER_CHUNK = 10
MAX_PROMPTS = 100_000
MAX_SETTINGS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """All that a sweep's numbers depend on. Two runs of one plan give the same chunks on one machine.

    revision: the Hub's commit, None for a model that is not from the Hub. random: the seed of random directions of
    equal norm that stand in for the writers' own, in the writers' layers; None for their own.
    """

    model: str
    writers: tuple[str, ...]
    movers: tuple[str, ...]
    n_items: tuple[int, ...]
    n_prompts: int
    seed: int
    values: tuple[float, ...]
    read: tuple[str, ...]
    dtype: str
    code: str
    revision: str | None = None
    random: int | None = None

    def __post_init__(self) -> None:
        for name in ("writers", "movers", "n_items", "values", "read"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "n_items", tuple(dict.fromkeys(self.n_items)))
        if not all(isinstance(name, str) for name in (self.model, *self.writers, *self.movers, *self.read)):
            raise OptionError("A plan names its model, writers, movers and what is read.")
        for n in self.n_items:
            check_count("n_items", n, 2)
        check_seed(self.seed)
        check_seed(self.random or 0)
        if check_count("n_prompts", self.n_prompts, 2) > MAX_PROMPTS:
            raise OptionError(f"A sweep takes {MAX_PROMPTS:,} prompts per list length at most, not {self.n_prompts:,}.")
        size = len(self.values) ** max(1, len(self.writers))
        for label, names in ((Component, self.writers), (Head, self.movers)):
            for name in names:
                label.parse(name)
        if not self.n_items:
            raise OptionError("A sweep needs one list length at least.")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in self.values):
            raise OptionError("The values of a grid are finite numbers.")
        if not self.values or size > MAX_SETTINGS:
            raise OptionError(
                f"A grid of {len(self.values)} values for {len(self.writers)} writers has {size:,} settings; "
                f"1 to {MAX_SETTINGS:,} can be swept. Take fewer values or writers."
            )
        if not self.read or set(self.read) - {ATTENTION, LOGITS}:
            raise OptionError(
                f"Read {ATTENTION}, {LOGITS} or both, not {', '.join(self.read) or 'nothing'}: name movers, or ask for "
                "logits."
            )

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """``(list length, first prompt)`` of every chunk."""
        return [(n, first) for n in self.n_items for first in range(0, self.n_prompts, PROMPTS_PER_CHUNK)]


def run_sweep(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
) -> list[Path]:
    """Compute this shard's chunks that are not there yet; returns their files.

    Raises :class:`OptionError` for a shard that is none, or a folder that holds another plan.
    """
    index, of = shard
    if not 0 <= index < of:
        raise OptionError(f"A shard is one of 0/{of} to {of - 1}/{of}, not {index}/{of}.")
    check_plan(plan, folder)
    mine = plan.chunks[index::of]
    left = [chunk for chunk in mine if not chunk_file(folder, chunk).exists()]
    prepared: dict[int, tuple] = {}
    for n_items, first in follow(left, "chunks of 10 prompts"):
        if n_items not in prepared:
            prompts = build_laundry(tokenizer, n_items, plan.n_prompts, plan.seed, n_ctx=bridge.cfg.n_ctx)
            prepared = {n_items: (prompts, _prepare(bridge, prompts, plan))}
        prompts, steering = prepared[n_items]
        started = time.perf_counter()
        rows = slice(first, min(first + PROMPTS_PER_CHUNK, plan.n_prompts))
        found = steer(
            steering, grid(plan.values, len(plan.writers)), rows=rows, batch_size=batch_size,
            movers=[Head.parse(m) for m in plan.movers] if ATTENTION in plan.read else (), logits=LOGITS in plan.read,
        )  # fmt: skip
        table = _table(found, prompts, plan, n_items, rows)
        start_plan(plan, folder)  # only now: a plan that cannot run leaves nothing behind
        device = str(steering.middle.device)
        _note(note_file(folder, (n_items, first)), time.perf_counter() - started, device)
        _write(table, chunk_file(folder, (n_items, first)))
    return [chunk_file(folder, chunk) for chunk in mine]


def _prepare(bridge: TransformerBridge, prompts: PromptSet, plan: Plan) -> Steering:
    writers = [Component.parse(w) for w in plan.writers]
    if plan.random is None:
        return prepare(bridge, prompts, writers)
    directions = random_directions(1, len(writers), bridge.cfg.d_model, plan.random)[0]
    return prepare(bridge, prompts, writers, directions)


def check_plan(plan: Plan, folder: Path) -> bool:
    """Whether a folder has this plan already. Raises :class:`OptionError` if it has another."""
    if not (Path(folder) / PLAN).exists():
        return False
    other = read_plan(folder)
    if changed := [name for name, value in asdict(plan).items() if asdict(other)[name] != value]:
        raise OptionError(
            f"{folder} holds a sweep with other {', '.join(changed)}. Nothing was mixed in: choose another folder, or "
            "the same options."
        )
    return True


def start_plan(plan: Plan, folder: Path) -> None:
    """Write the plan unless it is there. Raises :class:`OptionError` if another one is."""
    if not check_plan(plan, folder):
        with written_whole(Path(folder) / PLAN) as part:
            part.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """The plan of a folder. Raises :class:`OptionError` if there is none or it cannot be read."""
    try:
        return Plan(**json.loads((Path(folder) / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OptionError(f"{folder} holds no sweep ({error}).") from error


def chunk_file(folder: Path, chunk: tuple[int, int]) -> Path:
    return Path(folder) / CHUNKS / f"n{chunk[0]:02d}-{chunk[1]:04d}.parquet"


def note_file(folder: Path, chunk: tuple[int, int]) -> Path:
    return Path(folder) / NOTES / f"n{chunk[0]:02d}-{chunk[1]:04d}.json"


def _note(path: Path, seconds: float, device: str) -> None:
    """Where a chunk was made and how long it took, kept apart from its numbers, which are the same each time."""
    content = {"seconds": round(seconds, 3), "machine": machine(device), "versions": versions()}
    with written_whole(path) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _table(found: dict[str, torch.Tensor], prompts: PromptSet, plan: Plan, n_items: int, rows: slice) -> pa.Table:
    """One row per prompt and setting; attention and logits as half-precision lists over the items.

    Logits count from the prompt's largest candidate: GPT-2's lie near -100, where half precision has steps of 0.06.
    """
    import pyarrow as pa

    n, n_settings = next(iter(found.values())).shape[:2]
    columns = {
        "prompt": np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), n_settings),
        "setting": np.tile(np.arange(n_settings, dtype=np.int32), n),
        "place": np.repeat(np.array(prompts.info["index"][rows], dtype=np.int8), n_settings),
        "held_out": np.repeat(np.array([half == HELD_OUT for half in prompts.info["half"][rows]]), n_settings),
    }
    named: dict[str, Any] = {}
    if ATTENTION in found:
        named |= {f"{ATTENTION}:{m}": found[ATTENTION][:, :, k] for k, m in enumerate(plan.movers)}
    if LOGITS in found:
        named[LOGITS] = found[LOGITS] - found[LOGITS].amax(-1, keepdim=True)
    for name, values in named.items():
        if not torch.isfinite(values).all():
            raise OptionError(
                f"Steering so far makes {name} infinite or no number in {plan.dtype}: take smaller values."
            )
        flat = values.reshape(-1).to(torch.float16).cpu().numpy()
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat, type=pa.float16()), n_items)
    return pa.table(columns)


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    with written_whole(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def read_chunk(path: Path, plan: Plan, chunk: tuple[int, int]) -> pa.Table:
    """One chunk as :func:`run_sweep` writes it.

    Raises :class:`ResultError` for a file that is damaged (each page has its checksum) or of another plan.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_items, first = chunk
    names = [f"{ATTENTION}:{m}" for m in plan.movers] * (ATTENTION in plan.read) + [LOGITS] * (LOGITS in plan.read)
    types = {"place": pa.int8(), "held_out": pa.bool_()} | dict.fromkeys(names, pa.list_(pa.float16(), n_items))
    rows = len(range(first, plan.n_prompts)[:PROMPTS_PER_CHUNK]) * len(plan.values) ** len(plan.writers)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        if len(table) != rows or any(table.schema.field(name).type != kind for name, kind in types.items()):
            raise ValueError("its rows or columns are not those of the plan")
        places = set(table["place"].unique().to_pylist())
        if any(table[name].null_count for name in types) or not places <= set(range(n_items)):
            raise ValueError("a place or a value is missing")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ResultError(f"{path} is damaged ({error}). Remove it and run the sweep again.") from error
    return table


def read_note(path: Path) -> dict[str, Any]:
    """Where a chunk was made. Raises :class:`ResultError` for a file that is missing or damaged."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"machine": note["machine"], "versions": note["versions"], "seconds": float(note["seconds"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultError(
            f"{path} is damaged ({error!r}). Remove it and its chunk, and run the sweep again."
        ) from error


def missing(folder: Path) -> list[tuple[int, int]]:
    """Chunks of a folder's plan that are not there yet."""
    return [chunk for chunk in read_plan(folder).chunks if not chunk_file(folder, chunk).exists()]


def merge(parts: Sequence[Path], folder: Path) -> int:
    """Bring the chunks of several folders of one plan together; returns how many the folder then has.

    Raises :class:`OptionError` where plans differ or a chunk is in no part, and :class:`ResultError` where one is
    damaged; nothing is copied then.
    """
    plans = {part: read_plan(part) for part in parts}
    plan = next(iter(plans.values()), None)
    if plan is None or any(other != plan for other in plans.values()):
        raise OptionError("The parts are not of one sweep: their plans differ. Merge shards of the same plan.")
    sources = {chunk: [chunk_file(p, chunk) for p in parts if chunk_file(p, chunk).exists()] for chunk in plan.chunks}
    if lacking := [chunk for chunk, files in sources.items() if not files]:
        raise OptionError(
            f"{len(lacking)} of {len(sources)} chunks are in no part. Run the shards that are left first."
        )
    for chunk, files in sources.items():
        read_chunk(files[0], plan, chunk)
        read_note(note_file(files[0].parents[1], chunk))
    start_plan(plan, folder)
    for chunk, files in sources.items():
        for target, source in (
            (note_file(folder, chunk), note_file(files[0].parents[1], chunk)),
            (chunk_file(folder, chunk), files[0]),
        ):
            if source.exists() and not target.exists():
                with written_whole(target) as part:
                    shutil.copyfile(source, part)
    return len(sources)
