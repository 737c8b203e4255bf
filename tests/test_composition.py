"""Scores where the answer is known, against dense algebra, and against TransformerLens."""

import dataclasses

import pytest
import torch
from conftest import BILINEAR, random_prompts

from talking_heads_utils.components import direction_of, relative_gap, write_directions
from talking_heads_utils.errors import OptionError, UnsupportedModelError
from talking_heads_utils.experiments.planted_pair import PLANTED_READER, PLANTED_WRITER, expected_scores, planted_pair
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component
from talking_heads_utils.metrics import accuracy
from talking_heads_utils.models import load_model
from talking_heads_utils.scores import composition
from talking_heads_utils.scores.composition import iter_composition, null_rms, random_directions, reading_maps
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.scores.streaming import iter_streamed
from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint


def dense_matrix(weights, layer, head, kind):
    kv, (W_Q, W_K, W_V, W_O) = weights.kv_index[head], (getattr(weights, f"W_{x}")[layer] for x in "QKVO")
    W_Q, W_K, W_V, W_O = W_Q[head], W_K[kv], W_V[kv], W_O[head]
    return {"Q": W_Q @ W_K.T, "K": W_K @ W_Q.T, "V": W_V @ W_O}[kind]


@pytest.mark.parametrize("family", BILINEAR)
def test_head_level_equals_transformer_lens(checkpoints, family):
    """Its score of whole heads is a weighted mean of ours of components: two routes to one number."""
    from transformer_lens import FactoredMatrix
    from transformer_lens.utilities import composition_scores

    weights = load_head_weights(checkpoints[family], dtype=torch.float64)
    scores, kv = compute_scores(weights), weights.kv_index
    ov = FactoredMatrix(weights.W_V[:, kv], weights.W_O)
    qk = FactoredMatrix(weights.W_Q, weights.W_K[:, kv].mT)
    for kind, right in (("Q", qk), ("K", qk.T), ("V", ov)):
        theirs, ours = composition_scores(ov, right), scores.head_level(kind)
        defined = ~ours.isnan()
        assert defined.sum() == 3 * 16, "three pairs of layers, four heads each"
        torch.testing.assert_close(ours[defined].double(), theirs[defined], atol=1e-6, rtol=1e-6)


def test_a_model_that_normalises_queries_and_keys_has_value_composition_alone(checkpoints):
    """And everything that only runs it; what needs ``W_Q W_K^T`` names what can be had."""
    weights, checkpoint = load_head_weights(checkpoints["qwen3"]), open_checkpoint(checkpoints["qwen3"])
    bridge, prompts = load_model(checkpoints["qwen3"]), random_prompts()
    needing = {
        "scores": lambda: compute_scores(weights),
        "streamed": lambda: list(iter_streamed(checkpoint, [1], "VK", n_random=5, seed=0)),
        "maps": lambda: reading_maps(weights, 1, "Q"),
        "component": lambda: direction_of(weights, Component(1, 0, 0), "QK"),
        "record": lambda: record(bridge, prompts, [1]),
        "prepare": lambda: prepare(bridge, prompts, 1),
    }
    for name, ask in needing.items():
        with pytest.raises(UnsupportedModelError, match=r'normalises queries and keys.* kind "V"'):
            ask()
            pytest.fail(f"{name} was not refused")
    streamed = next(iter(iter_streamed(checkpoint, [2], "V", n_random=5, seed=0)))[0][0]
    torch.testing.assert_close(streamed.score, compute_scores(weights, "V").blocks["V", 2].score)
    assert accuracy(bridge, prompts).n == 6 and direction_of(weights, Component(1, 0, 0))[0].norm() == pytest.approx(1)


def test_random_directions_have_the_analytic_mean_square(small):
    """Of C^2 the mean is 1 / d_model' exactly; d_model' = d_model - 1, for these directions live where the heads do."""
    directions = random_directions(small, 40_000, seed=1)
    assert directions.sum(-1).abs().max() < 1e-10
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(40_000, dtype=torch.float64))
    for kind in "QKV":
        square = composition.score_directions(directions, reading_maps(small, 2, kind)).square()
        standard_error = square.std(0) / 200
        assert ((square.mean(0) - null_rms(23) ** 2).abs() < 4 * standard_error).all()
    assert compute_scores(small).null_rms == null_rms(small.d_model_effective) == pytest.approx(23**-0.5)


def test_z_and_rank_are_what_they_say(small):
    block = next(b for b in iter_composition(small, "K", n_random=2000, seed=5) if b.layer == 2)
    flat = block.score[..., 1].flatten()
    rank = block.rank[..., 1].flatten()
    assert sorted(rank.tolist()) == list(range(1, len(flat) + 1)) and flat[rank == 1] == flat.max()
    assert (flat[rank.argsort()].diff() <= 0).all()
    null = composition.score_directions(random_directions(small, 2000, seed=5), reading_maps(small, 2, "K"))
    torch.testing.assert_close(block.z[0, 2, 3, 1], (block.score[0, 2, 3, 1] - null[:, 1].mean()) / null[:, 1].std())
    torch.testing.assert_close(block.null_max, null.amax(0))


