"""A table streamed from shards equals the one made in memory, also after a kill; what is not of it is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import build_model

from talking_heads_utils.cli import main
from talking_heads_utils.scores import files as tables
from talking_heads_utils.scores import streaming
from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint

STREAMED = ("gpt2", "gpt_neox", "qwen2")
KEYS = ["kind", "writer_layer", "writer_head", "reader_layer", "reader_head"]


@pytest.fixture(params=STREAMED)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Family -> a checkpoint in many shards, in bfloat16."""
    folders = {name: tmp_path_factory.mktemp(name) / "shards" for name in STREAMED}
    for name, folder in folders.items():
        build_model(name).to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    return folders


def composition(folder, out, *more) -> int:
    return main(["composition", "--weights", str(folder), "--out", str(out), *map(str, more)])


def assert_same_table(one, other, keys=(*KEYS, "component")):
    """Scores may differ by the order of their sums, and so may the ranks of two that nearly agree."""
    first, second = (pd.read_parquet(path) for path in (one, other))
    sorted_ = (t.sort_values(list(keys), ignore_index=True).drop(columns="rank") for t in (first, second))
    pd.testing.assert_frame_equal(*sorted_, rtol=1e-4, atol=1e-6)
    reader = ["kind", "reader_layer", "reader_head", "rank"]
    by_rank = (t.sort_values(reader, ignore_index=True)[[*reader, "score"]] for t in (first, second))
    pd.testing.assert_frame_equal(*by_rank, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "more", [(), ("--top", 5), ("--head-level",), ("--kinds", "vk", "--seed", 3, "--readers", "2:3")]
)
def test_the_streamed_table_is_the_one_made_in_memory(sharded, family, tmp_path, more):
    assert composition(sharded[family], tmp_path / "whole.parquet", *more) == 0
    assert composition(sharded[family], tmp_path / "streamed.parquet", "--stream", *more) == 0
    whole, streamed = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "streamed"))
    keys = [*KEYS, *({"component"} & set(whole))]
    assert_same_table(tmp_path / "whole.parquet", tmp_path / "streamed.parquet", keys)
    assert len(whole) and list(whole[keys[0]]) == list(streamed[keys[0]])
    first, second = (tables.read_about(tmp_path / f"{name}.parquet") for name in ("whole", "streamed"))
    assert first == second and first["checkpoint_dtype"] == "bfloat16" and first["n_layers"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["streamed.parquet", "whole.parquet"]


def test_few_reader_layers_at_a_time_give_the_same_table(sharded, family, tmp_path, monkeypatch):
    composition(sharded[family], tmp_path / "a.parquet", "--stream")
    monkeypatch.setattr(streaming, "READER_BYTES", 1)
    composition(sharded[family], tmp_path / "b.parquet", "--stream")
    assert_same_table(tmp_path / "a.parquet", tmp_path / "b.parquet")


def test_one_layer_is_what_loading_makes_of_it(sharded, family):
    checkpoint = open_checkpoint(sharded[family])
    whole = load_head_weights(sharded[family])
    for layer in range(3):
        one = streaming.one_layer(checkpoint, layer)
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_O"):
            torch.testing.assert_close(getattr(one, name)[0], getattr(whole, name)[layer])


def test_a_killed_run_goes_on_and_ends_with_the_same_table(sharded, tmp_path, monkeypatch):
    """The command in a process of its own, killed by SIGKILL as soon as its first reader layer stands."""
    composition(sharded["qwen2"], tmp_path / "whole.parquet", "--stream", "--top", 64)
    out, folder = tmp_path / "run.parquet", tmp_path / "run.parquet.parts"
    slow = (
        "import sys, time\nfrom talking_heads_utils.scores import streaming\n"
        "from talking_heads_utils.cli import main\n"
        "streaming.READER_BYTES, real = 1, streaming.write_groups\n"
        "def write(*args, **how):\n    real(*args, **how); time.sleep(60)\n"
        "streaming.write_groups = write; main(sys.argv[1:])"
    )
    arguments = ["composition", "--weights", str(sharded["qwen2"]), "--out", str(out), "--stream", "--top", "64"]
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder.is_dir() and any(folder.glob("reader-*.parquet"))):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (part,) = folder.glob("reader-*.parquet")
    finished = pd.read_parquet(part)
    (folder / ".reader-002.parquet.x.part").write_bytes(b"half-written")
    assert not out.exists()
    real, made = streaming._score_readers, []

    def score(checkpoint, readers, *rest):
        made.extend(readers)
        return real(checkpoint, readers, *rest)

    monkeypatch.setattr(streaming, "_score_readers", score)
    assert composition(sharded["qwen2"], out, "--stream", "--top", 64) == 0
    assert made == [2] and part.name == "reader-001.parquet", "the finished layer was not made again"
    assert not folder.exists(), "the whole table ends the parts"
    assert_same_table(out, tmp_path / "whole.parquet")
    table = pd.read_parquet(out)
    kept = table[table["reader_layer"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, finished, check_exact=True, obj="what was finished, to the bit")


@pytest.fixture
def stopped(sharded, tmp_path, monkeypatch):
    """A run that was interrupted after its first reader layer: its table's path and the layer's file."""
    out = tmp_path / "run.parquet"

    def score(checkpoint, readers, *rest):
        if 2 in readers:
            raise KeyboardInterrupt
        return real(checkpoint, readers, *rest)

    real = streaming._score_readers
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "READER_BYTES", 1)
        patch.setattr(streaming, "_score_readers", score)
        assert composition(sharded["gpt2"], out, "--stream") == 130 and not out.exists()
    (part,) = (tmp_path / "run.parquet.parts").iterdir()
    return out, part


