"""What is kept of a finished sweep equals what the engine gives, and nothing but a known real model passes for one."""

import json
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from talking_heads_utils.cli import build_parser, main
from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.experiments.positional import study
from talking_heads_utils.experiments.positional import sweep_results as results
from talking_heads_utils.experiments.positional.gains import ORACLE, STRATEGIES, gains
from talking_heads_utils.experiments.positional.sweep import Plan, run_sweep
from talking_heads_utils.experiments.positional.sweep_results import (
    Result,
    aggregate,
    load,
    load_real,
    not_run,
    results_folder,
    save,
)
from talking_heads_utils.figures import positional as figures
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import is_real, known_models, load_with_tokenizer, shown_as
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.steer import ATTENTION, LOGITS, grid, prepare, random_directions, steer

PLAN = Plan(
    model="mini-token", writers=("L0H0.0", "L1H1.0", "L1H0.1"), movers=("L3H0",), n_items=(5, 4), n_prompts=24, seed=0,
    values=(-40.0, 0.0, 40.0), read=(ATTENTION, LOGITS), dtype="float32", code="test",
)  # fmt: skip
REVISION = known_models()["gpt2"].revision


@pytest.fixture(scope="module")
def model():
    return load_with_tokenizer("mini-token")


@pytest.fixture(scope="module")
def own(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    run_sweep(*model, PLAN, folder)
    return aggregate(folder)


@pytest.fixture(scope="module")
def control(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    run_sweep(*model, replace(PLAN, random=1, movers=(), read=(LOGITS,)), folder)
    return aggregate(folder)


def relabelled(result: Result, **changes) -> Result:
    """The same numbers under another name: what a real model's result looks like."""
    return Result(dict(result.about) | {"plan": dict(result.about["plan"]) | changes}, result.table)


def as_real(result: Result) -> Result:
    return relabelled(result, model="gpt2", revision=REVISION)


def direct(model, n_items, random=None):
    """The prompts, and what the engine gives, of which no answer hangs on the order of a sum."""
    prompts = build_laundry(model[1], n_items, PLAN.n_prompts, PLAN.seed)
    directions = None if random is None else random_directions(1, 3, model[0].cfg.d_model, random)[0]
    steering = prepare(model[0], prompts, [Component.parse(w) for w in PLAN.writers], directions)
    found = steer(steering, grid(PLAN.values), movers=[Head(3, 0)], logits=True)
    first, second = found[LOGITS].topk(2).values.unbind(-1)
    assert (first - second).min() > 1e-4, "choose other values: a tie would be decided by rounding"
    return prompts, found


@pytest.mark.parametrize("n_items", [4, 5])
def test_the_aggregates_are_those_of_the_engine(model, own, control, tmp_path, n_items):
    result = load(save(own, tmp_path).with_suffix(".json"))
    prompts, found = direct(model, n_items)
    place = torch.as_tensor(prompts.info["index"])
    attention = found[ATTENTION][:, :, 0]
    ours = result.attention("L3H0", n_items)
    assert ours.shape == (3, 3, 3, n_items)
    np.testing.assert_allclose(ours.reshape(27, n_items), attention.mean(0), atol=2e-4)
    own_attention = attention.gather(2, place[:, None, None].expand(-1, 27, 1))[..., 0]
    by_place = torch.stack([own_attention[place == p].mean(0) for p in range(n_items)])
    np.testing.assert_allclose(result.on_answer("L3H0", n_items), by_place, atol=4e-4)
    right = found[LOGITS].argmax(-1) == place[:, None]
    assert (result.right(n_items) == right.numpy()).all() and 0 < right.double().mean() < 1
    assert result.places(n_items).tolist() == prompts.info["index"]
    assert result.held_out(n_items).tolist() == [half == "held-out" for half in prompts.info["half"]]
    along_random = direct(model, n_items, random=1)[1][LOGITS].argmax(-1) == place[:, None]
    assert (control.right(n_items) == along_random.numpy()).all() and (along_random != right).any()
    with pytest.raises(OptionError, match="holds no attention:L3H1 for lists of 4"):
        result.attention("L3H1", 4)


def test_a_place_without_prompts_is_undefined(model, tmp_path):
    run_sweep(*model, replace(PLAN, n_prompts=2, n_items=(4,)), tmp_path)
    result = aggregate(tmp_path)
    shown = np.isnan(result.on_answer("L3H0", 4)).all(1)
    assert shown.sum() == 4 - len(set(result.places(4))) and result.right(4).shape == (2, 27)


def test_gains_of_a_finished_sweep_are_those_of_its_prompts(model, own, control, tmp_path):
    assert load_real("gpt2", tmp_path) is None
    for result in (own, control):
        save(as_real(result), tmp_path / "gpt2")
    finished = load_real("gpt2", tmp_path)
    found = study.finished_gains(finished)
    ours, (random,) = found["gpt2, 5 items"]
    prompts, values = direct(model, 5)
    place = torch.as_tensor(prompts.info["index"])
    selection = torch.tensor([half == "selection" for half in prompts.info["half"]])
    assert ours == gains(values[LOGITS].argmax(-1) == place[:, None], selection, place, grid(PLAN.values))
    assert set(random) == set(STRATEGIES) and random[ORACLE].settings == []
    assert len(study.gains_table(found)) == 2 * len(STRATEGIES)
    assert study.finished_gains(replace(finished, controls=())) == {}, "no gain without its control"
    panels, axes = figures.sweep_panels(finished.own)
    figure = figures.traversal_figure(panels, axes)
    cell = own.attention("L3H0", 4)[0, 2, 1]
    place = cell.argmax() if cell.max() >= figures.HALF else figures.NONE
    assert list(axes) == ["gpt2, L3H0"] and figure.data[0].z[0][2] == place
    assert figure.data[0].customdata[0][2] == f"most attention to place {cell.argmax()}: {cell.max():.2f}"
    assert REVISION in finished.own.describe() and "27 settings on 24 prompts" in finished.own.describe()


def test_files_that_are_damaged_or_of_another_format_are_refused(own, tmp_path):
    path = save(own, tmp_path)
    about, table = path.with_suffix(".json"), path.read_bytes()
    text = about.read_text()
    for name, content in (("half", text[:200]), ("list", "[1]"), ("place", text.replace("[0, 1", "[1, 0", 1))):
        about.write_text(content)
        with pytest.raises(ResultError, match="Make it again|damaged"):
            load(about)
        assert name
    about.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(ResultError, match="has format 99; this package reads 1"):
        load(about)
    about.write_text(text)
    for damaged in (table[:-50], table[:100] + b"x" + table[101:]):
        path.write_bytes(damaged)
        with pytest.raises(ResultError, match="are damaged, or not of one result"):
            load(about)
    path.unlink()
    with pytest.raises(ResultError, match="no whole result"):
        load(about)


def test_a_toy_or_a_rehearsal_never_stands_for_a_real_model(own, control, tmp_path):
    at = tmp_path / "gpt2"
    for wrong in (own, relabelled(own, model="gpt2"), relabelled(own, model="gpt2", revision="0" * 40)):
        save(wrong, at)
        with pytest.raises(ResultError, match="must not stand for gpt2"):
            load_real("gpt2", tmp_path)
    save(as_real(own), at)
    save(relabelled(control, model="gpt2", revision=REVISION, seed=5), at)
    with pytest.raises(ResultError, match="a control of another sweep: steering-random1"):
        load_real("gpt2", tmp_path)
    (at / "steering.json").unlink()
    with pytest.raises(ResultError, match="no whole result"):
        load_real("gpt2", tmp_path)
    assert results_folder(tmp_path, "gpt2", REVISION) == at
    for model in ("gpt2", "/somewhere/gpt2"):
        assert results_folder(tmp_path, model, None) == tmp_path / "rehearsal-gpt2"
    assert results_folder(tmp_path, "mini-token/early", None) == tmp_path / "mini-token-early"
    assert not is_real("gpt2", None) and "not known to be a real model" in shown_as(str(tmp_path))


def test_one_command_from_a_model_to_its_results(tmp_path, capsys):
    """Writers and mover found as chapter 2 finds them; the aggregates go where the book would look for them."""
    out = ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "results")]
    arguments = ["sweep", "--model", "mini-token", "--n-items", "4", "--prompts", "10", "--values=-4:4:4", "--logits"]
    assert main([*arguments, *out]) == 0
    assert "of mini-token, trained here, a toy" in capsys.readouterr().out
    result = load(tmp_path / "results" / "mini-token" / "steering.json")
    at = study.channel("mini-token")
    assert result.plan.writers == tuple(map(str, at.writers)) and result.plan.movers == (str(at.mover),)
    assert result.about["made"][0]["chunks"] == 1 and result.about["made"][0]["versions"]["torch"]
    assert main([*arguments, "--random", "1", "--out", str(tmp_path / "control"), *out[2:]]) == 0
    control = load(tmp_path / "results" / "mini-token" / "steering-random1.json")
    assert control.plan == replace(result.plan, random=1, movers=(), read=(LOGITS,))


