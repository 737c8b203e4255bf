"""Composition at a distance, against Hugging Face's own rotary attention."""

import json
import shutil
import sys

import pytest
import torch
from conftest import LLAMA3, build_model

from talking_heads_utils.errors import CheckpointError, LabelError, OptionError, UnsupportedModelError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.scores.distance import composition_at_distances
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.checkpoints import load_head_weights
from talking_heads_utils.weights.heads import Rotary
from talking_heads_utils.weights.rotary import rotation

ROTARY = ["gpt_neox", "llama", "llama3", "qwen2"]
PAIR = Component(0, 3, 1), Head(2, 1)


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
    writer, reader = PAIR
    distances = torch.arange(65)
    scores = composition_at_distances(weights, writer, reader, kind, distances)
    table = compute_scores(weights).pair(writer.of_head, reader, kind)[writer.component]
    torch.testing.assert_close(scores[0], table, atol=1e-9, rtol=1e-8)
    kv = weights.kv_index
    v = torch.linalg.svd(weights.W_V[0, kv[3]] @ weights.W_O[0, 3])[2][1]
    for distance in (1, 17, 64):
        T = rotation(weights.rotary, torch.tensor([distance]), weights.d_head)[0]
        M = weights.W_Q[2, 1] @ T @ weights.W_K[2, kv[1]].T
        M = M if kind == "Q" else M.T
        torch.testing.assert_close(scores[distance], (v @ M).norm() / M.norm(), atol=1e-9, rtol=1e-8)
    assert scores.std() > 1e-4, "the distance must matter"


def test_bad_requests_are_clear_errors(checkpoints, small):
    weights = load_head_weights(checkpoints["llama"])
    with pytest.raises(OptionError, match="Distance plays no part"):
        composition_at_distances(weights, *PAIR, "V", torch.arange(2))
    with pytest.raises(OptionError, match="Distance plays no part"):
        composition_at_distances(small, *PAIR, "Q", torch.arange(2))
    with pytest.raises(LabelError, match="not in a later layer"):
        composition_at_distances(weights, Component(2, 0, 0), Head(1, 0), "Q", torch.arange(2))
    with pytest.raises(LabelError, match="components are 0..5"):
        composition_at_distances(weights, Component(0, 0, 6), Head(1, 0), "Q", torch.arange(2))
    with pytest.raises(UnsupportedModelError, match="'V'|kind \"V\""):
        composition_at_distances(load_head_weights(checkpoints["qwen3"]), *PAIR, "Q", torch.arange(2))


def rotary_of(folder, target, **changes):
    """Out of a copy of a checkpoint whose config says something else."""
    config = json.loads((shutil.copytree(folder, target) / "config.json").read_text())
    config.pop("rope_parameters")
    (target / "config.json").write_text(json.dumps(config | changes))
    return load_head_weights(target).rotary


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
