"""Scores streamed from shards equal those made in memory, also after a kill; a part of others is refused."""

import pandas as pd
import pytest
import torch
from conftest import build_model, edit_config
from safetensors.torch import load_file, save_file

from talking_heads_utils.cli import main
from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.scores import scores as module
from talking_heads_utils.scores import streaming
from talking_heads_utils.scores.scores import compute_scores, load_scores, save_scores

STREAMED = ("gpt2", "gpt_neox", "qwen2")


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


def assert_same_scores(one, other):
    """The same but for the order of sums, in the last place of a float16."""
    assert one.about == other.about and one.blocks.keys() == other.blocks.keys()
    torch.testing.assert_close(one.singular_values, other.singular_values, atol=1e-6, rtol=1e-3)
    for key, block in one.blocks.items():
        for name in ("score", "null_mean", "null_std", "null_max"):
            ours, theirs = getattr(block, name), getattr(other.blocks[key], name)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("family", STREAMED)
@pytest.mark.parametrize("more", [(), ("--kinds", "vk", "--seed", 3, "--readers", "2:3")])
def test_streamed_scores_are_those_made_in_memory(sharded, family, tmp_path, monkeypatch, more):
    assert composition(sharded[family], tmp_path / "whole", *more) == 0
    assert composition(sharded[family], tmp_path / "streamed", "--stream", *more) == 0
    whole, streamed = load_scores(tmp_path / "whole"), load_scores(tmp_path / "streamed")
    assert_same_scores(whole, streamed)
    assert whole.about["checkpoint_dtype"] == "bfloat16" and whole.about["n_layers"] == 3
    monkeypatch.setattr(streaming, "READER_BYTES", 1)  # one reader layer at a time
    assert composition(sharded[family], tmp_path / "slow", "--stream", *more) == 0
    assert_same_scores(load_scores(tmp_path / "slow"), streamed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slow", "streamed", "whole"]


def test_a_table_is_a_view_of_the_scores(sharded, tmp_path):
    """Streamed with the scores beside it, and made of a finished file: every row is one of the scores' own tables."""
    assert composition(sharded["gpt2"], tmp_path / "t.parquet", "--stream", "--top", 5) == 0
    scores = tmp_path / "t.safetensors"
    assert main(["composition", "--scores", str(scores), "--out", str(tmp_path / "again.parquet"), "--top", "5"]) == 0
    table, again = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("t", "again"))
    pd.testing.assert_frame_equal(table, again)
    own = load_scores(scores).table("L2H1", "K").head(5)
    part = table.query("kind == 'K' and reader_layer == 2 and reader_head == 1").sort_values("rank")
    for name in ("writer_layer", "writer_head", "component", "score", "z", "rank", "singular_value", "gap"):
        assert list(part[name]) == list(own[name]), name
    assert composition(sharded["gpt2"], tmp_path / "h.parquet", "--stream", "--head-level") == 0
    heads, whole = pd.read_parquet(tmp_path / "h.parquet"), load_scores(scores).head_level("K")
    for row in heads[heads["kind"] == "K"].itertuples():
        wanted = whole[row.writer_layer, row.writer_head, row.reader_layer, row.reader_head]
        assert row.score == pytest.approx(wanted.item(), rel=1e-6)


def test_a_large_file_is_read_block_by_block(small, tmp_path, monkeypatch):
    """Damage in one block is told when that block is asked for, and the others can still be had."""
    scores = compute_scores(small)
    save_scores(scores, path := tmp_path / "scores")
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    lazy = load_scores(path)
    assert len(lazy.blocks) == 6 and ("Q", 2) in lazy.blocks and ("Q", 0) not in lazy.blocks
    torch.testing.assert_close(lazy.head_level("Q"), scores.head_level("Q"), atol=5e-4, rtol=0, equal_nan=True)
    content = bytearray(path.read_bytes())
    content[content.index(scores.blocks["V", 2].score.half().numpy().tobytes())] ^= 1
    path.write_bytes(content)
    damaged = load_scores(path)
    assert torch.equal(damaged.blocks["Q", 1].score, lazy.blocks["Q", 1].score)
    with pytest.raises(CheckpointError, match="V.2.score does not fit its checksum"):
        damaged.blocks["V", 2]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="V.2.score does not fit its checksum"):
        load_scores(path)


@pytest.fixture
def stopped(sharded, tmp_path, monkeypatch):
    """A run that was interrupted after its first reader layer: its file's path and the folder of what stands."""
    out = tmp_path / "run"

    def score(checkpoint, readers, *rest, **how):
        if 2 in readers:
            raise KeyboardInterrupt
        return real(checkpoint, readers, *rest, **how)

    real = streaming.iter_streamed
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "READER_BYTES", 1)
        patch.setattr(streaming, "iter_streamed", score)
        assert composition(sharded["gpt2"], out, "--stream") == 130 and not out.exists()
    return out, tmp_path / "run.part"


def test_a_stopped_run_goes_on_and_ends_with_the_same_file(sharded, stopped, tmp_path, monkeypatch):
    out, part = stopped
    composition(sharded["gpt2"], tmp_path / "whole", "--stream")
    real, made = streaming.iter_streamed, []

    def score(checkpoint, readers, *rest, **how):
        made.extend(readers)
        return real(checkpoint, readers, *rest, **how)

    monkeypatch.setattr(streaming, "iter_streamed", score)
    assert composition(sharded["gpt2"], out, "--stream") == 0
    assert made == [2], "the finished layer was not made again"
    assert not part.exists() and out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_part_that_is_damaged_or_of_other_scores_is_refused(sharded, stopped, checkpoints, capsys):
    out, part = stopped
    for folder, more, changed in (
        (sharded["gpt2"], ("--seed", 1), "seed"),
        (sharded["gpt2"], ("--kinds", "Q"), "kinds"),
        (checkpoints["gpt2"], (), "model, checkpoint_sha256, checkpoint_dtype"),
    ):
        assert composition(folder, out, "--stream", *more) == 2
        assert f"holds a run with other {changed}. Nothing was mixed in" in capsys.readouterr().err
    (part / "1.safetensors").write_bytes(b"x" * 200)
    assert composition(sharded["gpt2"], out, "--stream") == 2 and not out.exists()
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_model_of_one_layer_has_no_readers(sharded, tmp_path, capsys, stream):
    folder = edit_config(sharded["gpt2"], tmp_path / "one", n_layer=1)
    for path in folder.glob("*.safetensors"):
        save_file({name: t for name, t in load_file(path).items() if ".h.1." not in name and ".h.2." not in name}, path)
    assert composition(folder, tmp_path / "x", *stream) == 2 and not (tmp_path / "x").exists()
    assert "has one layer" in capsys.readouterr().err
