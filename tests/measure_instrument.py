"""The model in the page, measured in headless Chromium without a GPU, and held against the package:

    python tests/measure_instrument.py _build/html

writes data/benchmarks/page-<machine>.json, which the book's pages show. Needs what the test extra installs.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import site_tools
import torch
from test_instrument import CHAPTER, MOVES, PLACE, against_the_package, inside, load_button

from talking_heads_utils.cli.benchmarks import Row, report
from talking_heads_utils.files import data_dir
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts.ioi import build_ioi

TEXT = "When Mary and John went to the big store, John gave a drink to"  # 15 tokens
N_STEPS, N_PROMPTS, N_CARD = 50, 20, 2
REST = 30  # seconds after which a browser has cleared up
PATIENCE = 1200  # seconds that a page may take where the processor plays a graphics card

RUN = """
const ids = (await i.ask("tokens", { text })).map(({ id }) => id), pair = i.pair;
const run = async (moves, anew) => {
  const began = performance.now(), { odds } = await i.ask("run", { ids, moves, pair, anew });
  return [(performance.now() - began) / 1000, odds];
};
const set = (layer, amount) => [{ layer, head: 3, component: 0, how: "set", amount }];
const scaled = (amount) => [{ layer: 15, head: 3, amount }];
"""
CASES = {  # what is changed, the n-th time
    "a component of layer 15 set": "set(15, n / 10)", "a component of layer 0 set": "set(0, n / 10)",
    "a head of layer 15 scaled": "scaled(n / 50)",
}  # fmt: skip


def run(driver, code: str):
    return inside(driver, f"const text = {TEXT!r};{RUN}await run([], true); {code}")["value"]


def times(driver, moves: str, n: int, anew: bool = False) -> float:
    """Median seconds of n runs, each after another that differs from it in the one amount."""
    once = f"found.push((await run({moves}, {str(anew).lower()}))[0])"
    return statistics.median(run(driver, f"const found = []; for (let n = 0; n < {n}; n++) {once}; return found"))


def gap(driver, moves: str) -> float:
    """Largest difference of any token's probability between a run that goes on from a kept one and a whole one."""
    code = f"const n = 40, kept = (await run({moves}))[1], whole = (await run({moves}, true))[1];"
    return run(driver, f"{code} return Math.max(...kept.map((value, k) => Math.abs(value - whole[k])))")


@contextmanager
def watched() -> Iterator[list[float]]:
    """What :func:`memory` is, ten times a second, while the block runs."""
    held, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            held.append(memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()


def memory() -> float:
    """Private memory of the page's process, in 10^6 bytes."""

    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""

    pages = [p.parent for p in Path("/proc").glob("[0-9]*/cmdline") if b"type=renderer" in read(p)]
    held = [read(page / "smaps_rollup").decode().splitlines() for page in pages]
    return max(sum(int(line.split()[1]) for line in of if line.startswith("Private_")) for of in held) * 1024 / 1e6


def faithful(driver, n: int = N_PROMPTS, of=MOVES) -> list[dict]:
    """Largest differences from the package over n prompts, one row for each intervention."""
    bridge, rows = load_model("smollm2"), []
    texts = build_ioi(bridge.tokenizer, n, seed=5).texts
    for moves in of:
        logits, pattern, same = zip(*(against_the_package(bridge, driver, text, moves) for text in texts))
        said = ", ".join(f"{name} {how} {amount:g}" for name, how, amount in moves) or "none"
        rows.append(dict(moves=said, logits=max(logits), pattern=max(pattern), same_five=sum(same), n=len(texts)))
    return rows


def faithful_on_a_card(site: Path) -> list[dict]:
    """The same by WebGPU, on a card that the processor plays: right or wrong, but no times."""
    with site_tools.served(site) as address, site_tools.browser(served=True, card=True) as driver:
        driver.command_executor.client_config.timeout = PATIENCE
        driver.set_script_timeout(PATIENCE)
        driver.get(f"{address}/{CHAPTER}")
        site_tools.wait_for(lambda: driver.find_elements("css selector", f"#{PLACE} .note input"))
        inside(driver, "i.card.checked = true; await i.load()")
        return faithful(driver, N_CARD, MOVES[:4])


def measure(site: Path, out: Path) -> None:
    with site_tools.served(site) as address, site_tools.browser(served=True) as driver:
        driver.get(f"{address}/{CHAPTER}")
        load_button(driver)
        time.sleep(3)
        before, began = memory(), time.perf_counter()
        with watched() as held:
            inside(driver, "await i.load()")
        load = time.perf_counter() - began
        time.sleep(REST)
        after = memory()
        anew = times(driver, "[]", 9, anew=True)
        steps = {case: times(driver, moves, N_STEPS) for case, moves in CASES.items()}
        rows = [
            Row(f"{case}, 15 tokens", steps[case], anew, anew / steps[case], gap(driver, moves), None, None)
            for case, moves in CASES.items()
        ]
        about = dict(
            weights="smollm2, Q4_1, in headless Chromium without a GPU",
            note="Ours runs on from the layer that changed, the plain way the whole prompt anew. Medians of "
            f"{N_STEPS}; differences are of probabilities",
            load_s=load, page_mb=before, most_mb=max(held), with_model_mb=after, faithful=faithful(driver),
        )  # fmt: skip
    about["faithful_on_a_card"] = faithful_on_a_card(site)
    print(about, [asdict(row) for row in rows])
    report("page", rows, out, about)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with torch.inference_mode():
        measure(Path(sys.argv[1]).resolve(), data_dir() / "benchmarks")
