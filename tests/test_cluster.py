"""Work shared by a local Ray of two workers: the same bytes as in one process, whatever is killed on the way."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ray_units import fails, silent, slowly

from talking_heads_utils.cli import main
from talking_heads_utils.cluster import Unit, run_units
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.run import reproduce
from talking_heads_utils.known import PLANTED
from talking_heads_utils.resume import NOTE

RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
SOME = [e for e in EXPERIMENTS if e.name in ("gate", "links")]
SWEEP = ["sweep", "--model", "planted", "--n-items", "4", "--prompts", "40", "--values=-20:20:20", "--logits"]


@contextmanager
def head():
    """The address of a Ray with two CPUs, and what kills it, as is done in the end."""
    with TemporaryDirectory(prefix="th", ignore_cleanup_errors=True) as temp:  # sockets lie there: a short name
        address = f"127.0.0.1:{20000 + os.getpid() % 20000}"
        start = [RAY, "start", "--head", "--num-cpus=2", f"--port={address.split(':')[1]}", f"--temp-dir={temp}",
                 "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]  # fmt: skip
        subprocess.run(start, check=True, capture_output=True, env=ENVIRONMENT | {"MARKED": temp})
        kill = partial(kill_all, f"MARKED={temp}".encode())
        try:
            yield address, kill
        finally:
            kill()


def kill_all(marked):
    """Every process whose environment has this, whatever it calls itself by now."""
    for process in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if marked in process.read_bytes().split(b"\0"):
                os.kill(int(process.parent.name), signal.SIGKILL)


def files(folder):
    """Every file but the notes, which tell times and machines."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(Path(folder).rglob("*"))
            if p.is_file() and p.suffix != NOTE}  # fmt: skip


@pytest.mark.longest
def test_two_workers_make_what_one_process_makes(checkpoints, tmp_path, capsys, monkeypatch):
    """The same bytes; and where all is there, nothing is made again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    commands = (
        [*SWEEP, "--out", "{}/sweep"],
        ["composition", "--weights", str(checkpoints["llama"]), "--stream", "--out", "{}/s.safetensors"],
    )
    with head() as (address, kill):
        for place, more in (("one", []), ("two", ["--ray", address])):
            (tmp_path / place).mkdir()
            for command in commands:
                assert main([part.format(tmp_path / place) for part in command] + more) == 0
            reproduce(Context(PLANTED, quick=True), SOME, tmp_path / place / "results", silent, *more[1:])
        one, two = files(tmp_path / "one"), files(tmp_path / "two")
        assert list(one) == list(two) and len(one) == 8
        assert [name for name in one if one[name] != two[name]] == []
        results = tmp_path / "two" / "results"
        before = {p: p.stat().st_mtime_ns for p in results.rglob("*.*")}
        reproduce(Context(PLANTED, quick=True), SOME, results, silent, address)
        assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_killed_worker_costs_its_own_unit_alone(tmp_path):
    units = [Unit(name, slowly, (tmp_path, name)) for name in "abcd"] + [Unit("e", fails, after=("b",))]
    killer = (
        f"import os, pathlib, time\nat = pathlib.Path({str(tmp_path / 'a.pid')!r})\n"
        "while not at.exists() or not at.read_text().strip(): time.sleep(.2)\n"
        f"while len(list(at.parent.glob('*.done'))) < 3: time.sleep(.2)\n"
        "os.kill(int(at.read_text().split()[0]), 9)\n"
    )
    with head() as (address, kill), subprocess.Popen([sys.executable, "-c", killer]):
        failed = run_units(units, address, say=silent)
    assert list(failed) == ["e"] and str(failed["e"]) == "no such thing"
    assert sorted(p.stem for p in tmp_path.glob("*.done")) == list("abcd")
    assert {p.stem: len(p.read_text().split()) for p in tmp_path.glob("*.pid")} == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_with_the_head_killed_the_same_command_goes_on(tmp_path):
    """With units that take no model: that a sweep goes on behind a kill is tested where it is."""
    command, made = [sys.executable, "-m", "ray_units", str(tmp_path)], []
    with (
        head() as (address, kill),
        subprocess.Popen([*command, address], env=ENVIRONMENT, stderr=subprocess.DEVNULL) as running,
    ):
        deadline = time.monotonic() + 200
        while len(made) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            made = [(path, path.stat().st_mtime_ns) for path in tmp_path.iterdir()]
        kill()
        running.send_signal(signal.SIGKILL)
    assert sorted(path.name for path, _ in made) == ["a", "b"]
    (tmp_path / "again").touch()
    with head() as (address, kill):
        subprocess.run([*command, address], env=ENVIRONMENT, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "again", "b", "c", "d"]
    assert all(path.stat().st_mtime_ns == when for path, when in made)


def test_no_ray_is_one_error(tmp_path, capsys):
    assert main([*SWEEP, "--out", str(tmp_path / "sweep"), "--ray", "127.0.0.1:9"]) == 2
    assert "No Ray answers at '127.0.0.1:9'" in capsys.readouterr().err
    assert main(["composition", "--out", str(tmp_path / "s.safetensors"), "--ray", "auto"]) == 2
    with pytest.raises(OptionError, match="No Ray answers"):
        run_units([], "auto")
