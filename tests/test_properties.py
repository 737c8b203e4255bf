"""Laws that hold for any weights, seed and size: the algebra and the file format.

Cases are drawn by hypothesis from a fixed seed; every law is checked on the dense route or against the promise itself.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talking_heads_utils.components import factored_svd, write_directions
from talking_heads_utils.edits.edits import OV, QK, REMOVE, ROTATE, SCALE, SET, Change, Move, make, moves_of, new_edit
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.scores.composition import head_level, iter_composition
from talking_heads_utils.scores.scores import compute_scores, load_scores, save_scores
from talking_heads_utils.weights.heads import LAYER_NORM, NO_NORM, RMS_NORM, HeadWeights, RawLayer, Source, assemble

LAWS = settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SEEDS = st.integers(0, 2**63 - 1)


def raw_layers(shape: tuple[int, ...], norm: str, seed: int) -> list[RawLayer]:
    n_layers, n_kv, group, d_model, d_head = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    layers = []
    for _ in range(n_layers):
        W_Q, W_O = normal(n_kv * group, d_model, d_head), normal(n_kv * group, d_head, d_model)
        W_K, W_V = normal(n_kv, d_model, d_head), normal(n_kv, d_model, d_head)
        scale = None if norm == NO_NORM else 0.5 + normal(d_model).abs()
        bias = normal(d_model) if norm == LAYER_NORM else None
        layers.append(RawLayer(W_Q, W_K, W_V, W_O, normal(n_kv, d_head), normal(d_model), scale, bias))
    return layers


@st.composite
def models(draw) -> HeadWeights:
    """Random weights of any shape and norm, in float64, with grouped heads and as few components as one."""
    shape = tuple(draw(st.integers(*ends)) for ends in ((2, 3), (1, 2), (1, 2), (6, 12), (1, 4)))
    norm = draw(st.sampled_from([LAYER_NORM, RMS_NORM, NO_NORM]))
    return assemble(raw_layers(shape, norm, draw(SEEDS)), shape[0], norm=norm, source=Source("random", "random"))


def head_matrices(weights: HeadWeights, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``W_V W_O`` and ``W_Q W_K^T``, dense."""
    kv = weights.kv_index[head]
    return weights.W_V[layer, kv] @ weights.W_O[layer, head], weights.W_Q[layer, head] @ weights.W_K[layer, kv].T


def scores_of(weights: HeadWeights) -> torch.Tensor:
    """Every score of a model in one row, without the null."""
    return torch.cat([block.score.flatten() for block in iter_composition(weights, n_random=2)])


# components and scores


@LAWS
@given(models())
def test_components_add_up_to_the_head_and_are_orthonormal(weights):
    for layer in range(weights.n_layers):
        W_Q, W_K, W_V, W_O = (W[layer] for W in (weights.W_Q, weights.W_K, weights.W_V, weights.W_O))
        factors = ((W_V[weights.kv_index], W_O), (W_Q, W_K[weights.kv_index].mT))
        for which, svd in enumerate(factored_svd(*pair) for pair in factors):
            whole = svd.U @ torch.diag_embed(svd.S) @ svd.V.mT
            dense = torch.stack([head_matrices(weights, layer, head)[which] for head in range(weights.n_heads)])
            assert torch.allclose(whole, dense, atol=1e-10)
            assert torch.allclose(svd.S, torch.linalg.svdvals(dense)[:, : weights.d_head], atol=1e-10)
            for vectors in (svd.U, svd.V):
                assert torch.allclose(vectors.mT @ vectors, torch.eye(weights.d_head).double(), atol=1e-10)


@LAWS
@given(models())
def test_scores_are_shares_and_equal_the_dense_ones(weights):
    directions, S = write_directions(weights)
    for block in iter_composition(weights, n_random=2):
        assert ((block.score >= 0) & (block.score <= 1 + 1e-12)).all()
        for reader in range(weights.n_heads):
            W_OV, W_QK = head_matrices(weights, block.layer, reader)
            M = {"Q": W_QK, "K": W_QK.T, "V": W_OV}[block.kind]
            dense = (directions[: block.layer] @ M).norm(dim=-1) / M.norm()
            assert torch.allclose(block.score[..., reader], dense, atol=1e-10)
            # and of whole heads, by the definition of Elhage et al.
            W = torch.stack([head_matrices(weights, 0, head)[0] for head in range(weights.n_heads)])
            whole = (W @ M).flatten(1).norm(dim=1) / (W.flatten(1).norm(dim=1) * M.norm())
            assert torch.allclose(head_level(block.score, S)[0, :, reader], whole, atol=1e-10)


