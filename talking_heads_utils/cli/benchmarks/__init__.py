"""Claims of speed: ours beside the plain way, on the same work, with the results compared.

Times are taken in one process, in turn; each peak of memory in a fresh child. Every benchmark prints a table and
writes ``data/benchmarks/<name>-<machine>.json``, which a page of the book shows.

``composition``  all components' scores, beside TransformerLens' head-level calls
``streaming``    scores of a checkpoint that does not fit in memory, beside the bare matrix products
``steering``     a grid of settings on kept keys and values, beside hooked runs
``icl``          a grid of patches on kept keys and values, beside hooked runs
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.files import written_whole


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


def in_turn(ours: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> tuple[float, float, Any, Any]:
    """Median seconds of both, run alternately after one warm-up of ours, and their last results."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    ours()
    for _ in range(repeats):
        for name, run in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            result = run()
            times[name].append(time.perf_counter() - start)
            if name == "ours":
                ours_result = result
    return median(times["ours"]), median(times["plain"]), ours_result, result


def median(values: Sequence[float]) -> float:
    """Middle of an odd count, upper middle of an even one."""
    return sorted(values)[len(values) // 2]


def child(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds of a fresh ``python -m`` process, start to end, and its peak of memory in 10^6 bytes.

    The child says its own peak on its last line of output as ``peak_mb=...``: see :func:`print_peak`.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise TalkingHeadsError(f"`python -m {' '.join(arguments)}` failed:\n{done.stderr[-2000:]}")
    return seconds, float(done.stdout.rsplit("peak_mb=", 1)[1])


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


def report(
    name: str, rows: Sequence[Row], out: Path, about: dict[str, Any], device: str = "cpu", note: str | None = None
) -> Path:
    """Print the table and write the JSON file, with a note to its reader if there is one; returns its path."""
    from talking_heads_utils.provenance import machine, versions

    on = machine(device)
    path = Path(out) / f"{name}-{on['name']}.json"
    print(table(rows))
    about = about | ({"note": note} if note else {})
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
