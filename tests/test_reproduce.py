"""`reproduce` from end to end: what is kept, what is made again, what is refused, and what a page may show."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import rehearsals
import torch
from conftest import draw_few, shrink

from talking_heads_utils import batches
from talking_heads_utils.errors import ModelError, NotApplicable, OptionError, ResultError
from talking_heads_utils.experiments import context, gate, source_sum, store
from talking_heads_utils.experiments.catalogue import BY_NAME, EXPERIMENTS, chapters_of
from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.corpus import OWN_TEXTS
from talking_heads_utils.experiments.icl import additivity, evidence, tasks
from talking_heads_utils.experiments.inhibition import circuit
from talking_heads_utils.experiments.rows import frame, rows
from talking_heads_utils.experiments.run import chosen, reproduce
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, known_models, model_source
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.resume import PLAN, Store
from talking_heads_utils.roles import DIRECT, NAME_MOVER, QUERY, S_INHIBITION, Role, Roles
from talking_heads_utils.roles.ioi import Pair, find_roles, pairs_of_prompts
from talking_heads_utils.site import scorecard
from talking_heads_utils.stats import Interval

TEXTS = Path(__file__).parent.parent / "README.md"
MINE = [BY_NAME[name] for name in ("parts", "tasks", "looks-back")]
CHEAP = 2.0  # seconds that a stored experiment took which is made again here


def silent(line: str) -> None:
    pass


def results_in(folder: Path) -> dict[str, store.Finished]:
    there = Store.of(folder)
    return {name: store.load(there, BY_NAME[name]) for name in there.names()}


def assert_same(one: Path, other: Path) -> None:
    tables = {path.name: pd.read_parquet(path) for path in one.glob("*.parquet")}
    assert {path.name for path in other.glob("*.parquet")} == set(tables) and tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.read_parquet(other / name), table, atol=1e-4)


# --- every experiment, once ---------------------------------------------------------------------------------------


@pytest.mark.longest
def test_a_sharded_bfloat16_folder_of_another_family_goes_through_every_experiment(gpt2_source, tmp_path, monkeypatch):
    """With all gates left open, and roles given: random weights have none."""
    if not Path(gpt2_source).is_dir():
        pytest.skip("GPT-2's tokenizer is in no folder; set TALKING_HEADS_GPT2")
    draw_few(monkeypatch)
    shrink(monkeypatch)
    monkeypatch.setattr(gate, "AT_LEAST", 0.0)
    monkeypatch.setattr(context, "find_roles", some_roles)
    monkeypatch.setattr(tasks, "low_end", lambda name, measured: 0.5 if name in ("plural", "past_tense") else None)
    for module in (evidence, additivity):
        monkeypatch.setattr(module, "asked", lambda c: c.kept(evidence.read))
    folder = rehearsals.tiny("llama", tmp_path / "llama", Path(gpt2_source))
    assert len(list(folder.glob("*.safetensors"))) > 1
    c = Context(str(folder), quick=True, texts=TEXTS, dtype=torch.bfloat16)
    results, failed = reproduce(c, EXPERIMENTS, tmp_path / "results", silent)
    done = results_in(results)
    assert not failed and set(done) == set(BY_NAME)
    assert not {name: r.reason for name, r in done.items() if r.reason} and all(len(r.table) for r in done.values())
    assert all(r.about["dtype"] == "bfloat16" and "rehearsal" in r.about["shows"] for r in done.values())
    assert store.finished("gpt2", tmp_path / "results") == {}, "a page cannot pick it up"


def some_roles(*args, **options) -> Roles:
    """A mover and two inhibition heads, found in no model."""
    at, below = Interval(1.0, 0.5, 1.5, 40), Interval(-1.0, -1.5, -0.5, 40)
    inhibition = [Role(S_INHIBITION, Head(layer, 1), QUERY, Head(3, 2), -1.0, 0.01, below) for layer in (1, 2)]
    return Roles((Role(NAME_MOVER, Head(3, 2), DIRECT, None, 1.0, 0.01, at), *inhibition))


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory) -> tuple[Path, Path]:
    """A small model that can do both tasks, under a name that nobody knows, and its results of chapter 1."""
    where = tmp_path_factory.mktemp("lookalike")
    folder = shutil.copytree(model_source("mini-token")[0], where / "stranger")
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        found, failed = reproduce(Context(str(folder), quick=True, texts=TEXTS), chosen((1,)), where, silent)
    assert not failed
    return folder, found


@pytest.mark.longest
def test_a_model_that_can_do_the_tasks_goes_through_the_gate_and_then_by_its_roles(lookalike):
    folder, results = lookalike
    done = results_in(results)
    assert set(done) == {e.name for e in chosen((1,))} and not {n: r.reason for n, r in done.items() if r.reason}
    cells = {(c.task, c.n_items): c for c in rows(done["gate"].table, gate.Cell) if c.whole}
    assert cells["ioi", 2].accuracy > 0.9 and all(cells["laundry", n].asked for n in context.QUICK_GATE)
    bridge = load_model(folder)
    found = find_roles(bridge, bridge.tokenizer, n_prompts=80)
    asked = Context(str(folder), quick=True, finished=lambda name: done[name].table)
    assert asked.roles.heads(S_INHIBITION) == found.heads(S_INHIBITION) and asked.mover == found.mover
    assert list(asked.lengths) == list(context.QUICK_GATE), "not those of the book's own"
    held_out = Pair.of(bridge, *pairs_of_prompts(bridge.tokenizer, 80)[1])
    expected = frame(circuit.exchange_rows(bridge, held_out, found))["effect"].tolist()
    stored = done["circuit"].table.query("measure == 'exchange'")["effect"].tolist()
    assert stored == pytest.approx(expected, abs=1e-3)


def test_a_run_that_goes_on_reads_the_roles_that_are_stored(lookalike, tmp_path, monkeypatch):
    folder, results = lookalike
    again = shutil.copytree(results, tmp_path / results.name)
    (again / "circuit.json").unlink()
    draw_few(monkeypatch)
    for module, name in ((context, "find_roles"), (gate, "run_gate")):
        monkeypatch.setattr(module, name, raising(AssertionError(f"{name} is run anew")))
    _, failed = reproduce(Context(str(folder), quick=True, texts=TEXTS), chosen((1,)), tmp_path, silent)
    assert not failed
    assert_same(results, again)


def test_lists_are_asked_about_as_far_as_the_gate_allows(tmp_path):
    (tmp_path / "lists").mkdir()
    asked = gate.Cell("laundry", 4, "all", "all", gate.ANYWHERE, 0.5, 0.4, 0.6, 100, 0.25, 0.1, 0.1, asked=True)
    nothing, one = Context(str(tmp_path / "lists")), Context(str(tmp_path / "lists"))
    nothing.gate, one.gate = [replace(asked, asked=False)], [asked]
    with pytest.raises(NotApplicable):
        nothing.n_items(6)
    assert one.n_items(6) == one.n_items(2) == 4
    with pytest.raises(NotApplicable):
        _ = one.lengths
    assert Context(PLANTED).lengths and Context("mini-token").n_items(6) == 6


# --- what is kept -------------------------------------------------------------------------------------------------


def go(root: Path, experiments=MINE, say=silent):
    return reproduce(Context("mini-icl", quick=True), experiments, root, say)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three experiments on a small model in one go."""
    folder, failed = go(tmp_path_factory.mktemp("whole"))
    assert not failed
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(whole, tmp_path / whole.name)


