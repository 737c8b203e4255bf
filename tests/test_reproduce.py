"""`reproduce` from end to end on folders that stand in for real models, and all that may go wrong on the way."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import rehearsals
import torch

from talking_heads_utils import batches
from talking_heads_utils.cli import main
from talking_heads_utils.errors import ModelError, NotApplicable, OptionError, ResultError
from talking_heads_utils.experiments import context, gate, store
from talking_heads_utils.experiments.catalogue import EXPERIMENTS, chapters_of
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.corpus import OPEN_WEB_TEXT_NAME, PYDOC, texts_provenance
from talking_heads_utils.experiments.gate import gate_from
from talking_heads_utils.experiments.inhibition.circuit import circuit_table
from talking_heads_utils.experiments.run import chosen, merge, reproduce
from talking_heads_utils.labels import Head
from talking_heads_utils.models import known_models, load_model, model_source
from talking_heads_utils.roles import DIRECT, NAME_MOVER, QUERY, S_INHIBITION, Role, Roles
from talking_heads_utils.roles.ioi import Pair, find_roles, pairs_of_prompts
from talking_heads_utils.site import notebook, scorecard
from talking_heads_utils.stats import Interval

TEXTS = Path(__file__).parent.parent / "README.md"
MINE = [e for e in EXPERIMENTS if e.name in ("crowding", "places", "decoding")]


@pytest.fixture(scope="module")
def source(gpt2_source) -> Path:
    if not Path(gpt2_source).is_dir():
        pytest.skip("GPT-2's tokenizer and weights are in no folder; set TALKING_HEADS_GPT2")
    return Path(gpt2_source)


@pytest.mark.longest
def test_a_folder_in_gpt2s_format_is_asked_what_the_gate_lets_it_be_asked(source, tmp_path, capsys):
    """Random MLPs: it cannot do IOI, and says so with its accuracy. Its roles can be asked for all the same."""
    folder = rehearsals.gpt2(tmp_path / "gpt2", source, n_layers=3)
    arguments = ["reproduce", "--model", str(folder), "--quick", "--out", str(tmp_path), "--texts", str(TEXTS)]
    arguments += ["--chapters", "1,2,3"]
    wanted = {e.name for e in chosen((1, 2, 3))}
    assert main(arguments) == 0
    results = tmp_path / "rehearsal-gpt2-quick"
    done = {path.stem: store.load(path) for path in results.glob("*.json")}
    assert set(done) == wanted and not list(results.glob(".*"))
    assert all("rehearsal" in r.about["shows"] and r.about["quick"] and r.about["checkpoint"] for r in done.values())
    impossible = {name: result.reason for name, result in done.items() if result.reason}
    assert all(len(result.table) for name, result in done.items() if name not in impossible)
    assert set(impossible) == wanted - {"prefix", "gate"}
    accuracy = gate_from(done["gate"].table)[0].describe()
    refused = "The model cannot do this task well enough to be asked how: "
    assert accuracy.startswith("IOI: ") and impossible["roles"] == impossible["circuit"] == f"{refused}{accuracy}."
    assert all(r.startswith((refused, str(folder))) and "chance" in r for r in impossible.values())
    assert store.finished("gpt2", tmp_path) == {}, "a page cannot pick it up"
    capsys.readouterr()
    assert main(arguments) == 0 and "16 of 16 experiments are there" in capsys.readouterr().out
    bridge = load_model(folder)
    found = find_roles(bridge, bridge.tokenizer, n_prompts=80)
    assert all(entry.p < 0.05 and entry.effect.n == 40 for entry in found.entries)


def some_roles(*args, **options) -> Roles:
    """A mover and two inhibition heads, found in no model."""
    at = Interval(1.0, 0.5, 1.5, 40)
    below = Interval(-1.0, -1.5, -0.5, 40)
    inhibition = [Role(S_INHIBITION, Head(layer, 1), QUERY, Head(3, 2), -1.0, 0.01, below) for layer in (1, 2)]
    return Roles((Role(NAME_MOVER, Head(3, 2), DIRECT, None, 1.0, 0.01, at), *inhibition))


@pytest.mark.longest
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_sharded_bfloat16_folders_of_other_families_go_through_every_experiment(family, source, tmp_path, monkeypatch):
    """With the gate left open, and roles given: random weights have none."""
    monkeypatch.setattr(gate, "AT_LEAST", 0.0)
    monkeypatch.setattr(context, "find_roles", some_roles)
    folder = rehearsals.tiny(family, tmp_path / family, source)
    assert len(list(folder.glob("*.safetensors"))) > 1
    s = Context(str(folder), quick=True, texts=TEXTS, dtype=torch.bfloat16)
    results, failed = reproduce(s, EXPERIMENTS, tmp_path / "results", lambda line: None)
    done = {path.stem: store.load(path) for path in results.glob("*.json")}
    assert not failed and set(done) == {e.name for e in EXPERIMENTS}
    assert not {name: r.reason for name, r in done.items() if r.reason} and all(len(r.table) for r in done.values())
    assert all(r.about["dtype"] == "bfloat16" and r.about["revision"] is None for r in done.values())


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory) -> tuple[Path, Path]:
    """A small model that can do both tasks, under a name that nobody knows, and its results of chapters 1 to 3."""
    where = tmp_path_factory.mktemp("lookalike")
    folder = shutil.copytree(model_source("mini-token")[0], where / "stranger")
    found, failed = reproduce(Context(str(folder), quick=True, texts=TEXTS), chosen((1, 2, 3)), where)
    assert not failed
    return folder, found


@pytest.mark.longest
def test_a_model_that_can_do_the_tasks_goes_through_the_gate_and_then_by_its_roles(lookalike):
    folder, results = lookalike
    done = {path.stem: store.load(path) for path in results.glob("*.json")}
    assert set(done) == {e.name for e in chosen((1, 2, 3))} > {e.name for e in chosen((1, 2, 3), of_own=True)}
    assert not {name: r.reason for name, r in done.items() if r.reason} and all(len(r.table) for r in done.values())
    cells = {(c.task, c.n_items): c for c in gate_from(done["gate"].table) if (c.order, c.place) == ("all", -1)}
    assert cells["ioi", 2].accuracy > 0.9 and all(cells["laundry", n].asked for n in context.QUICK_GATE)
    assert set(done["crowding"].table["n_items"]) == set(context.QUICK_GATE), "not those of the book's own"
    bridge = load_model(folder)
    found = find_roles(bridge, bridge.tokenizer, n_prompts=80)
    pd.testing.assert_frame_equal(done["roles"].table, found.frame(), atol=1e-4, check_dtype=False)
    assert found.heads(NAME_MOVER) and found.heads(S_INHIBITION), "or this test would show little"
    held_out = Pair.of(bridge, *pairs_of_prompts(bridge.tokenizer, 80)[1])
    expected = circuit_table(bridge, held_out, found)
    pd.testing.assert_frame_equal(done["circuit"].table, expected, atol=1e-3, rtol=1e-3, check_dtype=False)
    asked = Context(str(folder), finished=lambda name: done[name].table)
    pd.testing.assert_frame_equal(asked.roles.frame(), done["roles"].table, check_dtype=False)
    assert asked.mover == found.mover
    assert done["concentration"].table["head"].tolist() == list(map(str, found.heads(S_INHIBITION)))


def test_a_run_that_goes_on_reads_the_roles_that_are_stored(lookalike, tmp_path, monkeypatch):
    folder, results = lookalike
    again = shutil.copytree(results, tmp_path / results.name)
    for name in ("circuit", "decoding", "removal"):
        (again / f"{name}.json").unlink(), (again / f"{name}.parquet").unlink()
    for module, name in ((context, "find_roles"), (gate, "run_gate")):
        monkeypatch.setattr(module, name, raising(AssertionError(f"{name} is run anew")))
    said = []
    reproduce(Context(str(folder), quick=True, texts=TEXTS), chosen((1, 2, 3)), tmp_path, said.append)
    assert "13 of 16 experiments are there" in said[0] and len(said) == 4
    assert_same(results, again)


def test_the_books_own_models_skip_what_is_known_of_them(tmp_path):
    assert {e.name for e in EXPERIMENTS if not e.of_own} == {"prefix", "gate", "roles", "circuit", "words", "functions"}
    assert Context("planted").lengths and Context("mini-token").n_items(6) == 6
    (tmp_path / "lists").mkdir()
    nothing = Context(str(tmp_path / "lists"))
    nothing.gate = [replace(cell, asked=False) for cell in gate_from(made_gate())]
    with pytest.raises(NotApplicable, match=r"cannot be asked about lists.*lists of 4: 50% \[40%, 60%\], chance 25%"):
        nothing.n_items(6)
    one = Context(str(tmp_path / "lists"))
    one.gate = gate_from(made_gate())
    assert one.n_items(6) == one.n_items(2) == 4
    with pytest.raises(NotApplicable, match="lists of one length at most"):
        _ = one.lengths


def made_gate() -> pd.DataFrame:
    """Lists of 4 may be asked about, lists of 8 not."""
    cells = [
        gate.Cell("laundry", n, "all", "all", gate.ANYWHERE, 0.5, 0.4, 0.6, 100, 1 / n, 0.1, 0.1, asked=n == 4)
        for n in (4, 8)
    ]
    return gate.gate_table(cells)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three experiments on a small model in one go."""
    folder, failed = reproduce(Context("mini-token", quick=True), MINE, tmp_path_factory.mktemp("whole"))
    assert not failed
    return folder


