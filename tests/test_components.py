"""Algebra of components against the dense matrices."""

import dataclasses

import torch

from talking_heads_utils.components import ov_svd, relative_gap, write_directions
from talking_heads_utils.weights.checkpoints import load_head_weights


def test_write_directions_are_those_of_the_svd_for_grouped_heads_too(checkpoints):
    weights = load_head_weights(checkpoints["llama"], dtype=torch.float64)
    directions, S = write_directions(weights)
    for layer in range(weights.n_layers):
        svd = ov_svd(weights, layer)
        torch.testing.assert_close(S[layer], svd.S)
        overlap = torch.einsum("hcm,hmc->hc", directions[layer], svd.V).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap))


def test_a_component_that_writes_nothing_has_no_direction(small):
    W_V = small.W_V.clone()
    W_V[1, 2, :, 3] = W_V[1, 2, :, 4]  # rank 5 of 6
    directions, S = write_directions(dataclasses.replace(small, W_V=W_V))
    assert S[1, 2, 5] < 1e-12 < S[1, 2, 4]
    assert directions[1, 2, 5].isnan().all() and directions.isnan().any(-1).sum() == 1


def test_gap_is_to_the_nearest_other_value():
    gap = relative_gap(torch.tensor([10.0, 9.0, 4.0, 4.0]))
    torch.testing.assert_close(gap, torch.tensor([0.1, 1 / 9, 0.0, 0.0]))
    assert torch.isinf(relative_gap(torch.tensor([3.0]))).all()
