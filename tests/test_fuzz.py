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
from talking_heads_utils.edits.edits import OV, SCALE, Change, new_edit, to_json
from talking_heads_utils.known import shipped_models
from talking_heads_utils.labels import Component
from talking_heads_utils.weights.checkpoints import load_head_weights

FEW = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = "a" * 300  # longer than any file system's names
DEEP = "[" * 100_000  # deeper than the parser's stack
NOT_JSON = [part.encode() for part in ("", "{", "[]", "null", "5", '"text"', DEEP, "\0" * 64)] + [b"\xff\xfe"]
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


@st.composite
def damages(draw, whole: bytes) -> bytes:
    """Something else altogether, or a file cut short, with a bit turned over, another start or a part of it gone."""
    at = draw(st.integers(0, len(whole) - 1))
    kind = draw(st.sampled_from(["other", "cut", "flip", "head", "gone"]))
    if kind == "other":
        return draw(st.sampled_from(NOT_JSON))
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
    shutil.copytree(checkpoints["llama"], folder / "llama")
    weights = load_head_weights(folder / "model")
    edit = new_edit(weights, [Change(Component(1, 2, 0), OV, SCALE, 0.5)], model="small")
    (folder / "edit.json").write_text(to_json(edit))
    assert run("composition", "--weights", folder / "model", "--out", folder / "scores")[0] == 0
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
    "train": ["train", "mini-narrow", "--out", "{out}"],
    "seeds": ["seeds", "{finished}", "--out", "{out}"],
    "sweep": ["sweep", "--model", "{model}", *SWEEP, "--out", "{out}"],
    "edit": ["edit", "--model", "{model}", "--edit", "{edit}", "--out", "{out}"],
    "benchmark": ["benchmark", "composition", "--weights", "{model}", "--out", "{out}"],
    "reproduce": ["reproduce", "--model", "planted", "--quick", "--out", "{out}"],
}
FILES_OUT = ("composition", "streamed", "atlas")  # the others write a folder


def command(name: str, shelf: Path, out: Path | str, *more, **other) -> list[str]:
    """One of the commands above, on whole files but for those in ``other``."""
    paths = {"model": shelf / "model", "scores": shelf / "scores", "edit": shelf / "edit.json"}
    paths |= {"finished": shipped_models()["mini-token"].parent, "out": out}
    return [part.format(**paths | other) for part in COMMANDS[name]] + [str(argument) for argument in more]


# places that cannot be written


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_told_before_any_work(name, shelf, place, monkeypatch):
    for work in ("weights.checkpoints.Checkpoint.read_layer", "training.loop.Run.step", "models._boot"):
        monkeypatch.setattr(f"talking_heads_utils.{work}", lambda *a, **k: pytest.fail("too late"))
    (place / "file").write_text("kept")
    for out in (place / "file" / "below", place / LONG, LONG, f"{place}/\udcff"):
        refused(*command(name, shelf, out), says="Choose another place")
    refused(*command(name, shelf, place if name in FILES_OUT else place / "file"))
    if name == "sweep":
        refused(*command(name, shelf, place / "out", "--results", place / "file"), says="no folder")
    assert files(place) == ["file"] and (place / "file").read_text() == "kept"


# arguments


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["--nothing"], *([name] for name in CLI_COMMANDS)], ids=" ".join
)
def test_what_is_missing_or_unknown_is_named(arguments):
    refused(*arguments)