def with_run(name: str, run) -> list[Experiment]:
    run.__module__ = BY_NAME[name].module
    return [replace(e, run=run) if e.name == name else e for e in MINE]


def raising(error):
    def work(*args, **options):
        raise error

    return work


def test_an_interrupted_run_goes_on_and_ends_as_an_unbroken_one(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, with_run("looks-back", raising(KeyboardInterrupt())))
    folder, said = tmp_path / whole.name, []
    assert Store.of(folder).names() == ["parts", "tasks"]
    go(tmp_path, say=said.append)
    assert len(said) == 2
    assert_same(whole, folder)


def test_only_what_does_not_apply_is_kept_as_a_result(copied):
    """Any other error is the user's or ours: it is named, nothing is stored, and the other experiments go on."""
    for name in ("tasks", "looks-back"):
        (copied / f"{name}.json").unlink()
    for error in (OptionError("a wrong option"), ValueError("a bug")):
        found, failed = go(copied.parent, with_run("tasks", raising(error)))
        assert failed == {"tasks": error} and Store.of(found).names() == ["looks-back", "parts"]
    _, failed = go(copied.parent, with_run("tasks", raising(NotApplicable("no list"))))
    assert not failed and results_in(copied)["tasks"].reason == "no list"
    with pytest.raises(NotApplicable, match="no list"):
        store.table_in(Store.of(copied), "tasks", Context("mini-icl", quick=True))


def test_what_other_code_made_is_named_and_made_again(whole, copied):
    there, said = Store.of(copied), []
    note, content = there.note("looks-back"), there.path("looks-back").read_bytes()
    with there.part("looks-back") as part:
        part.file.write_bytes(content)
        part.note |= note | {"source": "another sum"}
    assert {name: result.stale for name, result in results_in(copied).items() if result.stale} == {
        "looks-back": ("source",)
    }
    go(copied.parent, say=said.append)
    assert "looks-back" in said[1] and len(said) == 3 and not results_in(copied)["looks-back"].stale
    assert_same(whole, copied)


def test_the_sum_of_the_source_is_that_of_code_and_not_of_prose(tmp_path):
    text = '"""Doc."""\nimport os  # why\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'
    prose = '"""Other\nwords."""\nimport os\ndef f(x):\n    # more\n    return x + 1  # so\n'
    assert source_sum.code_of(text) == source_sum.code_of(prose) != source_sum.code_of(text.replace("1", "2"))
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\n"
    assert source_sum.code_of(typed) == "from typing import TYPE_CHECKING"
    here = source_sum.depends_on(BY_NAME["exchange"].module)
    assert "talking_heads_utils.forward.recording" in here and "talking_heads_utils.roles.ioi" in here
    assert not [m for m in here if m.split(".")[1] in ("figures", "site", "cli")]
    assert not any(m.startswith("talking_heads_utils.experiments.icl") for m in here), "of no other chapter"


