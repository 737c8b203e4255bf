"""Every command with bad arguments, damaged files and places that cannot be written.

Whatever goes in, a command ends well, or with one clear line, a status that is not zero and nothing half-written; an
error that escapes fails the test. Damage is drawn by hypothesis, from fixed seeds, where it has no natural list.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from talking_heads_utils.cli import COMMANDS as CLI_COMMANDS
from talking_heads_utils.cli import main
from talking_heads_utils.cli.sweep import values_of
from talking_heads_utils.edit.edits import OV, SCALE, Change, new_edit, to_json
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.run import reproduce
from talking_heads_utils.labels import Component
from talking_heads_utils.models import shipped_models
from talking_heads_utils.weights.checkpoints import load_head_weights

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = "a" * 300  # longer than any file system's names
DEEP = "[" * 100_000  # deeper than the parser's stack
NOT_JSON = ["", "{", "[]", "null", "5", '"text"', DEEP, b"\xff\xfe", b"\x00" * 64]
SWEEP = ["--writers", "L1H0.0", "--movers", "L2H0", "--values=-20:20:20", "--prompts", "12", "--n-items", "3"]


def run(*arguments) -> tuple[int | str | None, list[str]]:
    """A command's status, and the lines that stay on the screen: a progress bar overwrites itself."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    shown = (line.rsplit("\r", 1)[-1].strip() for line in errors.getvalue().split("\n"))
    return code, [line for line in shown if line]


def refused(*arguments, says: str = "") -> None:
    """The command ends with one clear line; argparse puts its usage before it."""
    code, lines = run(*arguments)
    assert code == 2, (code, lines)
    if lines[0].startswith("usage: "):
        assert ": error: " in lines[-1], lines
    else:
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert says in lines[-1], lines


def answered(*arguments) -> bool:
    """Whether the command ended well; where it did not it was refused as it should be."""
    code, _ = run(*arguments)
    if code != 0:
        refused(*arguments)
    return code == 0


