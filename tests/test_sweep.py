"""Sweeps: resumed after kill -9 they give the same arrays; shards join to the whole; another plan is refused; what is
kept equals what the engine gives, and nothing but a known real model passes for one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from talking_heads_utils.cli import main
from talking_heads_utils.cli.sweep import values_of
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.positional.decoding import channel
from talking_heads_utils.experiments.positional.gains import Strategy, gains
from talking_heads_utils.experiments.positional.steering import gain_rows
from talking_heads_utils.experiments.positional.sweep import Plan, merge, read_plan, run_sweep
from talking_heads_utils.experiments.positional.sweep_results import (
    Result,
    aggregate,
    load,
    load_real,
    results_folder,
    save,
)
from talking_heads_utils.figures import positional as figures
from talking_heads_utils.forward.steer import ATTENTION, LOGITS, grid, prepare, random_directions, steer
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import known_models, load_with_tokenizer
from talking_heads_utils.prompts.lists import build_laundry

PLAN = Plan(
    model="mini-token", writers=("L0H0.0", "L1H1.0", "L1H0.1"), movers=("L3H0",), n_items=(5, 4), n_prompts=25, seed=0,
    values=(-40.0, 0.0, 40.0), logits=True, dtype="float32", code="test",
)  # fmt: skip
REVISION = known_models()["gpt2"].revision
RANDOM = replace(PLAN, random=1, movers=())


@pytest.fixture(scope="module")
def model():
    return load_with_tokenizer("mini-token")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    assert run_sweep(*model, PLAN, folder) == list(PLAN.chunks)
    return folder


@pytest.fixture(scope="module")
def own(whole):
    return aggregate(whole)


@pytest.fixture(scope="module")
def control(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    run_sweep(*model, RANDOM, folder)
    return aggregate(folder)


def chunks(folder):
    return {path.name: dict(np.load(path)) for path in folder.glob("n*.npz")}


def assert_same_chunks(one, other):
    """Attention and logits, which are summed in another order elsewhere, within their rounding."""
    first, second = chunks(one), chunks(other)
    assert first.keys() == second.keys() and first
    for name, arrays in first.items():
        assert arrays.keys() == second[name].keys()
        for key, values in arrays.items():
            np.testing.assert_allclose(values.astype(float), second[name][key].astype(float), atol=2e-2, rtol=2e-3)


def direct(model, n_items, random=None):
    """The prompts, and what the engine gives, of which no answer hangs on the order of a sum."""
    prompts = build_laundry(model[1], n_items, PLAN.n_prompts, PLAN.seed)
    directions = None if random is None else random_directions(1, 3, model[0].cfg.d_model, random)[0]
    steering = prepare(model[0], prompts, [Component.parse(w) for w in PLAN.writers], directions)
    found = steer(steering, grid(PLAN.values), movers=[Head(3, 0)], logits=True)
    first, second = found[LOGITS].topk(2).values.unbind(-1)
    assert (first - second).min() > 1e-4, "choose other values: a tie would be decided by rounding"
    return prompts, found, found[LOGITS].argmax(-1) == torch.as_tensor(prompts.info["index"])[:, None]


def test_a_chunk_holds_what_the_engine_gives(model, whole):
    prompts, found, _ = direct(model, 5)
    chunk = chunks(whole)["n05-0020.npz"]
    below = found[LOGITS] - found[LOGITS].amax(-1, keepdim=True)
    for name, values in ((ATTENTION, found[ATTENTION][20:]), (LOGITS, below[20:])):
        np.testing.assert_allclose(chunk[name].astype(np.float32), values.numpy(), atol=2e-2, rtol=2e-3)
    assert chunk["list_index"].tolist() == prompts.info["index"][20:] and len(chunk["held_out"]) == 5


def test_a_killed_sweep_goes_on_and_ends_the_same(whole, tmp_path):
    """The command, killed by SIGKILL as soon as its first chunk stands, then run again."""
    arguments = [
        "sweep", "--model", "mini-token", "--writers", ",".join(PLAN.writers), "--movers", "L3H0", "--n-items", "4,5",
        "--prompts", "25", "--values=-40:40:40", "--logits", "--out", str(tmp_path / "run"),
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


def test_shards_join_to_the_whole(model, whole, tmp_path):
    parts = [tmp_path / f"part{i}" for i in range(3)]
    for i in (0, 2):
        run_sweep(*model, PLAN, parts[i], shard=(i, 3))
    with pytest.raises(OptionError, match="2 of 6"):
        merge([parts[0], parts[2]], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(OptionError):
        aggregate(parts[0])
    run_sweep(*model, PLAN, parts[1], shard=(1, 3))
    assert main(["merge", *map(str, parts), "--out", str(tmp_path / "all")]) == 0
    assert_same_chunks(tmp_path / "all", whole)
    assert read_plan(tmp_path / "all") == PLAN
    found = load(tmp_path / "all" / "steering.npz")
    assert all((found.arrays[k] == v).all() for k, v in aggregate(tmp_path / "all").arrays.items())


def test_another_plan_is_refused_and_nothing_is_mixed_in(model, whole, tmp_path):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(OptionError, match="n_prompts, seed"):
        run_sweep(*model, replace(PLAN, seed=1, n_prompts=30), whole)
    assert {path: path.read_bytes() for path in whole.iterdir()} == before
    run_sweep(*model, replace(PLAN, n_items=(4,), n_prompts=10), tmp_path / "other")
    with pytest.raises(OptionError):
        merge([whole, tmp_path / "other"], tmp_path / "all")
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


def test_bad_requests_leave_nothing_behind(tmp_path):
    assert values_of("-100:100:10") == [-100.0 + 10 * i for i in range(21)] and values_of("2:2:1") == [2.0]
    for text in ("1:2", "a:b:c", "0:10:3", "0:1:0", "1:0:1"):
        with pytest.raises(ValueError):
            values_of(text)
    common = ["sweep", "--model", "mini-token", "--writers", "L1H0.0", "--out", str(tmp_path / "x"), "--prompts", "10"]
    for extra in ([], ["--movers", "L1H0"], ["--logits", "--n-items", "40"]):
        assert main([*common, *extra]) == 2 and not (tmp_path / "x").exists()


def relabelled(result: Result, **changes) -> Result:
    """The same numbers under another name: what a real model's result looks like."""
    return Result(dict(result.about) | {"plan": dict(result.about["plan"]) | changes}, result.arrays)