def test_a_table_depends_on_the_texts_that_it_reads(tmp_path):
    texts, attends, places = tmp_path / "texts.txt", BY_NAME["attends"], BY_NAME["looks-back"]
    texts.write_text("one text")
    c = Context(PLANTED, texts=texts)
    before = store.key_of(attends, c)
    texts.write_text("another")
    assert store.key_of(attends, c) != before and store.key_of(places, c)["texts"] is None
    assert store.key_of(attends, Context(PLANTED))["texts"] == OWN_TEXTS


def test_a_model_goes_through_the_experiments_that_suit_it():
    assert [e.name for e in chosen((1, 2, 3, 4))] == [*BY_NAME]
    own = {e.name for e in chosen((1,), of_own=True)}
    assert {"says", "attends"} <= own and not own & {"prefix", "gate", "roles"}
    assert chapters_of(PLANTED) == (1, 2, 3) and chapters_of("mini-icl") == (4,)
    assert chapters_of(CONTROL) == (1, 2, 3) and chapters_of("mini-token") == () and chapters_of(GPT2_WEIGHTS) == (1,)


# --- what is refused ----------------------------------------------------------------------------------------------


def planned(folder: Path, **changes) -> None:
    """The folder's run says something else of itself."""
    (folder / PLAN).write_text(json.dumps(dict(Store.of(folder).plan) | changes))


def test_results_of_another_run_are_never_mixed_in(copied):
    planned(copied, seed=7)
    before = (copied / "looks-back.json").read_bytes()
    with pytest.raises(OptionError, match="seed"):
        go(copied.parent)
    assert (copied / "looks-back.json").read_bytes() == before


def test_a_page_shows_nothing_that_is_not_what_it_says(copied):
    known, folder = known_models()["gpt2"], copied.rename(copied.parent / "gpt2")
    good = dict(model="gpt2", quick=False, revision=known.revision, prefix=known.prefix)
    for wrong in (dict(model="mini-token"), dict(quick=True), dict(revision="f" * 40), dict(revision=None),
                  dict(prefix="x")):  # fmt: skip
        planned(folder, **good | wrong)
        with pytest.raises(ResultError, match="gpt2"):
            store.finished("gpt2", folder.parent)
    planned(folder, **good)
    shown = store.finished("gpt2", folder.parent)
    assert set(shown) == {e.name for e in MINE}
    assert "earlier code" in replace(shown["looks-back"], stale=("source",)).describe()
    (folder / PLAN).unlink()
    with pytest.raises(ResultError):
        store.finished("gpt2", folder.parent)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pyarrow.parquet.write_table", raising(OSError(28, "No space left on device")))
    _, failed = go(tmp_path / "b", MINE[2:])
    assert isinstance(failed["looks-back"], OptionError) and not list((tmp_path / "b").rglob("*.*"))


def test_out_of_memory_halves_the_batch_and_says_so():
    sizes, said = [], []

    def work():
        sizes.append(batches.size(64))
        if sizes[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sizes[-1]

    assert batches.halving(work, said.append) == 16 and sizes == [64, 32, 16] and len(said) == 2
    assert batches.size(64) == 64 and batches.size(0) == 1
    with pytest.raises(ModelError):
        batches.halving(raising(MemoryError()), said.append)
    with pytest.raises(RuntimeError, match="another"):
        batches.halving(raising(RuntimeError("another error")), said.append)


def test_smaller_batches_give_the_same_tables():
    usual = {name: BY_NAME[name].table(Context("mini-icl", quick=True)) for name in ("tasks", "patches", "parts")}
    with batches.divided_by(16):
        for name, table in usual.items():
            pd.testing.assert_frame_equal(BY_NAME[name].table(Context("mini-icl", quick=True)), table, atol=1e-4)


# --- what ships ---------------------------------------------------------------------------------------------------


def test_every_toy_was_run_whole_by_this_code_and_what_is_older_says_so():
    for model, done in scorecard.all_results().items():
        stale = {name for name, result in done.items() if result.stale}
        if model in scorecard.TOYS:
            assert not stale and set(done) == {e.name for e in chosen(chapters_of(model), of_own=True)}, model
        assert all("made by earlier code" in done[name].describe() for name in stale), model


@pytest.mark.longest
def test_shipped_results_are_what_the_code_gives_today():
    """Every experiment of the planted model that takes no time, made again, but for two that rank what is alike there:
    readers that read nothing, and places in texts. Their order is that of the rounding, which differs by machine."""
    c = Context(PLANTED)
    for name, kept in store.finished(PLANTED).items():
        cheap = kept.about["seconds"] < CHEAP and name not in ("listeners", "contexts")
        if cheap and not kept.stale and not kept.reason:
            row = BY_NAME[name].row
            pd.testing.assert_frame_equal(BY_NAME[name].table(c), frame(rows(kept.table, row), row),
                                          atol=5e-3, rtol=1e-3, check_dtype=False, obj=name)  # fmt: skip
