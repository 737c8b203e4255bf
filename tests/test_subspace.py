"""Which components chapter 2 reads: the planted channel's, by value as dense algebra has it, and fair others beside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts

from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.positional import subspace
from talking_heads_utils.experiments.positional.subspace import K, Measured, Subspace, basis, chosen, measured, take
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import DECOY, plant
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION, Roles
from talking_heads_utils.weights.rotary import rotation


def test_the_first_three_span_the_planted_channel_and_nothing_of_the_decoys(planted):
    truth, at = plant(), planted.kept(chosen)
    cosines = torch.linalg.svdvals(basis(at.directions[:K]) @ truth.channel.T)
    torch.testing.assert_close(cosines, torch.ones(K), atol=1e-4, rtol=0)
    writers = {c for part in truth.components.values() for c in part}
    assert set(at.writers) <= writers and set(at.anywhere) <= writers
    assert len({w.of_head for w in at.writers[:2]}) == 2, "the best of each inhibition head first"
    assert (at.directions.gather(1, at.directions.abs().argmax(1, keepdim=True)) > 0).all()
    assert all(c.of_head in truth.roles[DECOY] for triple in at.matched_components for c in triple)
    assert at.matched.shape == (99, K, at.directions.shape[1]) and at.layer == 2


def test_rows_say_what_was_taken_in_which_order(planted):
    rows, at = subspace.run(planted), planted.kept(chosen)
    of = {name: [row for row in rows if row.subspace == name] for name in (Subspace.CHOSEN, Subspace.ANYWHERE)}
    assert [row.component for row in of[Subspace.CHOSEN]] == list(map(str, at.writers))
    anywhere = of[Subspace.ANYWHERE]
    assert all(row.value == pytest.approx(row.score * row.spread) for row in anywhere)
    assert anywhere == sorted(anywhere, key=lambda row: -row.value), "by value alone"
    assert sum(row.head_energy for row in anywhere) == pytest.approx(1, abs=1e-3), "all that one head writes"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])  # without and with rotary positions
def test_scores_and_spreads_are_those_of_dense_algebra_and_hooks(family, checkpoints, monkeypatch):
    loaded, prompts = load_model(checkpoints[family]), random_prompts(12)
    monkeypatch.setattr(Context, "ioi", lambda self, n: prompts)
    c, movers = Context("tiny", loaded=(loaded, None)), [Head(2, 1), Head(2, 3)]
    c.__dict__["roles"] = Roles.given({NAME_MOVER: movers, S_INHIBITION: [Head(1, 2), Head(0, 1)]})
    at, W, end = measured(c), c.weights, prompts.positions["end"]
    _, cache = loaded.run_with_cache(prompts.tokens)
    distances = torch.cat([end - 1, end - 3])  # to IO and to S1
    for head in (Head(1, 2), Head(0, 0)):
        W_O, kv = W.W_O[head.layer, head.head].double(), int(W.kv_index[head.head])
        v = torch.linalg.svd(W.W_V[head.layer, kv].double() @ W_O).Vh[: W.d_head]
        torch.testing.assert_close(
            (v * at.directions[head.layer, head.head]).sum(1).abs(), torch.ones(6).double(), atol=1e-4, rtol=0
        )
        z = cache[f"blocks.{head.layer}.attn.hook_z"][torch.arange(12), end, head.head].double()
        torch.testing.assert_close(at.spread[head.layer, head.head], (z @ W_O @ v.T).std(0), atol=1e-4, rtol=1e-3)
        scores = []
        for mover in movers:
            W_Q, W_K = (w[mover.layer, mover.head].double() for w in (W.W_Q, W.W_K))
            for distance in distances:
                T = torch.eye(6).double() if W.rotary is None else rotation(W.rotary, distance[None], W.d_head)[0]
                M = W_Q @ T.double() @ W_K.T
                scores.append((v @ M).norm(dim=1) / M.norm())
        torch.testing.assert_close(at.score[head.layer, head.head], torch.stack(scores).mean(0), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def made():
    """Two layers of eight heads with sixteen components each, spreads over some orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(2, 8, 64, 16, generator=generator, dtype=torch.float64))[0].mT
    spread = torch.randn(2, 8, 16, generator=generator, dtype=torch.float64).exp()
    score = torch.rand(2, 8, 16, generator=generator, dtype=torch.float64)
    return Measured((Head(2, 0),), (Head(1, 0), Head(0, 3)), directions, score, spread, 100)


