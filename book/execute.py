"""Execute every page with code, several at once, then build the pages that show what they gave.

    python book/execute.py _build jupyter-book build . --toc book/_toc.yml

Sphinx executes one page after the other, with the threads of every core, which wait for each other wherever another
process keeps a core busy. Here a page has a process of its own and its share of the cores. What it gave goes into
the build's jupyter-cache, out of which the command that follows makes its page. Where the package or its data changed,
everything is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import myst_nb_reader_plugin

from talking_heads_utils.figures.page import BUILD_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
CACHE, STAMP = ".jupyter_cache", "made-of"
MADE = ("html", ".doctrees", CACHE)  # what may hold results of another state of the package
AT_ONCE, MEMORY = 4, 3e9  # pages, and bytes of memory for the models of each
LONGEST = ("own_model", "01_inhibition_heads", "04_icl_redundancy", "models", "toys")  # begin first, in this order
CODE = "```{code-cell}"


def share_out(n_pages: int) -> tuple[int, int]:
    """Processes, and threads of each, on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY if hasattr(os, "sysconf") else 1
    processes = max(1, int(min(n_pages, cores, AT_ONCE, room)))
    return processes, max(1, cores // processes)


def state() -> str:
    """A sum of all that a page's results depend on, but for the page."""
    found = hashlib.sha256()
    for folder, pattern in (("talking_heads_utils", "*.py"), ("data", "*"), (".", "constraints.txt")):
        for path in sorted((ROOT / folder).rglob(pattern) if folder != "." else [ROOT / pattern]):
            if path.is_file():
                found.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def clear_if_changed(build: Path) -> None:
    """Remove what was built of another state of the package."""
    stamp, now = build / STAMP, state()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != now:
        for name in MADE:
            shutil.rmtree(build / name, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        stamp.write_text(now, encoding="utf-8")


def pages() -> list[Path]:
    """What has code, the longest first, so that no core waits for them at the end."""
    texts = [path for path in sorted((ROOT / "book").glob("*.md")) if CODE in path.read_text(encoding="utf-8")]
    found = [*sorted((ROOT / "notebooks").glob("*.ipynb")), *texts]
    return sorted(found, key=lambda path: LONGEST.index(path.stem) if path.stem in LONGEST else len(LONGEST))


def read(path: Path) -> nbformat.NotebookNode:
    """A page as the build will read it."""
    return nbformat.read(path, 4) if path.suffix == ".ipynb" else myst_nb_reader_plugin(str(path))


def execute(path: Path, timeout: int) -> tuple[Path, nbformat.NotebookNode, float, str | None]:
    """A page with its outputs, its seconds and, where a cell failed, the traceback."""
    done = single_nb_execution(read(path), cwd=str(path.parent), timeout=timeout, allow_errors=False)
    return path, done.nb, done.time, done.exc_string


def execute_all(paths: list[Path], build: Path, timeout: int) -> bool:
    """Put every page that is not there yet into the cache; whether all could be executed."""
    cache, left, whole = get_cache(str(build / CACHE)), [], True
    for path in paths:
        try:
            cache.match_cache_notebook(read(path))
        except KeyError:
            left.append(path)
    processes, _ = share_out(len(paths))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(execute, path, timeout) for path in left]):
            path, notebook, seconds, failed = done.result()
            if failed:
                print(f"{path} failed:\n{failed}", file=sys.stderr)
                whole = False
                continue
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            print(f"{path.relative_to(ROOT)}: {seconds:.0f} s", flush=True)
    return whole


def main(build: str, *command: str) -> int:
    paths = pages()
    os.environ |= {BUILD_VARIABLE: "1", "PLOTLY_RENDERER": "plotly_mimetype"}
    os.environ.setdefault("OMP_NUM_THREADS", str(share_out(len(paths))[1]))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not spin
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]["timeout"]
    clear_if_changed(Path(build).resolve())
    if not execute_all(paths, Path(build).resolve(), timeout):
        return 1
    return subprocess.call(command) if command else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
