"""The benchmark compares like with like; nothing here is timed."""

import json
from functools import partial

import pytest
import torch

from talking_heads_utils.cli import main
from talking_heads_utils.cli.benchmarks import Row, child, in_turn, report, table
from talking_heads_utils.cli.benchmarks import composition as bench
from talking_heads_utils.cli.benchmarks import icl as icl_bench
from talking_heads_utils.cli.benchmarks import steering as steering_bench
from talking_heads_utils.cli.benchmarks import streaming as streaming_bench
from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, RANDOM_PAIRS
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.families import Shape


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_both_routes_of_the_benchmark_agree(checkpoints, family):
    weights = load_head_weights(checkpoints[family])
    with torch.inference_mode():
        ours = compute_scores(weights)
        assert bench.head_level_difference(ours, bench.transformer_lens_head_level(weights)) < 1e-5
        assert bench.component_difference(ours, bench.flat_product(weights)) < 1e-5


def test_a_wrong_score_does_not_pass_for_agreement(small):
    ours = compute_scores(small)
    plain = bench.transformer_lens_head_level(small)
    plain["K"][0, 0, 1, 0] += 0.01
    assert bench.head_level_difference(ours, plain) == pytest.approx(0.01, rel=1e-3)


def test_the_whole_benchmark_runs_and_is_written(checkpoints, tmp_path, capsys, monkeypatch):
    """In this process: the streaming benchmark's test starts children of its own."""

    def route(command):
        assert bench._route(*command[1:]) == 0
        return 1.0, float(capsys.readouterr().out.rsplit("peak_mb=", 1)[1])

    monkeypatch.setattr(bench, "child", route)
    rows = bench.rows(str(checkpoints["gpt2"]), repeats=1)
    path = report("composition", rows, tmp_path, {"weights": "small"})
    written = json.loads(path.read_text())
    assert [row["case"] for row in written["rows"]] == [row.case for row in rows] and len(rows) == 3
    assert all(row.ours_peak_mb > 50 and row.plain_peak_mb > 50 for row in rows)
    assert rows[0].case in capsys.readouterr().out


def test_a_child_that_fails_is_no_measurement():
    with pytest.raises(TalkingHeadsError, match="No such folder: /nowhere"):
        child([bench.MODULE, "command", "/nowhere"])


def test_runs_alternate():
    calls = []
    in_turn(lambda: calls.append("ours"), lambda: calls.append("plain"), repeats=2)
    assert calls == ["ours", "ours", "plain", "ours", "plain"]
    assert table([Row("a", 1.0, 2.0, 2.0, None, None, 1234.0)]).splitlines()[1].split() == [
        "a",
        "1",
        "2",
        "2",
        "-",
        "-",
        "1,234",
    ]


@pytest.mark.parametrize("b, sets, n_layers", [(NO_EXAMPLES, "the post's", 16), (RANDOM_PAIRS, "scattered", 3)])
def test_both_ways_of_patching_agree(b, sets, n_layers):
    row = icl_bench.compare(icl_bench.narrow_llama("cpu", n_layers), b, sets, repeats=1, n_prompts=3)
    assert row.max_abs_diff < 1e-4 and f"{n_layers} layers x 3 prompts x 6 sets ({sets})" in row.case
    tokens = 6 if b == NO_EXAMPLES else 78  # <bos> \n ( x , and a space; six more for each pair
    assert f"(78 and {tokens} tokens)" in row.case


def test_both_ways_of_steering_agree():
    case = steering_bench.mini_token()
    for read in ("attention", "logits"):
        row = steering_bench.compare(case, 4, read, 1, values=(-50.0, 0.0, 50.0), n_plain=20)
        assert row.max_abs_diff < 1e-4 and "27 settings" in row.case and row.ratio > 0


def test_the_streaming_benchmark_compares_tables_and_counts_products(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming_bench, "product_rate", partial(streaming_bench.product_rate, size=256))
    shape = Shape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_head=8)
    share, routes = streaming_bench.rows(shape=shape, n_layers=(3,))
    assert share.ratio == share.plain_s / share.ours_s > 0 and share.ours_peak_mb > 50
    assert routes.max_abs_diff < 1e-3 and "2 K/V heads" in routes.case and routes.plain_peak_mb > 50
    pair = 32 * 32 * (32 + 16 + 16) + 2 * 4 * 32 * 8 * 8  # Q, K, V of all components; cores of K and V
    assert streaming_bench.n_products(shape) == 2 * 3 * pair
    assert streaming_bench.n_products(Shape(2, 4, 4, 32, 8)) == 2 * 32 * 32 * 96, "nothing shared, no cores"


@pytest.mark.parametrize("name", ["composition", "steering", "icl", "streaming"])
def test_the_command_passes_on_what_was_asked_and_writes_what_was_measured(name, checkpoints, tmp_path, monkeypatch):
    asked, row = [], Row("a case", 1.0, 3.0, 3.0, 0.0, None, None)

    def rows(*arguments, **options):
        asked.append((arguments, options))
        return [row]

    monkeypatch.setattr(f"talking_heads_utils.cli.benchmarks.{name}.rows", rows)
    options = ["--weights", str(checkpoints["gpt2"]), "--repeats", "7", "--note", "busy", "--out", str(tmp_path)]
    assert main(["benchmark", name, *options]) == 0
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    ((arguments, options),) = asked
    assert 7 in (*arguments, *options.values()) and written["rows"][0]["ratio"] == 3.0 and written["note"] == "busy"
    assert path.name == f"{name}-{written['machine']['name']}.json" and written["weights"]
    assert name != "streaming" or options == {"n_layers": (8,)}, "32 layers only with --whole"


@pytest.mark.parametrize("route", [*bench.IN_MEMORY, "command"])
def test_a_route_of_a_child_scores_the_checkpoint_and_says_its_peak(route, checkpoints, capsys):
    assert bench._route(route, str(checkpoints["gpt2"])) == 0
    assert float(capsys.readouterr().out.rsplit("peak_mb=", 1)[1]) > 50


@pytest.mark.parametrize("route", ["streamed", "in memory"])
def test_a_route_of_the_streaming_benchmark_writes_its_scores(route, checkpoints, tmp_path, capsys):
    assert streaming_bench._route(route, str(checkpoints["llama"]), str(tmp_path / "out")) == 0
    assert (tmp_path / "out").exists() and "peak_mb=" in capsys.readouterr().out


def test_scores_that_differ_do_not_pass_for_equal(checkpoints, tmp_path):
    for name, more in (("a", ()), ("b", ("--kinds", "QK"))):
        main(["composition", "--weights", str(checkpoints["llama"]), "--out", str(tmp_path / name), *more])
    assert streaming_bench.largest_difference(tmp_path / "a", tmp_path / "a") == 0
    assert streaming_bench.largest_difference(tmp_path / "a", tmp_path / "b") == float("inf")