BAD = {
    "composition": [
        ["--kinds", ""], ["--kinds", "QX"], ["--top", "-1"], ["--top", "3"], ["--head-level"], ["--n-random", "nan"],
        ["--n-random", str(10**30)], ["--seed", "1.5"], ["--seed", str(2**63)], ["--readers", "0:2"],
        ["--readers", "5:9"], ["--readers", "9" * 5000 + ":1"], ["--weights", ""], ["--weights", "\udcff"],
        ["--weights", LONG],
    ],
    "streamed": [["--readers", "5:9"], ["--kinds", "?"]],
    "train": [["--seed", "-1"], ["--device", "meta"], ["--device", "cuda:99"], ["--resume"]],
    "seeds": [["/nowhere"], ["/"], [LONG], ["\udcff"], [""]],
    "sweep": [
        ["--dtype", "int8"], ["--batch-size", "0"], ["--part", "some"], ["--ray", "nowhere"], ["--ray", "127.0.0.1:9"],
        ["--values="], ["--values=0:inf:1"], ["--values=nan:1:1"], ["--values=-1e308:1e308:1e-5"],
        ["--values=1e39:1e39:1"], ["--values=-100:100:0.02"], ["--n-items", ""], ["--n-items", "1000000"],
        ["--prompts", "1"], ["--prompts", str(10**12)], ["--writers", "8.10"], ["--writers", "L9H9.9"],
        ["--movers", "L0H0"], ["--movers", "L99H0"], ["--movers", ""],
        *(["--model", name] for name in ("", "mini-nothing", LONG, "/nowhere", "~nobody/x")),
    ],
    "reproduce": [
        ["--chapters", ""], ["--chapters", "5"], ["--chapters", "1;2"], ["--texts", "/nowhere"], ["--texts", "/"],
        ["--model", ""], ["--model", "mini-nothing"],
    ],
    "edit": [["--edit", "/nowhere"], ["--edit", "/"], ["--edit", LONG]],
    "atlas": [["--scores", "/nowhere"], ["--scores", "/"], ["--scores", LONG]],
    "benchmark": [["--repeats", "0"], ["--weights", "/nowhere"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"), [(name, more) for name, rows in BAD.items() for more in rows], ids=lambda part: str(part)[:40]
)
def test_a_bad_argument_is_one_clear_line(name, more, shelf, place):
    refused(*command(name, shelf, place / "out", *more, model="planted" if name == "sweep" else shelf / "model"))
    assert not files(place)


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


# damaged files

READERS = [  # a command, and a file that it reads
    ("composition", "model/config.json"),
    ("composition", "model/model.safetensors"),
    ("sweep", "model/tokenizer.json"),
    ("edit", "edit.json"),
    ("atlas", "scores"),
]


@pytest.mark.parametrize(("name", "file"), READERS)
@FEW
@given(data=st.data())
def test_a_damaged_file_is_read_whole_or_refused(name, file, data, shelf, tmp_path):
    """A turned bit in a weight is another weight: nothing but a published sum could tell."""
    item = Path(file).parts[0]
    shutil.rmtree(tmp_path / item, ignore_errors=True)
    (shutil.copytree if (shelf / item).is_dir() else shutil.copyfile)(shelf / item, tmp_path / item)
    (tmp_path / file).write_bytes(data.draw(damages((shelf / file).read_bytes())))
    before = files(tmp_path)
    made = answered(*command(name, shelf, tmp_path / "out", **{Path(item).stem: tmp_path / item}))
    assert made or files(tmp_path) == before, "what is refused leaves nothing behind"
    assert made == (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").unlink(missing_ok=True)


def test_folders_in_place_of_files_and_shards_that_are_not_there(shelf, tmp_path, place):
    model = shutil.copytree(shelf / "model", tmp_path / "model")
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        kept = (model / file).read_bytes()
        (model / file).unlink()
        (model / file).mkdir()
        refused(*command("sweep", shelf, place / "out", model=model))
        (model / file).rmdir()
        (model / file).write_bytes(kept)
    (model / "model.safetensors").rename(model / "other.safetensors")
    for shards in (None, [], {}, {"a": "lost.safetensors"}, {"a": LONG}, {"a": 5}, {"a": "\0"}):
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        refused(*command("composition", shelf, place / "out", model=model))
    assert not files(place)


# values that cannot be


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


VALUES = [None, True, -1, 0, 1.5, 10**9, math.nan, math.inf, "x", [], {}]
NESTED = VALUES + [{key: value} for key in ("rope_theta", "partial_rotary_factor") for value in VALUES]
CONFIGS = [
    *(("composition", "model", name, VALUES, False) for name in ("n_layer", "n_head", "n_embd", "model_type")),
    *(("sweep", "model", name, ["x", 7.5, [{}]], False) for name in ("vocab_size", "n_positions", "dtype", "n_inner")),
    *(("composition", "llama", name, NESTED, True) for name in ("rope_theta", "rope_parameters", "rope_scaling")),
    *(("composition", "llama", name, VALUES, True) for name in ("num_key_value_heads", "head_dim")),
]


@pytest.mark.parametrize(("name", "family", "key", "values", "may_do"), CONFIGS, ids=lambda part: str(part)[:20])
def test_a_config_with_a_value_that_cannot_be(name, family, key, values, may_do, shelf, tmp_path, place):
    model = shutil.copytree(shelf / family, tmp_path / "copy")
    for value in values:
        shutil.copyfile(shelf / family / "config.json", model / "config.json")
        change_json(model / "config.json", **{key: value})
        if may_do and answered(*command(name, shelf, place / "out", model=model)):
            (place / "out").unlink()
        elif not may_do:
            refused(*command(name, shelf, place / "out", model=model))
    assert not files(place)


def replace(name: str, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


UNWHOLE = [
    lambda tensors: tensors.pop("K.1.score"),
    lambda tensors: tensors.pop("singular_values.0"),
    lambda tensors: tensors.update({"Z.x.score": torch.zeros(1)}),
    replace("singular_values.0", lambda t: t.sum()),
    replace("Q.1.score", lambda t: t[..., :1]),
    replace("V.2.score", lambda t: -t),
    *({name: value} for name in ("n_layers", "n_heads", "d_model_effective") for value in (None, -1, 0, "x")),
]


@pytest.mark.parametrize("change", UNWHOLE, ids=lambda change: str(change) if isinstance(change, dict) else "tensors")
def test_scores_that_are_not_whole_draw_no_atlas(change, shelf, place, tmp_path):
    """change: of the tensors, or of the description."""
    with safe_open(shelf / "scores", "pt") as file:
        stored = json.loads(file.metadata()["talking_heads"])
    tensors = load_file(shelf / "scores")
    if isinstance(change, dict):
        stored |= change
    else:
        change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "scores", metadata={"talking_heads": json.dumps(stored)})
    refused(*command("atlas", shelf, place / "out", scores=tmp_path / "scores"), says="holds no composition scores")
    assert not files(place)


PLANS = [
    {"n_items": "abc"}, {"n_items": []}, {"n_items": [1]}, {"n_prompts": 10**9}, {"n_prompts": None}, {"seed": -1},
    {"values": ["a"]}, {"values": [math.nan]}, {"values": []}, {"writers": ["x"]}, {"movers": [[]]}, {"logits": "x"},
    {"model": 5}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", PLANS, ids=str)
def test_a_plan_that_cannot_be_is_not_gone_on_with(changes, shelf, tmp_path):
    folder = shutil.copytree(shelf / "sweep", tmp_path / "sweep")
    change_json(folder / "plan.json", **changes)
    before = files(folder)
    refused("sweep", "--model", "planted", *SWEEP, "--out", folder)
    assert files(folder) == before