def test_what_is_not_run_says_how_to_run_it():
    text = not_run("EleutherAI/pythia-160m")
    lines = [line for line in text.replace("\\\n", "").splitlines() if line.startswith("python")]
    assert text.startswith("**EleutherAI/pythia-160m: not run yet.**") and len(lines) == 3
    parsed = [build_parser().parse_args(line.split()[3:]) for line in lines]
    assert [p.random for p in parsed] == [None, 1, 2] and len({p.out for p in parsed}) == 3
    assert all(p.results.as_posix() == "data/results" and p.logits and len(p.values) == 21 for p in parsed)


def test_the_chapter_shows_a_finished_sweep_and_says_what_was_not_run(own, control, tmp_path, monkeypatch):
    """The chapter's own cell, with a finished sweep of one of the two models that it knows."""
    import IPython.display

    from talking_heads_utils.figures import page

    for result in (own, control):
        save(as_real(result), tmp_path / "gpt2")
    shown, said = [], []
    monkeypatch.setattr(page, "show", lambda figure, **about: shown.append((figure, about)))
    monkeypatch.setattr(IPython.display, "display", said.append)
    monkeypatch.setattr(results, "load_real", lambda name: load_real(name, tmp_path))
    path = Path(__file__).resolve().parent.parent / "notebooks" / "02_positional_subspace.ipynb"
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {}
    for wanted in ("from IPython.display", "finished = "):
        exec(next(source for source in sources if source.startswith(wanted) or f"\n{wanted}" in source), names)
    ((figure, about),) = shown
    assert about["name"] == "fig-traversal-gpt2" and REVISION in about["caption"] and len(figure.data) == 2
    table, *not_there = said
    assert set(table["model"]) == {"gpt2, 4 items", "gpt2, 5 items"}
    assert [said.data for said in not_there] == [not_run("EleutherAI/pythia-160m"), not_run("smollm2")]
