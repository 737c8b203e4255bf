"""Composition at a distance, against Hugging Face's own rotary attention."""

import sys
from itertools import product

import pytest
import torch
from conftest import LLAMA3, build_model, edit_config

from talking_heads_utils.errors import CheckpointError, LabelError, OptionError, UnsupportedModelError
from talking_heads_utils.labels import Head
from talking_heads_utils.scores.distance import scores_at_distances
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.heads import Rotary
from talking_heads_utils.weights.rotary import rotation

ROTARY = ["gpt_neox", "llama", "llama3", "qwen2"]
WRITERS, READERS = [Head(0, 3), Head(1, 0)], [Head(2, 1), Head(2, 2)]


@pytest.mark.parametrize("family_name", ROTARY)
def test_the_rotation_is_that_of_the_model(checkpoints, family_name):
    """``q T(i - j) k`` equals the score of the rotated query at i and the rotated key at j."""
    model = build_model(family_name)
    module = sys.modules[type(model).__module__]
    weights = load_head_weights(checkpoints[family_name])
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 40, weights.d_head, generator=generator) for _ in range(2))
    cos, sin = model.base_model.rotary_emb(q, torch.arange(40)[None])
    dim = weights.rotary.dim
    turned_q, turned_k = module.apply_rotary_pos_emb(q[..., :dim], k[..., :dim], cos, sin)
    i, j = 31, 12
    theirs = turned_q[0, 0, i] @ turned_k[0, 0, j] + q[0, 0, i, dim:] @ k[0, 0, j, dim:]
    T = rotation(weights.rotary, torch.tensor([i - j]), weights.d_head)[0].float()
    torch.testing.assert_close(q[0, 0, i] @ T @ k[0, 0, j], theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family_name", ROTARY)
@pytest.mark.parametrize("kind", "QK")
def test_distance_0_is_the_table_and_other_distances_equal_the_dense_route(checkpoints, family_name, kind):
    weights = load_head_weights(checkpoints[family_name], dtype=torch.float64)
    scores = scores_at_distances(weights, WRITERS, READERS, kind, torch.arange(65))
    assert scores.shape == (65, 2, weights.d_head, 2)
    table = compute_scores(weights, kind)
    at_0 = [[table.pair(writer, reader, kind) for reader in READERS] for writer in WRITERS]
    torch.testing.assert_close(scores[0], torch.stack([torch.stack(each, -1) for each in at_0]), atol=1e-9, rtol=1e-8)
    kv = weights.kv_index
    for w, writer in enumerate(WRITERS):
        OV = weights.W_V[writer.layer, kv[writer.head]] @ weights.W_O[writer.layer, writer.head]
        V = torch.linalg.svd(OV)[2][: weights.d_head]
        for (r, reader), distance in product(enumerate(READERS), (1, 17, 64)):
            T = rotation(weights.rotary, torch.tensor([distance]), weights.d_head)[0]
            M = weights.W_Q[2, reader.head] @ T @ weights.W_K[2, kv[reader.head]].T
            M = M if kind == "Q" else M.T
            expected = (V @ M).norm(dim=1) / M.norm()
            torch.testing.assert_close(scores[distance, w, :, r], expected, atol=1e-9, rtol=1e-8)
    assert (scores.std(0) > 1e-4).all(), "the distance must matter"


def test_without_rotary_positions_all_distances_are_the_table(small):
    found = scores_at_distances(small, WRITERS, READERS, "K", torch.tensor([0, 9]))
    expected = compute_scores(small, "K").pair(WRITERS[1], READERS[0], "K")
    torch.testing.assert_close(found[:, 1, :, 0], expected.expand(2, -1), atol=1e-9, rtol=1e-8)


def test_bad_requests_are_clear_errors(checkpoints):
    weights = load_head_weights(checkpoints["llama"])
    with pytest.raises(OptionError, match="Distance plays no part"):
        scores_at_distances(weights, WRITERS, READERS, "V", torch.arange(2))
    with pytest.raises(LabelError, match="not in a later layer"):
        scores_at_distances(weights, [Head(0, 0), Head(2, 0)], [Head(1, 0)], "Q", torch.arange(2))
    with pytest.raises(LabelError, match="L0H9 is not in"):
        scores_at_distances(weights, [Head(0, 9)], READERS, "Q", torch.arange(2))
    with pytest.raises(UnsupportedModelError, match="'V'|kind \"V\""):
        scores_at_distances(load_head_weights(checkpoints["qwen3"]), WRITERS, READERS, "Q", torch.arange(2))


def rotary_of(folder, target, **changes):
    """Out of a copy of a checkpoint whose config says something else."""
    return load_head_weights(edit_config(folder, target, **{"rope_parameters": ...} | changes)).rotary


def test_settings_are_read_under_either_name(checkpoints, tmp_path):
    old = LLAMA3 | {"type": "llama3"}
    old.pop("rope_type")
    expected = load_head_weights(checkpoints["llama3"]).rotary
    assert rotary_of(checkpoints["llama"], tmp_path / "old", rope_scaling=old, rope_theta=10000.0) == expected
    plain = rotary_of(checkpoints["llama"], tmp_path / "plain", rope_theta=500.0)
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    slowed = rotary_of(checkpoints["llama"], tmp_path / "linear", rope_parameters=linear)
    assert plain.speeds == pytest.approx([500 ** (-i / 3) for i in range(3)]) and slowed.kind == "linear"
    assert slowed.speeds == pytest.approx([speed / 4 for speed in plain.speeds])


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_positions_that_change_with_the_length_are_refused_at_a_distance_alone(checkpoints, tmp_path, kind):
    rotary = rotary_of(checkpoints["llama"], tmp_path / kind, rope_parameters={"rope_type": kind, "factor": 2.0})
    assert rotary == Rotary((), kind)
    with pytest.raises(UnsupportedModelError, match=f"{kind!r} change with a prompt's length"):
        rotation(rotary, torch.arange(2), 6)


def test_scaling_without_its_numbers_is_one_clear_error(checkpoints, tmp_path):
    """Nor is there a share of d_head above one: it would ask for memory without end."""
    settings = [{"rope_type": "llama3"}, {"rope_type": "linear", "factor": "x"}, {"partial_rotary_factor": 10**9}]
    for i, changes in enumerate(settings):
        with pytest.raises(CheckpointError, match="rotary settings make no sense"):
            rotary_of(checkpoints["llama"], tmp_path / str(i), rope_parameters=changes)
