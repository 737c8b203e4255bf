"""The command line: its table, its metadata, its errors, and what an interruption leaves behind."""

import pandas as pd
import pytest
import torch

from talking_heads_utils.cli import main
from talking_heads_utils.scores import tables
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.checkpoints import load_head_weights


@pytest.fixture
def run(checkpoints, tmp_path):
    """Run ``composition`` on the small GPT-2 with more arguments; gives the exit code and the output's path."""

    def command(*more, out="out.parquet", weights=None):
        path = tmp_path / out
        return main(["composition", "--weights", str(weights or checkpoints["gpt2"]), "--out", str(path), *more]), path

    return command


def test_the_table_holds_every_score_once(run, checkpoints):
    code, path = run()
    table = pd.read_parquet(path)
    scores = compute_scores(load_head_weights(checkpoints["gpt2"]))
    assert code == 0 and len(table) == 3 * 3 * 16 * 6  # kinds, layer pairs, head pairs, components
    assert list(table.columns) == [
        "kind", "writer_layer", "writer_head", "component", "reader_layer", "reader_head",
        "score", "z", "rank", "singular_value", "gap",
    ]  # fmt: skip
    assert table["score"].dtype == table["singular_value"].dtype == "float32"
    keys = ["kind", "writer_layer", "writer_head", "component", "reader_layer", "reader_head"]
    assert not table.duplicated(keys).any() and (table["writer_layer"] < table["reader_layer"]).all()
    part = table[(table["kind"] == "K") & (table["reader_layer"] == 2) & (table["reader_head"] == 3)]
    ours = scores.table("L2H3", "K")
    merged = part.merge(ours, on=["writer_layer", "writer_head", "component"], suffixes=("", "_ours"))
    assert len(merged) == len(ours) == 2 * 4 * 6
    for column in ("score", "z", "rank", "singular_value", "gap"):
        assert (merged[column] - merged[f"{column}_ours"]).abs().max() < 1e-6


@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_of_normalised_queries_and_keys_values_alone_are_scored(run, checkpoints, capsys, more):
    code, path = run(*more, weights=checkpoints["qwen3"])
    assert code == 2 and "--kinds V" in capsys.readouterr().err and not path.exists()
    code, path = run(*more, "--kinds", "V", weights=checkpoints["qwen3"])
    assert code == 0 and len(pd.read_parquet(path)) == 3 * 16 * 6


def test_top_keeps_the_best_of_each_reader_and_kind(run):
    _, path = run("--top", "5", "--kinds", "qv")
    table = pd.read_parquet(path)
    groups = table.groupby(["kind", "reader_layer", "reader_head"], observed=True)["rank"]
    assert set(table["kind"]) == {"Q", "V"} and groups.size().eq(5).all() and groups.max().eq(5).all()


def test_an_interruption_leaves_the_finished_file_and_nothing_half_written(run, monkeypatch):
    _, path = run()
    before = path.read_bytes()
    real = tables.component_rows

    def interrupted(block, S):
        if block.layer == 2:
            raise KeyboardInterrupt
        return real(block, S)

    monkeypatch.setattr(tables, "component_rows", interrupted)
    code, _ = run("--seed", "9")
    assert code == 130 and path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_edit_is_baked_from_the_command_line(checkpoints, tmp_path, capsys):
    from talking_heads_utils.edits.edits import OV, REMOVE, Change, new_edit, save_edit
    from talking_heads_utils.labels import Component

    path, out = tmp_path / "edit.json", tmp_path / "edited"
    weights = load_head_weights(checkpoints["gpt2"])
    save_edit(new_edit(weights, [Change(Component(1, 2, 0), OV, REMOVE)], model="small"), path)
    command = ["edit", "--model", str(checkpoints["gpt2"]), "--edit", str(path), "--out", str(out)]
    assert main(command) == 0 and "OV of L1H2.0: remove" in capsys.readouterr().out
    after = load_head_weights(out)
    assert torch.equal(after.W_O[0], weights.W_O[0]) and not torch.equal(after.W_O[1, 2], weights.W_O[1, 2])
    for wrong in (command, [*command[:2], str(checkpoints["llama"]), *command[3:6], str(tmp_path / "other")]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.startswith("error: ")
    path.write_text("{}")
    assert main([*command[:6], str(tmp_path / "other")]) == 2 and not (tmp_path / "other").exists()
    by_name = [*command[:3], "--scale", "L1H2 x 0", "--out", str(tmp_path / "named")]
    assert main(by_name) == 0 and "L1H2.0: scale 0" in capsys.readouterr().out
    assert load_head_weights(tmp_path / "named").W_O[1, 2].abs().max() < 1e-5 < weights.W_O[1, 2].abs().max()
    for wrong in ([*by_name[:4], "L1H2", *by_name[5:]], ["edit", "--model", "planted", *by_name[3:]]):
        assert main(wrong) == 2 and capsys.readouterr().err.startswith("error: ")