def test_an_interrupted_run_goes_on_and_ends_as_an_unbroken_one(whole, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("talking_heads_utils.experiments.positional.study.accuracy_by_place", stop)
    with pytest.raises(KeyboardInterrupt):
        reproduce(Context("mini-token", quick=True), MINE, tmp_path)
    folder = tmp_path / whole.name
    assert {path.name for path in folder.iterdir()} == {
        f"{n}.{e}" for n in ("decoding", "crowding") for e in ("json", "parquet")
    }
    monkeypatch.undo()
    said = []
    reproduce(Context("mini-token", quick=True), MINE, tmp_path, say=said.append)
    assert "2 of 3 experiments are there" in said[0] and said[1].startswith("1/1 places")
    assert_same(whole, folder)


def assert_same(one: Path, other: Path) -> None:
    tables = {path.name: pd.read_parquet(path) for path in one.glob("*.parquet")}
    assert {path.name for path in other.glob("*.parquet")} == set(tables) and tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.read_parquet(other / name), table, atol=1e-4)


def test_three_shards_are_one_run(tmp_path):
    start = ["reproduce", "--model", "mini-token", "--chapters", "2", "--quick"]
    for i in range(3):
        assert main([*start, "--shard", f"{i}/3", "--out", str(tmp_path / f"part-{i}")]) == 0
    assert main([*start, "--out", str(tmp_path)]) == 0
    parts = [str(tmp_path / f"part-{i}" / "mini-token-quick") for i in range(3)]
    assert main(["merge", *parts, "--out", str(tmp_path / "merged")]) == 0
    assert main(["merge", *parts, "--out", str(tmp_path / "merged"), "--results", str(tmp_path / "other")]) == 2
    assert_same(tmp_path / "mini-token-quick", tmp_path / "merged")
    sizes = [len(list(Path(part).glob("*.json"))) for part in parts]
    assert sum(sizes) == 5 and min(sizes) > 0


