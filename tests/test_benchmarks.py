"""The benchmarks compare like with like; nothing here is timed."""

import json
from functools import partial

import pytest
from transformers import LlamaConfig

from talking_heads_utils.cli import main
from talking_heads_utils.cli.benchmarks import Row, go, random_model, report
from talking_heads_utils.cli.benchmarks import channels as channels_bench
from talking_heads_utils.cli.benchmarks import composition as bench
from talking_heads_utils.cli.benchmarks import icl as icl_bench
from talking_heads_utils.cli.benchmarks import patch as patch_bench
from talking_heads_utils.cli.benchmarks import steering as steering_bench
from talking_heads_utils.cli.benchmarks import streaming as streaming_bench
from talking_heads_utils.experiments.icl.asked import Examples
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts.ioi import build_ioi
from talking_heads_utils.prompts.toy import word_tokenizer
from talking_heads_utils.weights.families import Shape


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_all_ways_of_scoring_agree_and_are_written(family, checkpoints, tmp_path, capsys, monkeypatch):
    """In this process: the streaming benchmark's test starts children of its own."""

    def route(*arguments):
        go(*arguments)
        return 1.0, float(capsys.readouterr().out.rsplit("peak_mb=", 1)[1])

    monkeypatch.setattr(bench, "child", route)
    rows = bench.rows(str(checkpoints[family]), repeats=1)
    written = json.loads(report("composition", rows, tmp_path, {"weights": "small"}).read_text())
    assert [row["case"] for row in written["rows"]] == [row.case for row in rows] and len(rows) == 3
    assert [row.max_abs_diff is None or row.max_abs_diff < 1e-5 for row in rows] == [True] * 3
    assert all(row.ours_peak_mb > 50 and row.plain_peak_mb > 50 for row in rows)


@pytest.mark.parametrize(
    "b, sets, every", [(Examples.NONE, icl_bench.POST, 1), (Examples.SHUFFLED, icl_bench.SCATTERED, 4)]
)
def test_both_ways_of_patching_agree(b, sets, every):
    row = icl_bench.grid_row(icl_bench.narrow_llama("cpu", 16), b, sets, repeats=1, n_prompts=3, every=every)
    assert row.max_abs_diff < 1e-4 and f"16 layers x 3 prompts x 6 sets ({sets}; 78 and" in row.case
    tokens = 6 if b == Examples.NONE else 78  # <bos> \n ( x , and a space; six more for each pair
    assert f"and {tokens} tokens, B sees {b}" in row.case
    assert ("(31 of 103 the plain way, scaled up)" in row.case) == (every == 4)


@pytest.mark.parametrize("read", ["attention", "logits"])
def test_both_ways_of_steering_agree(read):
    writers = [Component(0, 0, 0), Component(1, 1, 0), Component(1, 0, 1)]
    case = steering_bench.Case("mini-token", load_model("mini-token"), writers, [Head(3, 0)])
    row = steering_bench.row(case, 4, read, 1, values=(-50.0, 0.0, 50.0), n_plain=20)
    assert row.max_abs_diff < 1e-4 and "27 settings" in row.case and row.ratio > 0


def test_the_streaming_benchmark_counts_products(monkeypatch):
    monkeypatch.setattr(streaming_bench, "product_rate", partial(streaming_bench.product_rate, size=256))
    shape = Shape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_head=8)
    (share,) = streaming_bench.rows(shape=shape, n_layers=(3,))
    assert share.ratio == share.plain_s / share.ours_s > 0 and share.ours_peak_mb > 50
    pair = 32 * 32 * (32 + 16 + 16) + 2 * 4 * 32 * 8 * 8  # Q, K, V of all components; cores of K and V
    assert streaming_bench.n_products(shape) == 2 * 3 * pair
    assert streaming_bench.n_products(Shape(2, 4, 4, 32, 8)) == 2 * 32 * 32 * 96, "nothing shared, no cores"


@pytest.fixture(scope="module")
def bridge():
    """A small model whose tokens are words in place of the large one."""
    config = LlamaConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=len(word_tokenizer()), initializer_range=0.2,
    )  # fmt: skip
    return random_model(config, word_tokenizer(), "cpu")


def test_channels_of_the_benchmark_agree_with_hooked_runs_and_transformer_lens(bridge):
    prompts, movers = build_ioi(bridge.tokenizer, 6), ("L2H1", "L2H3")
    components = channels_bench.component_row(bridge, prompts, movers, n_sample=5)
    heads = channels_bench.head_row(bridge, prompts, movers)
    assert components.max_abs_diff < 1e-4 > heads.max_abs_diff and components.case.startswith("48 components into 2")
    assert heads.case.startswith("8 heads into 2 queries, 6 prompts")
    change = channels_bench.direct_path(bridge, prompts, [Head(2, 1), Head(2, 3)])
    assert change.abs().max() > 1e-3, "heads without effect would prove nothing"


@pytest.mark.parametrize("site", ["z", "resid_pre"])
def test_patches_of_the_benchmark_agree_with_transformer_lens(bridge, site):
    found = patch_bench.row(bridge, site, patch_bench.SWAPPED, 1, n_prompts=4, n_sample=10)
    assert found.max_abs_diff < 1e-4 and found.ratio == found.plain_s / found.ours_s
    clean, corrupted = patch_bench.pairs(bridge, patch_bench.SWAPPED, 4, patch_bench.N_POS)
    assert (clean.tokens != corrupted.tokens).any() and clean.mask.all() and len(clean) == 4


@pytest.mark.parametrize("name", ["composition", "steering", "icl", "patch", "channels", "streaming"])
def test_the_command_passes_on_what_was_asked_and_writes_what_was_measured(name, checkpoints, tmp_path, monkeypatch):
    asked = []

    def rows(**options):
        asked.append(options)
        return [Row("a case", 1.0, 3.0, 3.0, 0.0, None, None)]

    monkeypatch.setattr(f"talking_heads_utils.cli.benchmarks.{name}.rows", rows)
    options = ["--weights", str(checkpoints["gpt2"]), "--repeats", "7", "--note", "busy", "--out", str(tmp_path)]
    assert main(["benchmark", name, *options]) == 0
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    assert asked[0]["repeats"] == 7 and written["rows"][0]["ratio"] == 3.0 and written["note"] == "busy"
    assert path.name == f"{name}-{written['machine']['name']}.json" and written["weights"]
    assert name != "streaming" or asked[0]["n_layers"] == (8,), "32 layers only with --whole"