def test_matched_triples_are_of_the_same_layers_and_of_like_energy(made):
    writers = [Component(1, 0, 2), Component(0, 3, 0), Component(1, 0, 5), Component(1, 0, 7)]
    triples = subspace.matched_triples(made, writers)
    assert len(set(triples)) == 99 and triples == subspace.matched_triples(made, writers)
    own = basis(torch.stack([made.direction(w) for w in writers[:K]]))
    others = (made.directions @ own.T).square().sum(-1) <= 0.5  # of a direction's squared length within the span
    for w in writers:
        others[w.layer, w.head, w.component] = False
    energy = made.spread.square().log()
    for triple in triples:
        assert len(set(triple)) == K
        for other, writer in zip(triple, writers):
            layer = writer.layer
            apart = (energy[layer] - energy[layer, writer.head, writer.component]).abs()
            assert other.layer == layer and others[layer, other.head, other.component]
            nearer = others[layer] & (apart < apart[other.head, other.component])
            assert nearer.sum() < subspace.N_NEAREST
    few = replace(made, directions=made.directions.where(torch.arange(8)[:, None, None] == 0, torch.nan))
    few.directions[:, 0, 4:] = torch.nan
    with pytest.raises(NotApplicable, match="too few other components"):
        subspace.matched_triples(few, [Component(1, 0, 0), Component(1, 0, 1), Component(0, 0, 2)])


def test_a_direction_that_is_mostly_there_is_passed_over():
    directions = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]).double().view(1, 2, 2, 3)
    value = torch.tensor([4.0, 3.0, 2.0, 1.0]).double().view(1, 2, 2)
    found = take(value, directions)
    assert [t.component for t in found] == [Component(0, 0, 0), Component(0, 1, 0), Component(0, 1, 1)]
    assert [t.outside for t in found] == pytest.approx([1, 0.64, 1])
    assert take(value, directions, [Head(0, 1)])[0].component == Component(0, 1, 0), "the head's best, first"
    silent = value.masked_fill(value == 4, -1.0)
    assert Component(0, 0, 0) not in [t.component for t in take(silent, directions)]


def test_a_basis_spans_what_the_directions_do_and_none_is_made_of_dependent_ones():
    directions = torch.randn(5, 3, 10, generator=torch.Generator().manual_seed(0))
    B = basis(directions)
    torch.testing.assert_close(B @ B.mT, torch.eye(3).expand(5, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(directions @ B.mT @ B, directions, atol=1e-5, rtol=0)
    directions[2, 1] = directions[2, 0] - directions[2, 2]
    for dependent in (directions, torch.randn(3, 2)):
        with pytest.raises(OptionError, match="depend on each other"):
            basis(dependent)


def test_a_model_without_enough_components_or_lists_is_not_applicable(planted, monkeypatch):
    c, at = Context("planted", quick=True), planted.kept(measured)
    spread = torch.zeros_like(at.spread)
    spread[1, :2, :2] = at.spread[1, :2, :2]
    c._kept[measured,] = replace(at, spread=spread)
    with pytest.raises(NotApplicable, match="2 usable components"):
        c.kept(chosen)
    c.__dict__["roles"] = Roles.given({NAME_MOVER: [Head(1, 3), Head(2, 0)], S_INHIBITION: [Head(1, 0)]})
    with pytest.raises(NotApplicable, match="below its lowest name mover"):
        measured(c)
    assert subspace.lengths(planted) == [4, 8] and subspace.nearest_lengths(planted, 4, 6) == [4]
    assert subspace.shown_lengths(planted) == [3, 4, 5, 6, 7, 8]
    monkeypatch.setattr(Context, "lengths", [10, 12])
    with pytest.raises(NotApplicable, match="no lists of 3 to 8"):
        subspace.lengths(planted)
