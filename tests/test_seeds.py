"""Runs of one recipe from several seeds: the channel's dimension where it is known, and the measures that ship."""

import json
import shutil

import pandas as pd
import pytest
import torch
from conftest import run_with

from talking_heads_utils.cli import main
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import models as figures
from talking_heads_utils.forward.recording import record
from talking_heads_utils.known import shipped_models
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.models import find_checkpoint, load_model
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.resume import Store
from talking_heads_utils.training import seeds
from talking_heads_utils.training.spec import SPECS, MiniSpec

RUNS = seeds.all_runs()


def recorded(bridge, n_prompts, layer):
    return (record(bridge, half, [layer]) for half in halves(build_laundry(bridge.tokenizer, 5, n_prompts)))


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_the_dimension_is_the_rank_that_was_planted(rank):
    truth = plant(rank=rank)
    selection, held_out = recorded(truth.bridge, 120, 2)
    mover, writers = truth.roles[MOVER][0], truth.roles[INHIBITION]
    curve = seeds.channel_curve(selection, held_out, mover, writers, k_max=rank + 1, n_random=5)
    table = pd.DataFrame(curve)
    by = table.pivot(index="k", columns="what", values="mean")
    # rank 4 is a torus, along whose slow circle five items lie close together: not all of it is needed
    assert seeds.dimension(curve) == rank if rank < 4 else 2 <= seeds.dimension(curve) <= 4
    assert by[seeds.TOP][rank] == pytest.approx(by[seeds.TOGETHER][rank], abs=1e-3)
    assert by[seeds.TOP][1] > 0.8 * by[seeds.TOGETHER][1], "one direction is not enough"
    assert by[seeds.RANDOM].min() > 0.1 * by[seeds.TOGETHER][1]
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()


def test_without_a_channel_there_is_no_dimension():
    truth = plant(channel=False)
    curve = seeds.channel_curve(*recorded(truth.bridge, 80, 2), truth.roles[MOVER][0], truth.roles[INHIBITION])
    assert max(abs(row["mean"]) for row in curve) < 1e-3
    assert seeds.dimension([row | {"mean": 0.01} for row in curve]) is None


def test_taking_directions_out_equals_a_hooked_run():
    """The query that is left is the old one less its projection, over the new divisor."""
    bridge, mover, heads = load_model("mini-token"), Head(3, 0), [Head(1, 3), Head(1, 0)]
    selection, held_out = recorded(bridge, 80, 3)
    curve = seeds.channel_curve(selection, held_out, mover, heads, k_max=2, n_random=2)
    prompts, at = held_out.prompts, bridge.blocks[mover.layer]
    W_Q, b_Q = at.attn.W_Q[mover.head].detach(), at.attn.b_Q[mover.head].detach()
    center = torch.eye(len(W_Q)) - 1 / len(W_Q)

    def written(recording):
        return sum(recording.write(head.layer)[:, head.head] for head in heads) @ center @ W_Q

    top = torch.linalg.svd(written(selection))[2][:2]
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    moved = -(written(held_out) @ top.T @ top) @ torch.linalg.pinv(center @ W_Q)
    x = (held_out.reader(mover.layer).resid[rows, end] + moved) @ center
    query = x / (x.square().mean(-1, keepdim=True) + bridge.cfg.eps).sqrt() @ W_Q + b_Q

    def replace(tensor):
        tensor[rows, end, mover.head] = query

    pattern = f"blocks.{mover.layer}.attn.hook_pattern"
    _, seen = run_with(bridge, prompts, [(f"blocks.{mover.layer}.attn.hook_q", replace)], [pattern])
    change = seen[pattern][rows, mover.head, end] - held_out.reader(mover.layer).pattern[:, mover.head]
    (found,) = (row["mean"] for row in curve if (row["k"], row["what"]) == (2, seeds.TOP))
    assert found == pytest.approx((change * contrast(prompts)).sum(-1).mean().item(), abs=1e-4) and abs(found) > 0.1


def test_a_run_is_measured_once_and_another_is_refused(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(shipped_models()["mini-token"], run / "final")
    command = ["seeds", str(run), "--out", str(out)]
    assert main(command) == 0
    path = out / "mini-token-0.json"
    (found,), before = seeds.all_runs(out), path.read_bytes()
    shipped = next(r for r in RUNS if (r["model"], r["seed"]) == ("mini-token", 0))
    assert found.keys() == shipped.keys()
    assert [h["head"] for h in found["inhibition_heads"]] == [h["head"] for h in shipped["inhibition_heads"]]
    for was, now in ((shipped, found), *zip(shipped["inhibition_heads"], found["inhibition_heads"])):
        numbers = {name: value for name, value in was.items() if isinstance(value, float) and name != "seconds"}
        assert {name: now[name] for name in numbers} == pytest.approx(numbers, abs=0.02)
    means = [[row["mean"] for row in one["channel"]] for one in (found, shipped)]
    assert found["dimension"] == shipped["dimension"] and means[0] == pytest.approx(means[1], abs=0.02)
    assert main(command) == 0 and "there already" in capsys.readouterr().out and path.read_bytes() == before
    with pytest.raises(OptionError, match="n_prompts"):
        seeds.measure_all([run], out, n_prompts=60)
    with Store.of(out, ".json").part("other") as part:
        part.note.update(found, checkpoint="another")
    (out / "other.json").replace(path)
    with pytest.raises(ResultError, match="mini-token-0"):
        seeds.measure_all([run], out)
    path.write_text("{")
    with pytest.raises(ResultError, match="mini-token-0"):
        seeds.all_runs(out)


def test_seed_0_is_the_model_that_ships_and_every_recipe_of_lists_is_there():
    assert {run["model"] for run in RUNS} == {name for name, spec in SPECS.items() if isinstance(spec, MiniSpec)}
    assert len({(run["model"], run["seed"]) for run in RUNS}) == len({run["checkpoint"] for run in RUNS}) == len(RUNS)
    of_seed_0 = {run["model"]: run for run in RUNS if run["seed"] == 0}
    assert of_seed_0.keys() == {run["model"] for run in RUNS}
    for name, run in of_seed_0.items():
        assert run["checkpoint"] == find_checkpoint(shipped_models()[name]).sha256()
        assert run["step"] == json.loads((shipped_models()[name] / "training.json").read_text())["step"]
    for run in RUNS:
        spec = SPECS[run["model"]]
        assert run["step"] in [spec.round(i).end for i in range(spec.rounds + 1)] and run["longest"] == spec.n_items


def test_rows_and_the_figure_are_of_the_files():
    rows = {(row.model, row.seed): row for row in seeds.seed_rows(RUNS)}
    run = next(r for r in RUNS if (r["model"], r["seed"]) == ("mini-token", 0))
    row, without = rows["mini-token", 0], rows["mini-free", 0]
    assert (row.dimension, row.ioi) == (run["dimension"], run["accuracy"]["ioi"]) and 0 < row.random_share < 1
    assert row.heads.split(", ") == [head["head"] for head in run["inhibition_heads"]] and row.solved == 12
    assert without.heads == "" and without.dimension is without.random_share is None
    assert len(frame(rows.values())) == len(RUNS)
    figure = figures.seeds_figure(RUNS)
    models = {r["model"] for r in RUNS}
    assert len(figure.layout.updatemenus[0].buttons) == len(models) and len(figure.data) % len(models) == 0
    of_run = [t for t in figure.data if t.name == "seed 0" and not t.showlegend and t.x]
    assert max(of_run[0].y) <= 1.06 and of_run[0].y[run["dimension"] - 1] >= seeds.SHARE