def test_a_damaged_part_is_one_clear_error(sharded, stopped, capsys):
    out, part = stopped
    whole = part.read_bytes()
    middle = len(whole) // 4
    for content in (b"", whole[:200], whole[:-10], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]):
        part.write_bytes(content)
        assert composition(sharded["gpt2"], out, "--stream") == 2
        error = capsys.readouterr().err
        assert f"{part} is damaged" in error and "Remove it and run this again" in error and not out.exists()
    part.unlink()
    assert composition(sharded["gpt2"], out, "--stream") == 0


def test_parts_of_another_table_are_refused(sharded, stopped, checkpoints, capsys):
    out, part = stopped
    before = part.read_bytes()
    for folder, more, changed in (
        (sharded["gpt2"], ("--seed", 1, "--top", 3), "seed, top"),
        (checkpoints["gpt2"], (), "model, checkpoint_sha256, checkpoint_dtype"),
    ):
        assert composition(folder, out, "--stream", *more) == 2
        assert f"parts of another table, with other {changed}. Nothing was mixed in" in capsys.readouterr().err
    assert part.read_bytes() == before and not out.exists()


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_reader_layers_that_are_not_there_are_one_clear_error(sharded, tmp_path, capsys, stream):
    assert composition(sharded["gpt2"], tmp_path / "x.parquet", "--readers", "2:9", *stream) == 2
    assert "No reader in layer 3: readers are in layers 1..2" in capsys.readouterr().err
    for text in ("0:2", "2:2", "a:b", "1"):
        with pytest.raises(SystemExit):
            composition(sharded["gpt2"], tmp_path / "x.parquet", "--readers", text)
    folder = shutil.copytree(sharded["gpt2"], tmp_path / "one")
    config = json.loads((folder / "config.json").read_text()) | {"n_layer": 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert composition(folder, tmp_path / "x.parquet", *stream) == 2 and not (tmp_path / "x.parquet").exists()


def test_weights_with_nothing_to_score_are_one_clear_error(tmp_path, capsys):
    model = build_model("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.zero_()
    model.save_pretrained(tmp_path / "zero")
    assert composition(tmp_path / "zero", tmp_path / "x.parquet", "--stream") == 2
    assert "nothing to score" in capsys.readouterr().err and not (tmp_path / "x.parquet").exists()


def test_a_table_of_other_layers_leaves_finished_ones_alone(sharded, stopped):
    out, part = stopped
    before = part.read_bytes()
    assert composition(sharded["gpt2"], out, "--stream", "--readers", "2:3") == 0
    assert part.read_bytes() == before and [p.name for p in part.parent.iterdir()] == [part.name]
    assert composition(sharded["gpt2"], out, "--stream") == 0 and not part.parent.exists()
