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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.files import written_whole
from talking_heads_utils.models import load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

T = TypeVar("T")
U = TypeVar("U")
MOVED = 1e-3  # standard deviation over what is tried that a result must reach


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
    plain: Callable[[], U],
    difference: Callable[[T, U], float],
    repeats: int,
    *,
    warm: Callable[[], object] | None = None,
    ran: tuple[int, int] = (1, 1),
    peaks: tuple[float | None, float | None] = (None, None),
) -> Row:
    """Both run alternately after one warm-up of ours, and what ``difference`` says of their last results.

    warm: a smaller warm-up, where ours takes long. ran: how much of how much the plain way does, where it runs a sample
    of the work: its time is scaled up, and the case says so. peaks: measured elsewhere, 10^6 bytes.
    """
    times: list[tuple[float, float]] = []
    (warm or ours)()
    for _ in range(repeats):
        ours_s, found = timed(ours)
        plain_s, other = timed(plain)
        times.append((ours_s, plain_s * ran[1] / ran[0]))
    if ran[0] < ran[1]:
        case += f" ({ran[0]:,} of {ran[1]:,} the plain way, scaled up)"
    ours_s, plain_s = map(median_high, zip(*times))
    return Row(case, ours_s, plain_s, plain_s / ours_s, difference(found, other), *peaks)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    found = run()
    if torch.cuda.is_initialized():  # starting it here would be counted
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def check_moved(spread: Tensor, what: str) -> None:
    """Raises :class:`TalkingHeadsError` where no standard deviation over what was tried reaches :data:`MOVED`."""
    if not spread.max() > MOVED:
        raise TalkingHeadsError(f"Hardly any change of {what}: agreement would mean nothing.")


@torch.no_grad()
def hooked(
    bridge: TransformerBridge, tokens: Tensor, changes: Iterable[tuple[str, Callable[[Tensor], Any]]] = (),
    keep: Iterable[str] = (), **options: Any,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The plain way: a whole run with hooks. What it gives, and what stood at the hooks ``keep``.

    changes: (hook, change) pairs; a change alters the copy of the values that it gets. options: of ``run_with_hooks``.
    """
    seen: dict[str, Tensor] = {}

    def changing(change: Callable[[Tensor], Any]) -> Callable:
        def hook(values: Tensor, hook: object) -> Tensor:
            values = values.clone()
            change(values)
            return values

        return hook

    def keeping(name: str) -> Callable:
        return lambda values, hook: seen.update({name: values})

    hooks = [(name, changing(change)) for name, change in changes] + [(name, keeping(name)) for name in keep]
    return bridge.run_with_hooks(tokens.to(bridge.cfg.device), fwd_hooks=hooks, **options), seen


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
    code = f"import sys; from {__name__} import go; go(*sys.argv[1:])"
    line = [sys.executable, "-c", code, benchmark, route, *arguments]
    seconds, done = timed(lambda: subprocess.run(line, capture_output=True, text=True))
    if done.returncode:
        raise TalkingHeadsError(f"`{' '.join(line[1:])}` failed:\n{done.stderr[-2000:]}")
    return seconds, float(done.stdout.rsplit("peak_mb=", 1)[1])


def go(benchmark: str, route: str, *arguments: str) -> None:
    """Go one route of a benchmark in this process, then print its own peak of resident memory.

    Linux tells that exactly; elsewhere ``ru_maxrss`` has to do, which can count the parent's as well.
    """
    module = importlib.import_module(f"{__name__}.{benchmark}")
    with torch.inference_mode():
        module.ROUTES[route](*arguments)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) * 1024
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    print(f"peak_mb={peak / 1e6:.1f}")


def command(*arguments: str) -> None:
    """What a user types after ``python -m talking_heads_utils``. Raises :class:`TalkingHeadsError` if it fails."""
    from talking_heads_utils.cli import main

    if main(list(arguments)):
        raise TalkingHeadsError(f"`{' '.join(arguments)}` failed.")


def report(name: str, rows: Sequence[Row], out: Path, about: dict[str, Any], device: str = "cpu") -> Path:
    """Print the table and write the JSON file with what there is to say about the run; returns its path."""
    import pandas as pd

    from talking_heads_utils.provenance import machine, versions

    on, each = machine(device), [asdict(row) for row in rows]
    path = Path(out) / f"{name}-{on['name']}.json"
    shown = pd.DataFrame(each).astype(object).fillna("-")
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.3g}" if x < 100 else f"{x:,.0f}"))
    content = {"benchmark": name, "machine": on, "versions": versions(), **about, "rows": each}
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path