def test_what_a_group_shares_is_multiplied_once_and_gives_the_same(checkpoints, monkeypatch):
    """The factored maps of grouped heads against whole ones, in one block and in several."""
    weights = load_head_weights(checkpoints["llama"], dtype=torch.float64)
    directions = random_directions(weights, 200)
    for kinds in ("QKV", "VK"):
        dense = torch.cat([reading_maps(weights, 1, kind) for kind in kinds])
        maps = composition.reader_maps(weights, 1, kinds)
        assert [len(part.shared) for part in maps] == [4 if kind == "Q" else 2 for kind in kinds]
        for elements in (1 << 21, 1):
            monkeypatch.setattr(composition, "_BLOCK_ELEMENTS", elements)
            found = composition.score_readers(directions, maps)
            torch.testing.assert_close(found, composition.score_directions(directions, dense), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("asked", [{"kinds": "QX"}, {"kinds": ""}, {"layers": [0]}], ids=str)
def test_kinds_and_reader_layers_that_are_not_there_are_one_clear_error(small, asked):
    with pytest.raises(OptionError, match=r"use Q, K, V|readers are in layers 1\.\.2"):
        next(iter_composition(small, **asked))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_channel_is_found_and_nothing_else(cosine, seed):
    weights = planted_pair(cosine, seed=seed, dtype=torch.float64)
    scores = compute_scores(weights)
    found = scores.pair(PLANTED_WRITER.of_head, PLANTED_READER, "Q")
    torch.testing.assert_close(found, expected_scores(cosine).double(), atol=1e-6, rtol=1e-6)
    M = dense_matrix(weights, 1, 0, "Q")  # the same by the dense route
    direction = write_directions(weights)[0][0, 0, PLANTED_WRITER.component]
    assert (direction @ M).norm() / M.norm() == pytest.approx(expected_scores(cosine).max().item(), abs=1e-6)
    block = scores.blocks["Q", 1]  # nothing planted into L1H1: no more than chance among 512 random directions
    assert block.score[..., 1].max() - block.null_mean[1] < 1.5 * (block.null_max - block.null_mean)[1]


@pytest.mark.parametrize("bad", [dict(cosine=1.2), dict(cosine=-0.1)])
def test_a_planted_pair_that_cannot_be_is_one_clear_error(bad):
    with pytest.raises(OptionError, match="A cosine is 0 to 1"):
        planted_pair(**bad)


def test_a_component_that_hardly_writes_leaves_the_head_level_score_whole(small):
    """Nearly dependent rows of W_O: one component is zero up to rounding. Second route: TransformerLens."""
    from transformer_lens import FactoredMatrix
    from transformer_lens.utilities import composition_scores

    W_O = small.W_O.clone()
    W_O[0, 1, 5] = 2 * W_O[0, 1, 4] + 1e-9 * W_O[0, 1, 5]
    weights = dataclasses.replace(
        small, **{n: getattr(small, n).float() for n in ("W_Q", "W_K", "W_V")}, W_O=W_O.float()
    )
    scores = compute_scores(weights)
    assert scores.pair("L0H1", "L2H0", "V")[5].isnan() and not scores.pair("L0H1", "L2H0", "V")[:5].isnan().any()
    ov = FactoredMatrix(weights.W_V, weights.W_O)
    theirs = composition_scores(ov, ov)[0, 1, 2]
    torch.testing.assert_close(scores.head_level("V")[0, 1, 2], theirs, atol=1e-5, rtol=1e-4)


def test_a_small_but_genuine_component_keeps_its_direction():
    """S down to 1e-4 of the largest, d_model large: nothing of it is taken for zero."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 1024, 32, generator=generator, dtype=torch.float64))[0]
    S = torch.logspace(0, -4, 32, dtype=torch.float64)
    weights = dataclasses.replace(
        planted_pair(),
        W_V=(basis[0] * S)[None, None].float(),
        W_O=basis[1].T[None, None].float(),
        kv_index=torch.tensor([0]),
    )
    directions, found = write_directions(weights)
    torch.testing.assert_close(found[0, 0], S.float(), atol=1e-7, rtol=1e-3)
    overlap = torch.einsum("cm,mc->c", directions[0, 0].double(), basis[1]).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-4, rtol=0)


def test_a_dead_head_is_undefined_everywhere_and_never_ranked(small):
    """L0H1 writes nothing and L2H3 reads nothing."""
    W_O, W_Q = small.W_O.clone(), small.W_Q.clone()
    W_O[0, 1], W_Q[2, 3] = 0, 0
    scores = compute_scores(dataclasses.replace(small, W_O=W_O, W_Q=W_Q))
    for table in (scores.head_level("Q"), scores.best_component("Q")):
        assert table[0, 1, 2].isnan().all() and table[:2, :, 2, 3].isnan().all()
        assert not table[0, 0, 2, :3].isnan().any()
    rank = scores.blocks["Q", 2].rank
    assert (rank[0, 1] == 0).all() and (rank[..., 3] == 0).all() and rank[..., 0].max() == 7 * 6


def test_write_directions_are_those_of_the_svd_for_grouped_heads_too(checkpoints):
    weights = load_head_weights(checkpoints["llama"], dtype=torch.float64)
    directions, S = write_directions(weights)
    _, wanted, Vh = torch.linalg.svd(weights.W_V[:, weights.kv_index] @ weights.W_O)
    torch.testing.assert_close(S, wanted[..., : weights.d_head])
    overlap = (directions * Vh[..., : weights.d_head, :]).sum(-1).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap))


def test_gap_is_to_the_nearest_other_value():
    gap = relative_gap(torch.tensor([10.0, 9.0, 4.0, 4.0]))
    torch.testing.assert_close(gap, torch.tensor([0.1, 1 / 9, 0.0, 0.0]))
    assert torch.isinf(relative_gap(torch.tensor([3.0]))).all()