def as_real(result: Result) -> Result:
    return relabelled(result, model="gpt2", revision=REVISION)


@pytest.mark.parametrize("n_items", [4, 5])
def test_the_aggregates_are_those_of_the_engine(model, own, control, tmp_path, n_items):
    result = load(save(own, tmp_path))
    prompts, found, right = direct(model, n_items)
    ours = result.traversal("L3H0", n_items).attention
    assert ours.shape == (3, 3, 3, n_items)
    np.testing.assert_allclose(ours.reshape(27, n_items), found[ATTENTION][:, :, 0].mean(0), atol=3e-4)
    assert (result.right(n_items) == right.numpy()).all() and 0 < right.double().mean() < 1
    along_random = direct(model, n_items, random=1)[2]
    assert (control.right(n_items) == along_random.numpy()).all() and (along_random != right).any()
    with pytest.raises(OptionError, match="L3H1"):
        result.traversal("L3H1", 4)
    with pytest.raises(OptionError, match="9"):
        result.right(9)


def test_a_finished_sweep_of_a_real_model_gives_gains_and_a_figure(model, own, control, tmp_path):
    assert load_real("gpt2", tmp_path) is None
    for result in (own, control):
        save(as_real(result), tmp_path / "gpt2")
    finished = load_real("gpt2", tmp_path)
    prompts, _, right = direct(model, 5)
    index = torch.as_tensor(prompts.info["index"])
    selection = torch.tensor([half == "selection" for half in prompts.info["half"]])
    rows = finished.gain_rows()
    expected = gain_rows("gpt2", 5, None, gains(right, selection, index, grid(PLAN.values)))
    assert [row for row in rows if row.n_items == 5 and row.draw is None] == expected
    assert len(rows) == 2 * 2 * len(Strategy) and {row.draw for row in rows} == {None, 0}
    assert replace(finished, controls=()).gain_rows() == [], "no gain without its control"
    panels, axes = figures.sweep_panels(finished.own)
    figure = figures.traversal_figure(panels, axes)
    cell = own.traversal("L3H0", 4).attention[0, 2, 1]
    assert list(axes) == ["gpt2, L3H0"]
    assert figure.data[0].z[0][2] == (cell.argmax() if cell.max() >= figures.HALF else figures.NOBODY)
    assert REVISION in finished.own.describe() and "27 settings on 25 prompts" in finished.own.describe()


def test_files_that_are_damaged_or_of_another_format_are_refused(own, tmp_path):
    path = save(own, tmp_path)
    about, arrays = path.with_suffix(".json"), path.read_bytes()
    text = about.read_text()
    about.write_text(text.replace('"n_prompts": 25', '"n_prompts": 24'))
    with pytest.raises(ResultError, match="steering.npz"):
        load(path)
    save(Result(dict(own.about) | {"format": 99}, own.arrays), tmp_path)
    with pytest.raises(ResultError, match="99"):
        load(path)
    about.write_text(text)
    path.write_bytes(arrays[:100] + b"x" + arrays[101:])
    with pytest.raises(ResultError, match="steering.npz"):
        load(path)


def test_a_toy_or_a_rehearsal_never_stands_for_a_real_model(own, control, tmp_path):
    at = tmp_path / "gpt2"
    for wrong in (own, relabelled(own, model="gpt2"), relabelled(own, model="gpt2", revision="0" * 40)):
        save(wrong, at)
        with pytest.raises(ResultError, match="gpt2"):
            load_real("gpt2", tmp_path)
    save(as_real(own), at)
    save(relabelled(control, model="gpt2", revision=REVISION, seed=5), at)
    with pytest.raises(ResultError, match="steering-random1"):
        load_real("gpt2", tmp_path)
    (at / "steering.json").unlink()
    with pytest.raises(ResultError):
        load_real("gpt2", tmp_path)
    assert results_folder(tmp_path, "gpt2", REVISION) == at
    assert results_folder(tmp_path, "/somewhere/gpt2", None) == tmp_path / "rehearsal-gpt2"


def test_one_command_from_a_model_to_its_results(tmp_path, capsys):
    """Writers and mover found as chapter 2 finds them; the aggregates go where the book would look for them."""
    out = ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "results")]
    arguments = ["sweep", "--model", "mini-token", "--n-items", "4", "--prompts", "10", "--values=-4:4:4", "--logits"]
    assert main([*arguments, *out]) == 0
    assert "of mini-token, trained here, a toy" in capsys.readouterr().out
    result = load(tmp_path / "results" / "mini-token" / "steering.npz")
    at = channel(Context("mini-token"))
    assert result.plan.writers == tuple(map(str, at.writers)) and result.plan.movers == (str(at.mover),)
    assert result.about["made"][0]["chunks"] == 1 and result.about["made"][0]["versions"]["torch"]
    assert main([*arguments, "--random", "1", "--out", str(tmp_path / "control"), *out[2:]]) == 0
    control = load(tmp_path / "results" / "mini-token" / "steering-random1.npz")
    assert control.plan == replace(result.plan, random=1, movers=())