def files(folder: Path) -> list[str]:
    """All that lies in a folder, hidden and temporary files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@st.composite
def damages(draw, whole: bytes) -> bytes:
    """A file cut short, with bits turned over, with other bytes in front or with a part of it gone."""
    at = draw(st.integers(0, len(whole) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "head", "gone"]))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]
    if kind == "head":
        return draw(st.binary(min_size=1, max_size=16)) + whole[16:]
    return whole[:at] + whole[at + draw(st.integers(1, 64)) :]


@pytest.fixture(scope="session")
def shelf(checkpoints, tmp_path_factory) -> Path:
    """One whole file or folder of each kind that a command reads, of the small GPT-2 and the planted model."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(checkpoints["gpt2"], folder / "model")
    weights = load_head_weights(folder / "model")
    edit = new_edit(weights, [Change(Component(1, 2, 0), OV, SCALE, 0.5)], model="small")
    (folder / "edit.json").write_text(to_json(edit))
    assert run("composition", "--weights", folder / "model", "--out", folder / "scores.safetensors")[0] == 0
    assert run("train", "mini-narrow", "--out", folder / "run", "--minutes", "0")[0] == 0
    assert run("sweep", "--model", "planted", *SWEEP, "--out", folder / "sweep")[0] == 0
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    """An empty folder for what must not be written."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


COMMANDS = {
    "composition": ["composition", "--weights", "{model}", "--out", "{out}"],
    "streamed": ["composition", "--stream", "--weights", "{model}", "--out", "{out}"],
    "atlas": ["atlas", "--scores", "{scores}", "--out", "{out}"],
    "train": ["train", "mini-narrow", "--minutes", "0", "--out", "{out}"],
    "seeds": ["seeds", "{finished}", "--out", "{out}"],
    "sweep": ["sweep", "--model", "{model}", *SWEEP, "--out", "{out}"],
    "merge": ["merge", "{sweep}", "--out", "{out}"],
    "edit": ["edit", "--model", "{model}", "--edit", "{edit}", "--out", "{out}"],
    "benchmark": ["benchmark", "composition", "--weights", "{model}", "--out", "{out}"],
    "reproduce": ["reproduce", "--model", "planted", "--quick", "--out", "{out}"],
}


def command(name: str, shelf: Path, out: Path | str, *more, **other) -> list[str]:
    """One of the commands above, on whole files but for those in ``other``."""
    paths = {
        "model": shelf / "model", "scores": shelf / "scores.safetensors", "sweep": shelf / "sweep",
        "edit": shelf / "edit.json", "finished": shipped_models()["mini-token"].parent, "out": out,
    }  # fmt: skip
    return [part.format(**paths | other) for part in COMMANDS[name]] + [str(argument) for argument in more]


# places that cannot be written


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_told_before_any_work(name, shelf, place, monkeypatch):
    for work in (
        "weights.checkpoints.Checkpoint.read_layer",
        "training.loop.Run.step",
        "models._boot",
        "experiments.positional.sweep.steer",
    ):
        monkeypatch.setattr(f"talking_heads_utils.{work}", lambda *a, **k: pytest.fail("too late"))
    (place / "file").write_text("kept")
    for out in (place / "file" / "below", place / LONG, LONG, f"{place}/\udcff"):
        refused(*command(name, shelf, out), says="Choose another place")
    if name in ("train", "seeds", "sweep", "merge", "edit", "benchmark", "reproduce"):
        refused(*command(name, shelf, place / "file"))
    else:
        refused(*command(name, shelf, place), says="Name the file")
    assert files(place) == ["file"] and (place / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["sweep", "merge"])
def test_a_place_for_the_results_is_looked_at_too(name, shelf, place):
    (place / "file").write_text("")
    refused(*command(name, shelf, place / "out", "--results", place / "file"), says="no folder")
    assert files(place) == ["file"]


# arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["--nothing"],
        *([name] for name in CLI_COMMANDS),
        ["benchmark", "nothing"],
        ["train", "--out"],
    ],
    ids=" ".join,
)
def test_what_is_missing_or_unknown_is_named(arguments):
    refused(*arguments)


BAD = {
    "composition": [
        ["--kinds", ""], ["--kinds", "QX"], ["--top", "0"], ["--top", "-1"], ["--top", "x"], ["--n-random", "nan"],
        ["--n-random", "-5"], ["--n-random", str(10**30)], ["--seed", "1.5"], ["--seed", str(2**63)],
        ["--readers", "0:2"], ["--readers", "2:1"], ["--readers", "5:9"], ["--readers", ":"],
        ["--readers", "9" * 5000 + ":1"], ["--weights", ""], ["--weights", "\udcff"], ["--weights", LONG],
    ],
    "streamed": [["--readers", "5:9"], ["--top", "0"], ["--kinds", "?"]],
    "train": [
        ["--seed", "-1"], ["--seed", str(2**63)], ["--seed", "x"], ["--minutes", "nan"], ["--minutes", "-1"],
        ["--device", "nothing"], ["--device", ""], ["--device", "meta"], ["--device", "cuda:99"], ["--resume"],
    ],
    "seeds": [["/nowhere"], ["/"], [LONG], ["\udcff"], [""]],
    "sweep": [
        ["--device", "nothing"], ["--device", "meta"], ["--dtype", "int8"], ["--batch-size", "0"], ["--seed", "-1"],
        ["--seed", str(2**63)], ["--random", "-1"], ["--random", str(2**63)], ["--shard", "1/0"], ["--shard", "2/2"],
        ["--shard", "one"], ["--values="], ["--values=0:inf:1"], ["--values=1:1:inf"], ["--values=nan:1:1"],
        ["--values=-1e308:1e308:1e-5"], ["--values=1e39:1e39:1"], ["--values=-100:100:0.02"], ["--n-items", ""],
        ["--n-items", "0"], ["--n-items", "-4"], ["--n-items", "1000000"], ["--prompts", "1"], ["--prompts", "-3"],
        ["--prompts", str(10**12)], ["--writers", "8.10"], ["--writers", "L9H9.9"], ["--writers", "L1H0.99999"],
        ["--movers", "x"], ["--movers", "L0H0"], ["--movers", "L99H0"], ["--movers", ""],
    ],
    "reproduce": [
        ["--chapters", ""], ["--chapters", "5"], ["--chapters", "1;2"], ["--device", "nothing"], ["--device", "meta"],
        ["--dtype", "int8"], ["--seed", "-1"], ["--seed", str(2**63)], ["--shard", "1/0"], ["--shard", "x"],
        ["--texts", "/nowhere"], ["--texts", "/"], ["--texts", LONG], ["--texts", "\udcff"], ["--model", ""],
        ["--model", "mini-nothing"], ["--model", LONG], ["--model", "\udcff"], ["--model", "/nowhere"],
    ],
    "benchmark": [["--repeats", "0"], ["--repeats", "x"], ["--device", "nothing"], ["--weights", "/nowhere"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"), [(name, more) for name, rows in BAD.items() for more in rows], ids=lambda part: str(part)[:40]
)
def test_a_bad_argument_is_one_clear_line(name, more, shelf, place):
    refused(*command(name, shelf, place / "out", *more, model="planted" if name == "sweep" else shelf / "model"))
    assert not files(place)


@pytest.mark.parametrize(
    "model", ["", "mini-nothing", f"mini-{LONG}", LONG, "/nowhere", "./nowhere", "\udcff", "~nobody/x"]
)
def test_a_model_that_is_none_is_one_clear_line(model, shelf, place):
    refused(*command("sweep", shelf, place / "out", model=model))
    refused(*command("edit", shelf, place / "out", model=model))
    assert not files(place)


@FEW
@given(
    kinds=st.sampled_from(["Q", "qk", "VV", "", "X", "Q,K"]),
    top=st.none() | st.integers(-2, 2**70),
    n_random=st.integers(-3, 40) | st.just(2**40),
    seed=st.integers(-(2**70), 2**70),
    readers=st.none() | st.from_regex(r"-?[0-9]{1,2}:[0-9]{1,2}", fullmatch=True) | st.text(":-0129e. ", max_size=4),
    more=st.lists(st.sampled_from(["--stream", "--head-level"]), unique=True),
)
def test_any_options_of_composition_give_a_whole_table_or_none(
    shelf, tmp_path, kinds, top, n_random, seed, readers, more
):
    out = tmp_path / "out.parquet"
    given_ = {"--kinds": kinds, "--top": top, "--n-random": n_random, "--seed": seed, "--readers": readers}
    options = [f"{name}={value}" for name, value in given_.items() if value is not None]
    made = answered(*command("composition", shelf, out, *options, *more))
    assert files(tmp_path) == (["out.parquet"] + ["out.safetensors"] * ("--stream" in more) if made else [])
    for path in tmp_path.iterdir():
        path.unlink()


@settings(FEW, max_examples=300)
@given(st.tuples(*[st.floats() | st.integers(-200, 200)] * 3))
def test_a_range_of_values_is_refused_or_runs_from_end_to_end(ends):
    try:
        values = values_of(":".join(map(str, ends)))
    except ValueError:
        return
    start, stop, step = map(float, ends)
    assert all(map(math.isfinite, values)) and 1 <= len(values) <= 10_001
    assert values[0] == start and values[-1] == pytest.approx(stop, rel=1e-6, abs=1e-6)
    assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in zip(values, values[1:]) if abs(a) < 1e6)


# checkpoints


@pytest.fixture
def model(shelf, tmp_path) -> Path:
    """A copy of the small GPT-2, to be damaged."""
    return shutil.copytree(shelf / "model", tmp_path / "model")


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


VALUES = [None, True, -1, 0, 1.5, 10**9, math.nan, math.inf, "x", [], {}]


@pytest.mark.parametrize("name", ["n_layer", "n_head", "n_embd", "model_type"])
def test_a_config_with_a_value_that_cannot_be_is_one_clear_line(name, model, shelf, place):
    whole = (model / "config.json").read_text()
    for value in VALUES:
        (model / "config.json").write_text(whole)
        change_json(model / "config.json", **{name: value})
        refused(*command("composition", shelf, place / "out", model=model))
    assert not files(place)


@pytest.mark.parametrize(
    "name", ["architectures", "vocab_size", "n_positions", "activation_function", "dtype", "n_inner"]
)
def test_what_only_the_whole_model_needs_of_a_config_is_refused_as_it_is_loaded(name, model, shelf, place):
    for value in ("x", 7.5, [{}]):
        change_json(model / "config.json", **{name: value})
        refused(*command("sweep", shelf, place / "out", model=model))
    assert not files(place)


@pytest.mark.parametrize("name", ["rope_theta", "rope_parameters", "rope_scaling", "num_key_value_heads", "head_dim"])
def test_rotary_and_grouped_settings_that_cannot_be(name, checkpoints, shelf, tmp_path, place):
    llama = shutil.copytree(checkpoints["llama"], tmp_path / "llama")
    whole = (llama / "config.json").read_text()
    nested = [{"rope_theta": value} for value in VALUES] + [{"partial_rotary_factor": value} for value in VALUES]
    for value in VALUES + (nested if name.startswith("rope_") else []):
        (llama / "config.json").write_text(whole)
        change_json(llama / "config.json", **{name: value})
        if answered(*command("composition", shelf, place / "out", model=llama)):
            (place / "out").unlink()
    assert not files(place)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_file_of_a_checkpoint_that_is_none_is_one_clear_line(file, content, model, shelf, place):
    write(model / file, content)
    refused(*command("sweep", shelf, place / "out", model=model))
    if file != "tokenizer.json":  # which attention's weights alone do not need
        refused(*command("composition", shelf, place / "out", model=model))
    assert not files(place)


def test_folders_and_lost_files_in_a_checkpoint(model, shelf, place):
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        kept = (model / file).read_bytes()
        (model / file).unlink()
        refused(*command("sweep", shelf, place / "out", model=model))
        (model / file).mkdir()
        refused(*command("sweep", shelf, place / "out", model=model))
        (model / file).rmdir()
        (model / file).write_bytes(kept)
    assert not files(place)


@pytest.mark.parametrize(
    "shards", [None, [], {}, {"a": "lost.safetensors"}, {"a": LONG}, {"a": 5}, {"a": "\0"}], ids=str
)
def test_an_index_of_shards_that_leads_nowhere(shards, model, shelf, place):
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    refused(*command("composition", shelf, place / "out", model=model))
    assert not files(place)


@FEW
@given(data=st.data())
def test_a_damaged_checkpoint_is_scored_whole_or_refused(data, shelf, tmp_path):
    """A turned bit in a weight is another weight: nothing but a published sum could tell."""
    folder = tmp_path / "model"
    shutil.copytree(shelf / "model", folder, dirs_exist_ok=True)
    file = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    write(folder / file, data.draw(damages((folder / file).read_bytes())))
    answered(*command("composition", shelf, tmp_path / "out", model=folder))
    (tmp_path / "out").unlink(missing_ok=True)
    assert {name.split("/")[0] for name in files(tmp_path)} == {"model"}


# edits


def changed_edit(shelf: Path, **values) -> str:
    about = json.loads((shelf / "edit.json").read_text())
    return json.dumps(about | {"changes": [about["changes"][0] | values]})


EDITS = [
    {"component": 3}, {"component": None}, {"component": ["L1H2.0"]}, {"component": "L9H9.9"},
    {"component": "L" + "9" * 5000 + "H0.0"}, {"component": "L1H2"}, {"matrix": []}, {"matrix": "O"},
    {"operation": []}, {"operation": "scales"}, {"value": None}, {"value": "1"}, {"value": True}, {"value": math.nan},
    {"value": math.inf}, {"value": 10**400}, {"value": 1e300}, {"value": [1]}, {"span": 5}, {"span": ["L1H2.0"]},
    {"span": [1, 2], "operation": "rotate"}, {"span": ["L1H2.0", "L1H2.0"], "operation": "rotate"}, {"more": 1},
    {"operation": "set", "value": -1},
]  # fmt: skip


@pytest.mark.parametrize("values", EDITS, ids=lambda values: str(values)[:40])
def test_a_change_that_cannot_be_made_is_one_clear_line(values, shelf, place, tmp_path):
    write(tmp_path / "edit.json", changed_edit(shelf, **values))
    refused(*command("edit", shelf, place / "out", edit=tmp_path / "edit.json"))
    assert not files(place)


@pytest.mark.parametrize("name", ["model", "processing", "fingerprint", "changes"])
@pytest.mark.parametrize(
    "value", [None, 5, "x", [], {}, [[]], [None], [math.nan], {"fold_ln": "yes", "center": 3}], ids=str
)
def test_an_edit_with_a_part_of_another_kind(name, value, shelf, place, tmp_path):
    about = json.loads((shelf / "edit.json").read_text())
    write(tmp_path / "edit.json", json.dumps(about | {name: value}))
    harmless = name == "model" or (name, value) == ("changes", [])  # a name is a name, and no change is an edit
    if not (answered(*command("edit", shelf, place / "out", edit=tmp_path / "edit.json")) and harmless):
        assert not files(place)


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_file_that_is_no_edit(content, shelf, place, tmp_path):
    write(tmp_path / "edit.json", content)
    refused(*command("edit", shelf, place / "out", edit=tmp_path / "edit.json"))
    for edit in (tmp_path, tmp_path / "nowhere", LONG):
        refused(*command("edit", shelf, place / "out", edit=edit))
    assert not files(place)


@FEW
@given(data=st.data())
def test_a_damaged_edit_is_made_whole_or_refused(data, shelf, tmp_path):
    write(tmp_path / "edit.json", data.draw(damages((shelf / "edit.json").read_bytes())))
    answered(*command("edit", shelf, tmp_path / "out", edit=tmp_path / "edit.json"))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert files(tmp_path) == ["edit.json"]


# scores


def with_scores(shelf: Path, path: Path, change=lambda tensors: None, **about) -> Path:
    with safe_open(shelf / "scores.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["talking_heads"])
    tensors = load_file(shelf / "scores.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"talking_heads": json.dumps(stored | about)})
    return path


def replace(name: str, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("K.1.score"),
        lambda tensors: tensors.pop("K.2.null"),
        lambda tensors: tensors.pop("singular_values.0"),
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name != "singular_values.0"],
        lambda tensors: tensors.update({"Z.x.score": torch.zeros(1)}),
        lambda tensors: tensors.update({"score": torch.zeros(1)}),
        replace("singular_values.0", lambda t: t[:1]),
        replace("singular_values.0", lambda t: t.sum()),
        replace("Q.1.score", lambda t: t[..., :1]),
        replace("Q.1.score", lambda t: t + 2),
        replace("V.2.score", lambda t: -t),
        replace("Q.2.null", lambda t: t[:2]),
    ],
    ids=range(12),
)
def test_scores_that_are_not_whole_draw_no_atlas(change, shelf, place, tmp_path):
    path = with_scores(shelf, tmp_path / "scores", change)
    refused(*command("atlas", shelf, place / "out", scores=path), says="holds no composition scores")
    assert not files(place)


@pytest.mark.parametrize("name", ["n_layers", "n_heads", "d_head", "d_model_effective"])
def test_scores_whose_description_does_not_fit(name, shelf, place, tmp_path):
    for value in (None, -1, 0, "x", [], {}, 10**9)[: 6 if name == "d_model_effective" else 7]:
        path = with_scores(shelf, tmp_path / "scores", **{name: value})
        refused(*command("atlas", shelf, place / "out", scores=path), says="holds no composition scores")
    assert not files(place)


@FEW
@given(data=st.data())
def test_damaged_scores_are_drawn_whole_or_refused(data, shelf, tmp_path):
    write(tmp_path / "scores", data.draw(damages((shelf / "scores.safetensors").read_bytes())))
    answered(*command("atlas", shelf, tmp_path / "out", scores=tmp_path / "scores"))
    (tmp_path / "out").unlink(missing_ok=True)
    assert files(tmp_path) == ["scores"]


def test_scores_that_are_no_file(shelf, place, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", LONG, shelf / "edit.json"):
        refused(*command("atlas", shelf, place / "out", scores=path), says="holds no composition scores")
    assert not files(place)


# training runs


def with_state(shelf: Path, folder: Path, change=lambda tensors: None, **about) -> Path:
    path = shutil.copytree(shelf / "run", folder, dirs_exist_ok=True) / "training.safetensors"
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["run"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"run": json.dumps(stored | about)})
    return folder


@pytest.mark.parametrize(
    "about",
    [
        *({"progress": value} for value in (None, 5, [], {"x": 1}, {"step": "x"}, {"step": -1}, {"step": 10**9})),
        *({"seed": value} for value in (None, "0", 1)),
        *({"spec": value} for value in (None, [], {})),
    ],
    ids=str,
)
def test_a_run_with_another_description_does_not_go_on(about, shelf, tmp_path):
    folder = with_state(shelf, tmp_path / "run", **about)
    before = (folder / "training.safetensors").read_bytes()
    refused("train", "mini-narrow", "--out", folder, "--minutes", "0", "--resume")
    assert files(folder) == ["training.safetensors"] and (folder / "training.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "part",
    [
        *({"rounds": value} for value in (9, "x", -1, 0.5, None)),
        *({"checks": value} for value in (None, 5, {}, [1], [{}], [{"loss": 1.0}])),
        *(
            {"checks": [{"step": 10000, "loss": 1.0, "accuracy": {"ioi": 1.0}} | value]}
            for value in ({"step": 7}, {"loss": "x"}, {"accuracy": {}})
        ),
    ],
    ids=str,
)
def test_a_run_whose_rounds_cannot_be_does_not_go_on(part, shelf, tmp_path):
    with safe_open(shelf / "run" / "training.safetensors", "pt") as file:
        progress = json.loads(file.metadata()["run"])["progress"]
    folder = with_state(shelf, tmp_path / "run", progress=progress | part)
    refused("train", "mini-narrow", "--out", folder, "--minutes", "0", "--resume", says="Delete it")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.transformer.wte.weight"),
        lambda tensors: tensors.update({"model.transformer.wte.weight": torch.zeros(1)}),
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("optimiser.")],
        lambda tensors: tensors.update({"optimiser.x.step": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimiser.x": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimiser.0.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.pop("optimiser.0.exp_avg"),
        lambda tensors: tensors.update({"optimiser.999.exp_avg": torch.zeros(1)}),
    ],
    ids=range(8),
)
def test_a_run_whose_tensors_do_not_fit_does_not_go_on(change, shelf, tmp_path):
    folder = with_state(shelf, tmp_path / "run", change)
    refused("train", "mini-narrow", "--out", folder, "--minutes", "0", "--resume", says="Delete it")
    assert files(folder) == ["training.safetensors"]


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_state_that_is_no_safetensors_does_not_go_on(content, shelf, tmp_path):
    folder = shutil.copytree(shelf / "run", tmp_path / "run")
    write(folder / "training.safetensors", content)
    refused("train", "mini-narrow", "--out", folder, "--minutes", "0", "--resume", says="Delete it")


# sweeps

PLANS = [
    {"n_items": "abc"}, {"n_items": ["a"]}, {"n_items": []}, {"n_items": 5}, {"n_items": [1]}, {"n_prompts": "x"},
    {"n_prompts": 10**9}, {"n_prompts": None}, {"seed": None}, {"seed": -1}, {"values": ["a"]}, {"values": [math.nan]},
    {"values": []}, {"values": 3}, {"writers": [1]}, {"writers": ["x"]}, {"movers": [[]]}, {"movers": ["L1"]},
    {"read": ["x"]}, {"read": []}, {"model": 5}, {"random": "x"}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", PLANS, ids=str)
def test_a_plan_that_cannot_be_is_not_merged_and_not_gone_on_with(changes, shelf, place, tmp_path):
    folder = shutil.copytree(shelf / "sweep", tmp_path / "sweep")
    change_json(folder / "plan.json", **changes)
    before = files(folder)
    refused(*command("merge", shelf, place / "out", sweep=folder))
    refused("sweep", "--model", "planted", *SWEEP, "--out", folder)
    assert not files(place) and files(folder) == before


@pytest.mark.parametrize("file", ["plan.json", "chunks/n03-0010.parquet", "notes/n03-0010.json"])
@pytest.mark.parametrize("content", [*NOT_JSON, None], ids=range(len(NOT_JSON) + 1))
def test_a_damaged_or_lost_file_of_a_sweep_is_not_merged(file, content, shelf, place, tmp_path):
    folder = shutil.copytree(shelf / "sweep", tmp_path / "sweep")
    (folder / file).unlink()
    if content is not None:
        write(folder / file, content)
    refused(*command("merge", shelf, place / "out", sweep=folder))
    assert not files(place)


@FEW
@given(data=st.data())
def test_a_damaged_chunk_is_merged_whole_or_not_at_all(data, shelf, tmp_path):
    folder = shutil.copytree(shelf / "sweep", tmp_path / "sweep", dirs_exist_ok=True)
    chunk = folder / "chunks" / "n03-0000.parquet"
    write(chunk, data.draw(damages((shelf / "sweep" / "chunks" / "n03-0000.parquet").read_bytes())))
    made = answered(*command("merge", shelf, tmp_path / "out", sweep=folder))
    assert made or not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_what_is_no_sweep_is_not_merged(shelf, place, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere", shelf / "edit.json", LONG):
        refused(*command("merge", shelf, place / "out", sweep=folder))
    assert not files(place)


# results of reproduce


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    """The folder of one experiment on the planted model."""
    (crowding,) = [e for e in EXPERIMENTS if e.name == "crowding"]
    folder, failed = reproduce(Context("planted", quick=True), [crowding], tmp_path_factory.mktemp("results"))
    assert not failed and files(folder) == ["crowding.json", "crowding.parquet", "plan.json"]
    return folder


@pytest.mark.parametrize("file", ["crowding.json", "crowding.parquet"])
@pytest.mark.parametrize("content", [*NOT_JSON, None], ids=range(len(NOT_JSON) + 1))
def test_a_damaged_or_lost_result_is_neither_merged_nor_taken_for_finished(file, content, result, place, tmp_path):
    folder = shutil.copytree(result, tmp_path / result.name)
    (folder / file).unlink()
    if content is not None:
        write(folder / file, content)
    refused("merge", folder, "--out", place / "out")
    if (folder / "crowding.json").exists():
        refused("reproduce", "--model", "planted", "--quick", "--chapters", "2", "--out", tmp_path)
    assert not files(place)


@FEW
@given(data=st.data(), file=st.sampled_from(["crowding.json", "crowding.parquet"]))
def test_a_damaged_result_is_not_merged(data, file, result, tmp_path):
    folder = shutil.copytree(result, tmp_path / "part", dirs_exist_ok=True)
    content = data.draw(damages((result / file).read_bytes()))
    write(folder / file, content)
    made = answered("merge", folder, "--out", tmp_path / "out")
    assert made == (tmp_path / "out").exists() and (not made or content == (result / file).read_bytes())
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
