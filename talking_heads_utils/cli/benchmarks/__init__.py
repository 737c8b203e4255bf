"""Claims of speed: ours beside the plain way, on the same work, with the results compared.

Times are taken in one process, in turn; each peak of memory in a fresh child. Every benchmark prints a table and
writes ``data/benchmarks/<name>-<machine>.json``, which a page of the book shows.

``composition``  all components' scores, beside TransformerLens' head-level calls
``streaming``    scores of a checkpoint that does not fit in memory, beside the bare matrix products
``steering``     a grid of settings on kept keys and values, beside hooked runs
``icl``          a grid of patches on kept keys and values, beside hooked runs
``patch``        activation patching by layer and position, beside TransformerLens' own
``channels``     every component in the movers' queries, beside hooked runs and TransformerLens' direct path
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.files import written_whole
from talking_heads_utils.models import load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One comparison. Seconds are medians, memory in 10^6 bytes; None where it was not measured."""

    case: str
    ours_s: float
    plain_s: float
    ratio: float
    max_abs_diff: float | None
    ours_peak_mb: float | None
    plain_peak_mb: float | None


def compare(
    case: str,
    ours: Callable[[], T],
    plain: Callable[[], T],
    difference: Callable[[T, T], float],
    repeats: int,
    *,
    scale: float = 1.0,
    peaks: tuple[float | None, float | None] = (None, None),
) -> Row:
    """Both run alternately after one warm-up of ours, and what ``difference`` says of their last results.

    scale: of the plain way's time, where it runs a sample of the work. peaks: measured elsewhere, 10^6 bytes.
    """
    times: dict[Callable[[], T], list[float]] = {ours: [], plain: []}
    ours()
    for _ in range(repeats):
        results = []
        for run in (ours, plain):
            start = time.perf_counter()
            results.append(run())
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[run].append(time.perf_counter() - start)
    ours_s, plain_s = median(times[ours]), median(times[plain]) * scale
    return Row(case, ours_s, plain_s, plain_s / ours_s, difference(*results), *peaks)


def median(values: Sequence[float]) -> float:
    """Middle of an odd count, upper middle of an even one."""
    return sorted(values)[len(values) // 2]


def random_model(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, device: str) -> TransformerBridge:
    """A model of this shape with random values, from seed 0, loaded as any folder is."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(Path(folder), device)


def child(benchmark: str, route: str, *arguments: str) -> tuple[float, float]:
    """Seconds of a fresh process, start to end, that goes one of a benchmark's ``ROUTES``, and its peak of memory in
    10^6 bytes: see :func:`go`."""
    line = [sys.executable, "-m", __name__, benchmark, route, *arguments]
    start = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise TalkingHeadsError(f"`{' '.join(line[1:])}` failed:\n{done.stderr[-2000:]}")
    return seconds, float(done.stdout.rsplit("peak_mb=", 1)[1])


def go(benchmark: str, route: str, *arguments: str) -> None:
    """Go one route of a benchmark in this process, then print its peak of memory."""
    module = importlib.import_module(f"{__name__}.{benchmark}")
    with torch.inference_mode():
        module.ROUTES[route](*arguments)
    print_peak()


def command(*arguments: str) -> None:
    """What a user types after ``python -m talking_heads_utils``. Raises :class:`TalkingHeadsError` if it fails."""
    from talking_heads_utils.cli import main

    if main(list(arguments)):
        raise TalkingHeadsError(f"`{' '.join(arguments)}` failed.")


def print_peak() -> None:
    """Print this process's own peak of resident memory.

    Linux tells it exactly; elsewhere ``ru_maxrss`` has to do, which can count the parent's as well.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) * 1024
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    print(f"peak_mb={peak / 1e6:.1f}")


def report(name: str, rows: Sequence[Row], out: Path, about: dict[str, Any], device: str = "cpu") -> Path:
    """Print the table and write the JSON file with what there is to say about the run; returns its path."""
    from talking_heads_utils.provenance import machine, versions

    on = machine(device)
    path = Path(out) / f"{name}-{on['name']}.json"
    print(table(rows))
    content = {"benchmark": name, "machine": on, "versions": versions(), **about, "rows": [asdict(row) for row in rows]}
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    names = [field.name for field in fields(Row)]
    cells = [names] + [[_cell(getattr(row, name)) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in cells)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
