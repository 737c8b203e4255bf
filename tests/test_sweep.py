"""Sweeps: resumed after kill -9 they give the same arrays; another plan is refused; what is kept equals what the engine
gives."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from talking_heads_utils.cli import main
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part, build
from talking_heads_utils.experiments.positional.grid import ATTENTION, LOGITS, answer, prepare, steer
from talking_heads_utils.experiments.positional.subspace import chosen
from talking_heads_utils.experiments.positional.sweep import Plan, aggregate, load, read_plan, run_sweep, save
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_with_tokenizer
from talking_heads_utils.resume import read_note

PLAN = Plan(
    model="mini-token", writers=("L0H0.0", "L1H1.0", "L1H0.1"), movers=("L3H0", "L3H1"), n_items=(5, 4), n_prompts=25,
    seed=0, values=(-40.0, 0.0, 40.0), logits=True, dtype="float32", code="test",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_with_tokenizer("mini-token")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(*model, PLAN, folder)
    return folder


def chunks(folder):
    return {path.name: dict(np.load(path)) for path in folder.glob("n*.npz")}


def assert_same_chunks(one, other):
    """Attention and logits, which are summed in another order elsewhere, within their rounding."""
    first, second = ({(n, k): v for n, arrays in chunks(of).items() for k, v in arrays.items()} for of in (one, other))
    assert first.keys() == second.keys() and first
    for key, values in first.items():
        np.testing.assert_allclose(values.astype(float), second[key].astype(float), atol=2e-2, rtol=2e-3)


def direct(model, n_items):
    """The prompts, and what the engine gives, of which no answer hangs on the order of a sum."""
    prompts = build(model[1], Lists(Part.HELD_OUT, n_items, PLAN.n_prompts), PLAN.seed)
    steering = prepare(model[0], prompts, [Component.parse(w) for w in PLAN.writers])
    found = steer(steering, PLAN.settings, movers=[Head.parse(m) for m in PLAN.movers], logits=True)
    first, second = found[LOGITS].topk(2).values.unbind(-1)
    assert (first - second).min() > 1e-4, "choose other values: a tie would be decided by rounding"
    return prompts, found


def test_a_killed_sweep_goes_on_and_ends_the_same(whole, tmp_path):
    """The command, killed by SIGKILL as soon as its first chunk stands, then run again."""
    arguments = [
        "sweep", "--model", "mini-token", "--writers", ",".join(PLAN.writers), "--movers", "L3H0,L3H1", "--n-items",
        "4,5", "--prompts", "25", "--values=-40:40:40", "--logits", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "talking_heads_utils", *arguments], stderr=subprocess.DEVNULL)
    folder = tmp_path / "run"
    while process.poll() is None and not any(folder.glob("n*.json")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("n*.json")}
    assert done, "killed too early to prove anything"
    assert main(arguments) == 0
    assert_same_chunks(folder, whole)
    assert all((folder / name).stat().st_mtime_ns == at for name, at in done.items()), "finished chunks are kept"


def test_another_plan_is_refused_and_nothing_is_mixed_in(model, whole, tmp_path):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(OptionError, match="n_prompts, seed"):
        run_sweep(*model, replace(PLAN, seed=1, n_prompts=30), whole)
    assert {path: path.read_bytes() for path in whole.iterdir()} == before
    for content in ("{}", json.dumps(asdict(PLAN) | {"values": "x"})):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(OptionError):
            read_plan(tmp_path)
    with pytest.raises(OptionError):
        read_plan(tmp_path / "nowhere")


@pytest.mark.parametrize("changes", [
    dict(values=tuple(range(101))), dict(movers=(), logits=False), dict(n_items=()), dict(values=(float("nan"),)),
    dict(n_prompts=10**6),
], ids=str)  # fmt: skip
def test_a_plan_that_cannot_be_run_is_refused(changes):
    with pytest.raises(OptionError):
        replace(PLAN, **changes)


@pytest.mark.parametrize("n_items", [4, 5])
def test_chunks_and_table_are_what_the_engine_gives(model, whole, n_items):
    _, table = aggregate(whole)
    table = table[table["n_items"] == n_items]
    prompts, found = direct(model, n_items)
    assert table[["first", "second", "third"]].to_numpy().tolist() == PLAN.settings.tolist()
    assert (table["n"] == 25).all()
    chunk, below = chunks(whole)[f"n0{n_items}-0020.npz"], found[LOGITS] - found[LOGITS].amax(-1, keepdim=True)
    for name, values in ((ATTENTION, found[ATTENTION]), (LOGITS, below)):
        np.testing.assert_allclose(chunk[name].astype(np.float32), values[20:].numpy(), atol=2e-2, rtol=2e-3)
    attention = found[ATTENTION].mean((0, 2))
    said = torch.nn.functional.one_hot(found[LOGITS].argmax(-1), n_items).double().mean(0)
    for item, share, values, rounding in (
        ("attended", "attention", attention, 3e-4), ("answer", "answered", said, 1e-9),
    ):  # fmt: skip
        np.testing.assert_allclose(table[share], values.amax(1), atol=rounding)
        own = values.gather(1, torch.tensor(table[item].tolist())[:, None])[:, 0]
        np.testing.assert_allclose(table[share], own, atol=rounding)
    right = (answer(found[LOGITS]) == torch.tensor(prompts.info["index"])[:, None]).double().mean(0)
    np.testing.assert_allclose(table["right"], right)
    assert right.min() < 0.5 < right.max() and table["attended"].nunique() > 1


def test_a_table_is_read_as_it_was_written_and_a_damaged_one_is_refused(whole, tmp_path):
    about, table = aggregate(whole)
    path = save(about, table, tmp_path)
    assert load(path)[1].to_dict("list") == table.to_dict("list") and load(path)[0]["plan"]["n_prompts"] == 25
    held = path.read_bytes()
    path.write_bytes(held[:100] + b"x" + held[101:])
    with pytest.raises(ResultError, match="steering.parquet"):
        load(path)
    with pytest.raises(ResultError, match="no table of a sweep"):
        load(save(about, table.drop(columns="right"), tmp_path))


def test_one_command_from_a_model_to_its_results(tmp_path, capsys):
    """Writers and movers are chapter 2's; what is not read is empty; the table goes to the results."""
    arguments = ["sweep", "--model", "planted", "--n-items", "4", "--prompts", "10", "--values=-4:4:4"]
    arguments += ["--part", "selection", "--out", str(tmp_path / "run"), "--results", str(tmp_path / "results")]
    assert main(arguments) == 0
    assert "of Planted model" in capsys.readouterr().out
    path, at = tmp_path / "results" / "planted" / "steering.parquet", chosen(Context("planted"))
    table, about = pd.read_parquet(path), read_note(path)
    assert about["plan"]["writers"] == list(map(str, at.writers[:3])) and about["torch"]
    assert about["plan"]["movers"] == list(map(str, at.movers)) and about["plan"]["part"] == Part.SELECTION
    assert len(table) == 27 and table["right"].isna().all() and table["attended"].notna().all()