@LAWS
@given(models(), SEEDS, st.sampled_from([-3.0, 0.25, 1e3]))
def test_scores_see_neither_a_basis_nor_sign_nor_scale(weights, seed, factor):
    """Neither what turns inside a head, nor a turn of the whole residual stream, nor the size of a head."""
    generator = torch.Generator().manual_seed(seed)

    def turn(*size: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(*size, size[-1], generator=generator, dtype=torch.float64))[0]

    R, T = (turn(weights.n_layers, weights.n_kv_heads, weights.d_head) for _ in range(2))
    B, kv = turn(weights.d_model), weights.kv_index
    inside = replace(
        weights, W_V=weights.W_V @ R, W_O=R[:, kv].mT @ weights.W_O, W_K=weights.W_K @ T, W_Q=weights.W_Q @ T[:, kv]
    )
    scaled = replace(weights, W_O=factor * weights.W_O, W_Q=factor * weights.W_Q)
    reading = {name: B.T @ getattr(weights, name) for name in ("W_Q", "W_K", "W_V")}
    for other in (inside, scaled, replace(weights, W_O=weights.W_O @ B, **reading)):
        assert torch.allclose(scores_of(other), scores_of(weights), atol=1e-9)


# edits


@st.composite
def edits(draw, weights: HeadWeights, matrix: str | None = None):
    """Up to three changes of different components, of every operation."""
    component = st.builds(
        Component, *(st.integers(0, size - 1) for size in (weights.n_layers, weights.n_heads, weights.d_head))
    )
    changes = {}
    for at in draw(st.lists(component, min_size=1, max_size=3, unique=True)):
        kinds = [SCALE, REMOVE, SET] + [ROTATE] * (weights.d_head > 1)
        operation = draw(st.sampled_from(kinds))
        value = (
            None if operation == REMOVE else draw(st.floats(0 if operation == SET else -5, 5, allow_subnormal=False))
        )
        other = replace(at, component=(at.component + 1) % weights.d_head)
        span = (at, other) if operation == ROTATE else None
        which = matrix or draw(st.sampled_from([OV, QK]))
        changes[at, which] = Change(at, which, operation, value, span)
    return new_edit(weights, changes.values())


def edited_dense(weights: HeadWeights, edit, head: Head, matrix: str) -> torch.Tensor:
    """The head's matrix with its components replaced one by one, from the dense matrix's own SVD."""
    M = head_matrices(weights, head.layer, head.head)[matrix == QK]
    U, S, Vh = torch.linalg.svd(M)
    moving = Vh if matrix == OV else U.T  # an OV edit moves what is written, a QK edit what the query reads
    signed = moving * moving.gather(1, moving.abs().argmax(1, keepdim=True)).sign()
    out = M.clone()
    for change in edit.changes:
        if change.component.of_head != head or change.matrix != matrix:
            continue
        i = change.component.component
        d = signed[i]
        value = 0.0 if change.operation == REMOVE else change.value
        if change.operation == ROTATE:
            a, b = (signed[c.component] for c in change.span)
            angle = math.radians(value)
            new = d + (a @ d) * ((math.cos(angle) - 1) * a + math.sin(angle) * b)
        else:
            new = (value / S[i] if change.operation == SET else value) * d
        kept = M @ d if matrix == OV else d @ M
        out += torch.outer(kept, new - d) if matrix == OV else torch.outer(new - d, kept)
    return out


@LAWS
@given(st.data(), models())
def test_an_edit_of_the_factors_is_the_edit_of_the_dense_matrix(data, weights):
    edit = data.draw(edits(weights))
    for move in moves_of(weights, edit):
        layer, head = move.head.layer, move.head.head
        raw = RawLayer(*(getattr(weights, f"W_{name}")[layer].clone() for name in "QKVO"))
        make(raw, move, unfold=False)
        changed = replace(weights, **{f"W_{name}": getattr(raw, f"W_{name}")[None] for name in "QKVO"})
        made = head_matrices(changed, 0, head)[move.matrix == QK]
        assert torch.allclose(made, edited_dense(weights, edit, move.head, move.matrix), atol=1e-8)


@LAWS
@given(SEEDS, st.floats(-3, 3))
def test_a_query_edited_behind_the_norm_s_scale_is_the_one_edited_in_front_of_it(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    W, d, scale = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((7, 3), (1, 7), (7,)))
    d, scale = d / d.norm(), scale.sign() * (0.1 + scale.abs())
    move = Move(Head(0, 0), QK, d, (factor - 1) * d)
    raw, folded = (RawLayer(*[w[None].clone()] * 4, ln_scale=scale) for w in (W, scale[:, None] * W))
    make(raw, move, unfold=True)
    make(folded, move, unfold=False)
    assert torch.allclose(scale[:, None] * raw.W_Q, folded.W_Q, atol=1e-9)


# file formats


@LAWS
@given(weights=models(), seed=SEEDS)
def test_scores_survive_their_file(weights, seed, tmp_path):
    scores = compute_scores(weights, n_random=3, seed=seed)
    path, again = tmp_path / "scores", tmp_path / "again"
    save_scores(scores, path)
    loaded = load_scores(path)
    assert loaded.about == scores.about and loaded.blocks.keys() == scores.blocks.keys()
    for key, block in scores.blocks.items():
        assert torch.allclose(loaded.blocks[key].score.double(), block.score.double(), atol=5e-4)
    save_scores(loaded, again)
    for key, block in load_scores(again).blocks.items():
        assert torch.equal(block.score, loaded.blocks[key].score)
