"""Sweeps: resumed after kill -9 they give the same tables; shards join to the whole; another plan is refused."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from talking_heads_utils.cli import main
from talking_heads_utils.cli.sweep import values_of
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.positional.sweep import (
    CHUNKS,
    Plan,
    chunk_file,
    merge,
    missing,
    read_plan,
    run_sweep,
)
from talking_heads_utils.experiments.positional.sweep_results import aggregate, load
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_with_tokenizer
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.steer import ATTENTION, LOGITS, grid, prepare, steer

PLAN = Plan(
    model="mini-token", writers=("L0H0.0", "L1H1.0", "L1H0.1"), movers=("L3H0",), n_items=(4, 5), n_prompts=25, seed=0,
    values=(-4.0, 0.0, 4.0), read=(ATTENTION, LOGITS), dtype="float32", code="test",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_with_tokenizer("mini-token")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(*model, PLAN, folder)
    return folder


def assert_same_chunks(one, other):
    """Chunk by chunk; attention and logits, which are summed in another order elsewhere, within their rounding."""
    files = [sorted((folder / CHUNKS).glob("n*.parquet")) for folder in (one, other)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]] and files[0]
    for pair in zip(*files):
        first, second = map(pq.read_table, pair)
        assert first.schema.equals(second.schema)
        for name in first.column_names:
            values = [np.array(table[name].to_pylist()) for table in (first, second)]
            floats = values[0].dtype.kind == "f"
            np.testing.assert_allclose(*values, atol=2e-2 if floats else 0, rtol=2e-3 if floats else 0)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / CHUNKS).iterdir()}


def test_a_sweep_holds_what_the_engine_gives(model, whole):
    assert len(contents(whole)) == len(PLAN.chunks) == 6 and not missing(whole)
    prompts = build_laundry(model[1], 5, 25, 0)
    steering = prepare(model[0], prompts, [Component.parse(w) for w in PLAN.writers])
    found = steer(steering, grid(PLAN.values), movers=[Head(3, 0)], logits=True)
    table = pq.read_table(chunk_file(whole, (5, 20)))
    assert len(table) == 5 * 27 and table["prompt"].to_pylist()[-1] == 24
    below = found[LOGITS] - found[LOGITS].amax(-1, keepdim=True)
    for name, values in (("attention:L3H0", found[ATTENTION][20:, :, 0]), (LOGITS, below[20:])):
        stored = np.array(table[name].to_pylist(), dtype=np.float32).reshape(5, 27, 5)
        np.testing.assert_allclose(stored, values.numpy(), atol=2e-2, rtol=2e-3)
    assert table["place"].to_pylist()[::27] == prompts.info["index"][20:]


def test_a_killed_sweep_goes_on_and_ends_the_same(whole, tmp_path):
    """The command, killed by SIGKILL as soon as its first chunk stands, then run again."""
    arguments = [
        "sweep", "--model", "mini-token", "--writers", ",".join(PLAN.writers), "--movers", "L3H0", "--n-items", "4,5",
        "--prompts", "25", "--values=-4:4:4", "--logits", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "talking_heads_utils", *arguments], stderr=subprocess.DEVNULL)
    chunks = tmp_path / "run" / CHUNKS
    while process.poll() is None and not (chunks.is_dir() and any(chunks.glob("n*.parquet"))):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = contents(tmp_path / "run")
    assert first, "killed too early to prove anything"
    done = {p.name: p.stat().st_mtime_ns for p in chunks.glob("n*.parquet")}
    for part in chunks.glob(".*.part"):
        assert part.name not in done, "a half-written file never has a chunk's name"
    assert main(arguments) == 0
    assert_same_chunks(tmp_path / "run", whole)
    assert all((chunks / name).stat().st_mtime_ns == at for name, at in done.items()), "finished chunks are kept"


def test_shards_join_to_the_whole(model, whole, tmp_path):
    parts = [tmp_path / f"part{i}" for i in range(3)]
    for i in (0, 2):
        run_sweep(*model, PLAN, parts[i], shard=(i, 3))
    with pytest.raises(OptionError, match="2 of 6 chunks are in no part"):
        merge([parts[0], parts[2]], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(OptionError, match="4 chunks of .* are missing"):
        aggregate(parts[0])
    run_sweep(*model, PLAN, parts[1], shard=(1, 3))
    assert main(["merge", *map(str, parts), "--out", str(tmp_path / "all")]) == 0
    assert contents(tmp_path / "all") == {name: data for part in parts for name, data in contents(part).items()}
    assert_same_chunks(tmp_path / "all", whole)
    assert read_plan(tmp_path / "all") == PLAN
    assert load(tmp_path / "all" / "steering.json").table == aggregate(tmp_path / "all").table


def test_another_plan_is_refused_and_nothing_is_mixed_in(model, whole, tmp_path):
    before = contents(whole)
    with pytest.raises(OptionError, match="other n_prompts, seed. Nothing was mixed in"):
        run_sweep(*model, replace(PLAN, seed=1, n_prompts=30), whole)
    assert contents(whole) == before
    other = tmp_path / "other"
    run_sweep(*model, replace(PLAN, n_items=(4,), n_prompts=10), other)
    with pytest.raises(OptionError, match="not of one sweep"):
        merge([whole, other], tmp_path / "all")
    with pytest.raises(OptionError, match="holds no sweep"):
        read_plan(tmp_path / "nowhere")


def test_bad_requests_are_one_clear_error_each(model, tmp_path, capsys):
    with pytest.raises(OptionError, match="settings; 1 to 1,000,000 can be swept"):
        replace(PLAN, values=tuple(range(101)))
    with pytest.raises(OptionError, match="Read attention, logits or both"):
        replace(PLAN, read=())
    for shard in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(OptionError, match="A shard is one of"):
            run_sweep(*model, PLAN, tmp_path, shard=shard)
    assert values_of("-100:100:10") == [-100.0 + 10 * i for i in range(21)] and values_of("2:2:1") == [2.0]
    for text in ("1:2", "a:b:c", "0:10:3", "0:1:0", "1:0:1"):
        with pytest.raises(ValueError):
            values_of(text)
    common = ["sweep", "--writers", "L1H0.0", "--out", str(tmp_path / "x"), "--prompts", "10", "--n-items", "4"]
    for extra, message in (
        (["--model", "mini-x", "--logits"], "No small model"),
        (["--model", "mini-token"], "Read attention, logits or both"),
        (["--model", "mini-token", "--movers", "L1H0"], "a reader lies above every writer"),
        (["--model", "mini-token", "--logits", "--batch-size", "0"], "--batch-size is 1 or more"),
        (["--model", "mini-token", "--logits", "--n-items", "40"], "3 to 20 items"),
    ):
        assert main([*common, *extra]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "x").exists()