def test_a_result_depends_on_what_a_file_of_texts_says(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one text")
    before = store.key_of(Context("planted", texts=texts))
    assert store.key_of(Context("planted", texts=texts)) == before != store.key_of(Context("planted"))
    texts.write_text("another")
    assert store.key_of(Context("planted", texts=texts)) != before


def test_a_result_says_what_stood_in_front_of_its_prompts_and_which_texts_it_read(checkpoints):
    own, other = (store.key_of(Context(str(name))) for name in ("planted", checkpoints["llama"]))
    assert (own["prefix"], other["prefix"], own["texts"]) == ("<bos>", "", None)
    assert other["texts"] == texts_provenance(PYDOC) and {"prefix", "texts"} <= set(store.KEY)
    named = store.key_of(Context(str(checkpoints["llama"]), texts=OPEN_WEB_TEXT_NAME))
    assert named["texts"].startswith("Skylion007/openwebtext, revision ")


def test_parts_of_different_runs_are_not_merged(whole, tmp_path):
    other = shutil.copytree(whole, tmp_path / "other")
    rewritten(other / "places.json", seed=7)
    with pytest.raises(ResultError, match="not of one run"):
        merge([whole, other], tmp_path / "merged")
    with pytest.raises(ResultError, match="are no results"):
        merge([tmp_path], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(ResultError, match="Nothing was overwritten"):
        merge([whole], other)
    assert before == {path.name: path.read_bytes() for path in other.iterdir()}
    assert main(["merge", str(tmp_path / "nothing"), "--out", str(tmp_path / "merged")]) == 2


def rewritten(path: Path, **changes) -> Path:
    """A finished result that says something else of itself, with a sum that fits."""
    import pyarrow.parquet as pq

    from talking_heads_utils.experiments import result_files

    about = json.loads(path.read_text()) | changes
    about.pop("sha256")
    return result_files.write(about, pq.read_table(path.with_suffix(".parquet")), path.with_suffix(".parquet"))


def test_results_of_another_run_are_never_overwritten(whole, tmp_path):
    for changes, told in (({"seed": 7}, "seed 7, not 0"), ({"code": "0.0.1"}, "code '0.0.1'")):
        folder = shutil.copytree(whole, tmp_path / str(changes) / whole.name)
        rewritten(folder / "places.json", **changes)
        before = (folder / "places.json").read_bytes()
        with pytest.raises(ResultError, match=told):
            reproduce(Context("mini-token", quick=True), MINE, folder.parent)
        assert (folder / "places.json").read_bytes() == before


def test_a_page_shows_nothing_that_is_not_what_it_says(whole, tmp_path):
    known = known_models()["gpt2"]
    for changes, shown in (
        ({}, False), ({"model": "gpt2"}, False), ({"model": "gpt2", "quick": False}, False),
        ({"model": "gpt2", "quick": False, "revision": "f" * 40}, False),
        ({"model": "gpt2", "quick": False, "revision": known.revision, "code": "0.0.1"}, False),
        ({"model": "gpt2", "quick": False, "revision": known.revision, "prefix": known.prefix + "x"}, False),
        ({"model": "gpt2", "quick": False, "revision": known.revision, "prefix": known.prefix}, True),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "gpt2", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "gpt2")
        for path in (tmp_path / "gpt2").glob("*.json"):
            rewritten(path, **changes)
        if shown:
            assert set(store.finished("gpt2", tmp_path)) == {e.name for e in MINE}
        else:
            with pytest.raises(ResultError, match="must not stand for gpt2"):
                store.finished("gpt2", tmp_path)


def test_a_damaged_result_is_refused_and_a_full_disk_leaves_nothing(whole, tmp_path, monkeypatch):
    damaged = shutil.copytree(whole, tmp_path / "a" / whole.name)
    table = damaged / "places.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(ResultError, match="damaged"):
        reproduce(Context("mini-token", quick=True), MINE, tmp_path / "a")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OptionError, match="Is the disk full"):
        reproduce(Context("mini-token", quick=True), MINE[:1], tmp_path / "b")
    assert list((tmp_path / "b" / whole.name).iterdir()) == []


def test_without_a_network_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))  # whatever is cached here
    assert main(["reproduce", "--model", "EleutherAI/pythia-160m", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and list(tmp_path.iterdir()) == []
    for bad in (["--chapters", "5"], ["--seed", "-1"], ["--texts", str(tmp_path / "none.txt")]):
        assert main(["reproduce", "--model", "planted", "--out", str(tmp_path), *bad]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_an_experiment_that_cannot_be_fetched_is_left_for_later(lookalike, tmp_path):
    activity = [e for e in EXPERIMENTS if e.name in ("activity", "prefix")]
    s = Context(str(lookalike[0]), quick=True, texts=OPEN_WEB_TEXT_NAME)
    results, failed = reproduce(s, activity, tmp_path, say=lambda line: None)
    assert len(failed) == 1 and failed[0].startswith("activity: Open Web Text could not be fetched")
    assert (results / "prefix.json").exists() and not (results / "activity.json").exists()


def test_out_of_memory_halves_the_batch_and_says_so():
    sizes, said = [], []

    def work():
        sizes.append(batches.size(64))
        if sizes[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sizes[-1]

    assert batches.halving(work, said.append) == 16 and sizes == [64, 32, 16]
    assert said == [f"memory ran out; once more in batches of 1/{k} of the usual size" for k in (2, 4)]
    assert batches.size(64) == 64 and batches.size(0) == 1
    with pytest.raises(ModelError, match="1/256"):
        batches.halving(raising(MemoryError()), said.append)
    with pytest.raises(RuntimeError, match="another"):
        batches.halving(raising(RuntimeError("another error")), said.append)


def raising(error):
    def work():
        raise error

    return work


def test_smaller_batches_give_the_same_tables():
    s = Context("mini-icl", quick=True)
    names = ("accuracy", "patch", "parts")
    usual = {e.name: e.table(s) for e in EXPERIMENTS if e.name in names}
    with batches.divided_by(16):
        for e in EXPERIMENTS:
            if e.name in names:
                pd.testing.assert_frame_equal(e.table(s), usual[e.name], atol=1e-4)


def test_every_experiment_of_a_chapter_falls_to_one_shard():
    parts = [chosen((1, 2, 3, 4), (i, 3)) for i in range(3)]
    assert sorted(e.name for part in parts for e in part) == sorted(e.name for e in EXPERIMENTS)
    weights = [sum(e.weight for e in part) for part in parts]
    assert max(weights) < 1.3 * min(weights)
    assert [e.chapter for e in chosen((2,))] == [2] * 5
    assert {e.name for e in chosen((1,), of_own=True)} == {"agreement", "concentration", "carries", "activity"}
    assert chapters_of("planted") == (1, 2, 3) and chapters_of("mini-icl") == (4,) == chapters_of(
        "meta-llama/Meta-Llama-3-8B"
    )


def test_the_place_where_a_notebook_runs(monkeypatch):
    monkeypatch.delenv(notebook.MODEL_VARIABLE, raising=False)
    assert notebook.model_to_add() is None
    assert notebook.device() == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert notebook.model_to_add() == "gpt2" and "gpt2 needs 0.5 GB" in notebook.prepare("gpt2")
    assert "No model is added" in notebook.prepare(None)
    monkeypatch.setattr(notebook, "free_memory", lambda device: 10_000_000)
    assert "too little" in notebook.prepare("gpt2")
    monkeypatch.setenv(notebook.MODEL_VARIABLE, "planted")
    assert notebook.model_to_add() == "planted"
    assert (
        notebook.dtype_for("meta-llama/Meta-Llama-3-8B") == torch.bfloat16
        and notebook.dtype_for("gpt2") == torch.float32
    )


def test_the_token_of_a_gated_model_comes_from_colabs_secrets(monkeypatch):
    class Secrets:
        SecretNotFoundError, NotebookAccessError = KeyError, PermissionError
        kept = {"HF_TOKEN": "hf_1"}

        def get(self, name):
            return self.kept[name]

    colab = type(sys)("google.colab")
    colab.userdata = Secrets()
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("HF_TOKEN", "")  # so that what is set below is undone
    monkeypatch.delenv("HF_TOKEN")
    notebook.prepare("meta-llama/Meta-Llama-3-8B")
    assert os.environ.pop("HF_TOKEN") == "hf_1"
    Secrets.kept = {}
    notebook.prepare("meta-llama/Meta-Llama-3-8B")
    assert "HF_TOKEN" not in os.environ


def test_shipped_results_are_what_the_code_gives_today():
    """One cheap experiment of each kind, made again; of 100 prompts another rounding may turn an answer or two."""
    for model, name in (("mini-icl", "parts"), ("mini-token", "reach")):
        kept = store.finished(model)[name]
        again = next(e for e in EXPERIMENTS if e.name == name).table(Context(model))
        pd.testing.assert_frame_equal(again.reset_index(drop=True), kept.table, atol=0.05, rtol=0.05, check_dtype=False)


def test_every_toy_of_the_scorecard_was_run_whole():
    for model, done in scorecard.all_results().items():
        if model not in scorecard.TOYS:
            continue
        assert set(done) == {e.name for e in chosen(chapters_of(model), of_own=True)}, model
        assert all(model.split("/")[0] in r.about["shows"].lower() for r in done.values())


def test_a_real_models_results_are_preferred_to_running_it(monkeypatch):
    about = store.Finished({"not_possible": None}, pd.DataFrame())
    done = {e.name: about for e in EXPERIMENTS if e.chapter == 2}
    monkeypatch.setattr(scorecard, "finished", lambda model, root=None: done if model == "gpt2" else {})
    assert scorecard.to_run("gpt2", 2) == [] and scorecard.to_run("gpt2", 3) == ["gpt2"]
    assert scorecard.to_run(None, 2) == [] and scorecard.to_run("a/folder", 2) == ["a/folder"]
