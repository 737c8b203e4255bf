"""A whole grid of settings, in chunks of prompts: stopped at any point it goes on, and shards of it can be joined.

A chunk, an npz file, holds for its prompts the answers' list indices, which half they are of, and, by setting, every
mover's attention to the items and the candidates' logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from talking_heads_utils import resume
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.forward.steer import LOGITS, Steering, grid, prepare, random_directions, steer
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT, build_laundry
from talking_heads_utils.prompts.sets import PromptSet, check_count, check_seed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".npz"
PROMPTS_PER_CHUNK = 10
MAX_PROMPTS, MAX_SETTINGS = 100_000, 1_000_000


@dataclass(frozen=True)
class Plan:
    """All that a sweep's numbers depend on. Two runs of one plan give the same chunks on one machine.

    movers: whose attention is read. logits: whether the candidates' are. revision: the Hub's commit, None for a model
    that is not from the Hub. random: the seed of random directions of equal norm that stand in for the writers' own, in
    the writers' layers; None for their own.
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
    revision: str | None = None
    random: int | None = None

    def __post_init__(self) -> None:
        for name in ("writers", "movers", "n_items", "values"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "n_items", tuple(sorted(set(self.n_items))))
        if not all(isinstance(name, str) for name in (self.model, *self.writers, *self.movers)):
            raise OptionError("A plan names its model, writers and movers.")
        for n in self.n_items:
            check_count("n_items", n, 2)
        for seed in (self.seed, self.random or 0):
            check_seed(seed)
        if check_count("n_prompts", self.n_prompts, 2) > MAX_PROMPTS:
            raise OptionError(f"A sweep takes {MAX_PROMPTS:,} prompts per list length at most, not {self.n_prompts:,}.")
        for label, names in ((Component, self.writers), (Head, self.movers)):
            for name in names:
                label.parse(name)
        if not self.n_items:
            raise OptionError("A sweep needs one list length at least.")
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
    def settings(self) -> torch.Tensor:
        return grid(self.values, len(self.writers))

    @property
    def chunks(self) -> dict[str, tuple[int, int]]:
        """Name of every chunk -> its list length and first prompt."""
        firsts = range(0, self.n_prompts, PROMPTS_PER_CHUNK)
        return {f"n{n:02d}-{first:04d}": (n, first) for n in self.n_items for first in firsts}

    def store(self, folder: Path) -> resume.Store:
        """Its chunks in a folder."""
        return resume.Store(Path(folder), asdict(self), SUFFIX)


def usual(model: str, device: str = "cpu") -> tuple[Context, tuple[Component, ...], tuple[Head, ...]]:
    """A model, chapter 2's triple of writers and the movers above them, from what is stored where it is: in single
    precision and with the book's seed, so that they are the same each time."""
    from talking_heads_utils.experiments import store
    from talking_heads_utils.experiments.positional import subspace

    done = store.finished(model)
    context = Context(model, device=device, finished=lambda name: done[name].table if name in done else None)
    at = context.kept(subspace.chosen)
    return context, at.writers[: subspace.K], at.movers


def run_sweep(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
) -> list[str]:
    """Compute this shard's chunks that are not there yet; returns the names of all that are its own.

    Raises :class:`OptionError` for a shard that is none, a folder that holds another plan, or values so large that what
    is read is no number.
    """
    store = plan.store(folder)
    prepared: dict[int, tuple[PromptSet, Steering]] = {}
    for name in follow(store.left(list(plan.chunks), shard), "chunks of 10 prompts"):
        n_items, first = plan.chunks[name]
        if n_items not in prepared:
            prompts = build_laundry(tokenizer, n_items, plan.n_prompts, plan.seed, n_ctx=bridge.cfg.n_ctx)
            prepared = {n_items: (prompts, _prepare(bridge, prompts, plan))}
        prompts, steering = prepared[n_items]
        rows = slice(first, min(first + PROMPTS_PER_CHUNK, plan.n_prompts))
        started, movers = time.perf_counter(), [Head.parse(m) for m in plan.movers]
        found = steer(steering, plan.settings, rows=rows, batch_size=batch_size, movers=movers, logits=plan.logits)
        arrays = _arrays(found, prompts, plan, rows)
        with store.part(name, str(steering.middle.device)) as part:  # only now: what cannot run leaves no folder behind
            save_arrays(part.file, arrays)
            part.note["seconds"] = round(time.perf_counter() - started, 3)
    return resume.share(list(plan.chunks), shard)


def _prepare(bridge: TransformerBridge, prompts: PromptSet, plan: Plan) -> Steering:
    writers = [Component.parse(w) for w in plan.writers]
    if plan.random is None:
        return prepare(bridge, prompts, writers)
    directions = random_directions(1, len(writers), bridge.cfg.d_model, plan.random)[0]
    return prepare(bridge, prompts, writers, directions)


def _arrays(found: dict[str, torch.Tensor], prompts: PromptSet, plan: Plan, rows: slice) -> dict[str, np.ndarray]:
    """One chunk: attention ``[n, n_settings, n_movers, n_items]`` and logits ``[n, n_settings, n_items]`` in half
    precision.

    Logits count from the prompt's largest candidate: GPT-2's lie near -100, where half precision has steps of 0.06.
    """
    arrays = {
        "list_index": np.array(prompts.info["index"][rows], dtype=np.int8),
        "held_out": np.array([half == HELD_OUT for half in prompts.info["half"][rows]]),
    }
    if LOGITS in found:
        found = found | {LOGITS: found[LOGITS] - found[LOGITS].amax(-1, keepdim=True)}
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise OptionError(
                f"Steering so far makes {name} infinite or no number in {plan.dtype}: take smaller values."
            )
        arrays[name] = values.to(torch.float16).cpu().numpy()
    return arrays


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file, the same bytes for the same arrays."""
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle


def read_plan(folder: Path) -> Plan:
    """The plan of a folder. Raises :class:`OptionError` if there is none or it is none of a sweep."""
    try:
        return Plan(**resume.Store.of(folder).plan)
    except TypeError as error:
        raise OptionError(f"{folder} holds no sweep ({error}).") from error


def merge(parts: Sequence[Path], folder: Path) -> int:
    """Bring the chunks of several folders of one plan together; returns how many the folder then has.

    Raises :class:`OptionError` where plans differ or a chunk is in no part, and :class:`ResultError` where one is
    damaged; nothing is copied then.
    """
    return resume.merge(parts, folder, list(read_plan(parts[0]).chunks), SUFFIX)
