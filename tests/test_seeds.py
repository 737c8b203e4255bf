"""Runs of one recipe from several seeds: the channel's dimension where it is known, and the measures that ship."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from talking_heads_utils.cli import main
from talking_heads_utils.errors import CheckpointError, OptionError, ResultError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import concentration
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import models as figures
from talking_heads_utils.forward.recording import record
from talking_heads_utils.metrics import contrast
from talking_heads_utils.models import find_checkpoint, shipped_models
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.resume import Store
from talking_heads_utils.training import seeds
from talking_heads_utils.training.card import card_text, write_card
from talking_heads_utils.training.spec import SPECS, MiniSpec

RUNS = seeds.all_runs()


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_the_dimension_is_the_rank_that_was_planted(rank):
    truth = plant(rank=rank)
    selection, held_out = (record(truth.bridge, h, [2]) for h in halves(build_laundry(truth.tokenizer, 5, 120)))
    mover, writers = truth.roles[MOVER][0], truth.roles[INHIBITION]
    curve = concentration.channel_curve(selection, held_out, mover, writers, k_max=rank + 1, n_random=5)
    table = frame(curve)
    by = table.pivot(index="k", columns="what", values="mean")
    # rank 4 is a torus, along whose slow circle five items lie close together: not all of it is needed
    assert concentration.dimension(curve) == rank if rank < 4 else 2 <= concentration.dimension(curve) <= 4
    assert by[concentration.TOP][rank] == pytest.approx(by[concentration.TOGETHER][rank], abs=1e-3)
    assert by[concentration.TOP][1] > 0.8 * by[concentration.TOGETHER][1], "one direction is not enough"
    assert by[concentration.RANDOM].min() > 0.1 * by[concentration.TOGETHER][1]
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()


def test_without_a_channel_there_is_no_dimension():
    truth = plant(channel=False)
    selection, held_out = (record(truth.bridge, h, [2]) for h in halves(build_laundry(truth.tokenizer, 5, 80)))
    curve = concentration.channel_curve(selection, held_out, truth.roles[MOVER][0], truth.roles[INHIBITION], n_random=3)
    assert max(abs(row.mean) for row in curve) < 1e-3
    above = [replace(row, mean=0.01) if row.what == concentration.TOGETHER else row for row in curve]
    assert concentration.dimension(above) is None


def test_taking_directions_out_equals_a_hooked_run():
    """The query that is left is the old one less its projection, over the new divisor."""
    c = Context("mini-token", quick=True)
    s = c.kept(mover_runs)
    selection, held_out = s.selection, s.held_out
    table = frame(concentration.channel_curve(selection, held_out, s.mover, s.heads, k_max=2, n_random=2))
    mover, bridge, prompts = s.mover, c.bridge, held_out.prompts
    at = bridge.blocks[mover.layer]
    W_Q, b_Q = at.attn.W_Q[mover.head].detach(), at.attn.b_Q[mover.head].detach()
    center = torch.eye(len(W_Q)) - 1 / len(W_Q)

    def written(recording):
        return sum(recording.write(head.layer)[:, head.head] for head in s.heads) @ center @ W_Q

    top = torch.linalg.svd(written(selection))[2][:2]
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    moved = -(written(held_out) @ top.T @ top) @ torch.linalg.pinv(center @ W_Q)
    x = (held_out.reader(mover.layer).resid[rows, end] + moved) @ center
    eps = bridge.cfg.eps
    query = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() @ W_Q + b_Q
    seen = {}

    def replace(tensor, hook):
        tensor = tensor.clone()
        tensor[rows, end, mover.head] = query
        return tensor

    hooks = [
        (f"blocks.{mover.layer}.attn.hook_q", replace),
        (f"blocks.{mover.layer}.attn.hook_pattern", lambda t, hook: seen.update(p=t)),
    ]
    with torch.no_grad():
        bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
    change = seen["p"][rows, mover.head, end] - held_out.reader(mover.layer).pattern[:, mover.head]
    found = table[(table["k"] == 2) & (table["what"] == concentration.TOP)]["mean"].item()
    assert found == pytest.approx((change * contrast(prompts)).sum(-1).mean().item(), abs=1e-4) and found < -0.3


def assert_alike(found, expected, told):
    """Names and counts are the same; what is summed in another order elsewhere is close."""
    if isinstance(expected, dict | list):
        keys = list(expected) if isinstance(expected, dict) else range(len(expected))
        assert (list(found) if isinstance(found, dict) else range(len(found))) == keys, told
        for key in keys:
            assert_alike(found[key], expected[key], told)
    else:
        assert found == (pytest.approx(expected, abs=0.02) if isinstance(expected, float) else expected), told


def test_a_run_is_measured_once_and_another_is_refused(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(shipped_models()["mini-token"], run / "final")
    write_card(run / "final")
    command = ["seeds", str(run), "--out", str(out)]
    assert main(command) == 0
    path = out / "mini-token-0.json"
    (found,), before = seeds.all_runs(out), path.read_bytes()
    assert (run / "final" / "README.md").read_text() == card_text(run / "final", found), "the card says what was found"
    shipped = next(r for r in RUNS if (r["model"], r["seed"]) == ("mini-token", 0))
    assert found.keys() == shipped.keys()
    for key in found.keys() - {"machine", "versions", "seconds"}:
        assert_alike(found[key], shipped[key], f"{key}: measure the shipped run again")
    assert main(command) == 0 and "there already" in capsys.readouterr().out and path.read_bytes() == before
    with pytest.raises(OptionError, match="other n_prompts"):
        seeds.measure_all([run], out, n_prompts=60)
    with Store.of(out, ".json").part("other") as part:
        part.note.update(found, checkpoint="another")
    (out / "other.json").replace(path)
    with pytest.raises(ResultError, match="another run of that seed"):
        seeds.measure_all([run], out)
    path.write_text("{")
    with pytest.raises(ResultError, match="mini-token-0"):
        seeds.all_runs(out)


@pytest.mark.parametrize(
    "change",
    [None, "{", "[]", "[" * 100_000, {"seed": -1}, {"spec": {"name": "../x"}}, {"spec": 1}, {"accuracy": ...}],
    ids=lambda change: str(change)[:20],
)
def test_what_is_no_finished_run_is_refused_before_any_is_measured(change, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shipped_models()["mini-token"], run / "final")
    card = run / "final" / "training.json"
    if isinstance(change, dict):
        whole = json.loads(card.read_text()) | change
        card.write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))
    elif change is not None:
        card.write_text(change)
    else:
        shutil.copyfile(shipped_models()["mini-icl"] / "training.json", card)
    with pytest.raises(CheckpointError):
        seeds.measure_all([shipped_models()["mini-token"].parent, run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_that_the_held_out_half_does_not_bear_out_are_none(monkeypatch):
    folder = shipped_models()["mini-token"]
    assert seeds.measure(folder, n_prompts=60)["inhibition_heads"]
    monkeypatch.setattr(seeds, "LEAST_CHANGE", 2.0)  # more than I(m) can fall by
    found = seeds.measure(folder, n_prompts=60)
    assert found["inhibition_heads"] == [] and found["inhibition_score"]["mean"] > 0.5 and "dimension" not in found


def test_seed_0_is_the_model_that_ships_and_every_recipe_of_lists_is_there():
    lists = {name for name, spec in SPECS.items() if isinstance(spec, MiniSpec)}
    assert {run["model"] for run in RUNS if run["seed"] == 0} == lists
    assert len({(run["model"], run["seed"]) for run in RUNS}) == len({run["checkpoint"] for run in RUNS}) == len(RUNS)
    for run in RUNS:
        if run["seed"] == 0:
            assert run["checkpoint"] == find_checkpoint(shipped_models()[run["model"]]).sha256()
            assert run["step"] == json.loads((shipped_models()[run["model"]] / "training.json").read_text())["step"]
        spec = SPECS[run["model"]]
        assert run["step"] in [spec.round(i).end for i in range(spec.rounds + 1)] and run["longest"] == spec.n_items


def test_rows_and_the_figure_are_of_the_files():
    rows = {(row.model, row.seed): row for row in seeds.seed_rows(RUNS)}
    run = next(r for r in RUNS if (r["model"], r["seed"]) == ("mini-token", 0))
    row, without = rows["mini-token", 0], rows["mini-free", 0]
    assert (row.dimension, row.ioi) == (run["dimension"], run["accuracy"]["ioi"]) and 0 < row.random_share < 1
    assert row.heads.startswith(run["inhibition_heads"][0]["head"]) and row.solved == row.kinds == 12
    assert without.heads == "" and without.dimension is without.spearman is without.random_share is None
    assert len(frame(rows.values())) == len(RUNS)
    figure = figures.seeds_figure(RUNS)
    assert len(figure.layout.updatemenus[0].buttons) == len({r["model"] for r in RUNS})
