"""Learned subspaces find the planted channel, as TransformerLens' own search does; their controls find nothing."""

import pytest
import torch
from transformer_lens.tools.analysis.interchange import fit_das

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part, build
from talking_heads_utils.experiments.positional import interchange
from talking_heads_utils.experiments.positional.ends import make_ends
from talking_heads_utils.experiments.positional.interchange import LOGIT_DIFFERENCE, MOVED
from talking_heads_utils.experiments.positional.learned import drawn_targets, fit, true_targets, untrained_copy
from talking_heads_utils.experiments.positional.pairs import Donor, make_pairs
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import PLANTED
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import MOVER, plant

N_ITEMS = 8  # so many that their codes fill three dimensions


@pytest.fixture(scope="module")
def planted():
    truth = plant(strength=20.0)  # weak, so that attention has gradients
    return truth, make_ends(
        truth.bridge, build(truth.tokenizer, Lists(Part.SELECTION, N_ITEMS, 120)), truth.roles[MOVER]
    )


def test_three_learned_dimensions_are_the_planted_channel(planted):
    truth, lists = planted
    found = fit(lists, true_targets(N_ITEMS), (1, 3), steps=60)
    assert [len(B) for B in found] == [1, 3]
    for B in found:
        torch.testing.assert_close(B @ B.T, torch.eye(len(B)), atol=1e-5, rtol=0)
        assert cosines(B, truth).min() > 0.9
    assert all(p.grad is None for p in truth.bridge.parameters())
    again = fit(lists, true_targets(N_ITEMS), (1,), steps=60)[0]
    torch.testing.assert_close(again, found[0], msg="each is fitted by itself, by one seed")


def test_transformer_lens_finds_the_same(planted):
    truth, lists = planted
    pairs = make_pairs(lists)
    rows = (pairs.donors[Donor.OTHER_ITEMS][:, None] - lists.stream).square().sum(-1).argmin(1)
    tokens, end = lists.prompts.tokens, lists.prompts.positions["end"]
    width = tokens.shape[1]

    def task_logits(both):  # the place of the end and the candidates travel beside the tokens
        at = torch.arange(len(both))
        return truth.bridge(both[:, :width])[at, both[:, width]].gather(1, both[:, width + 1 :])

    inputs = torch.cat([tokens, end[:, None], lists.candidates], 1)
    found = fit_das(
        truth.bridge, "blocks.2.hook_resid_pre", inputs, inputs[rows], pairs.j, task_logits, rank=3,
        base_positions=end, source_positions=end[rows], epochs=2, batch_size=16,
    )  # fmt: skip
    assert cosines(found.basis.T, truth).min() > 0.8


def cosines(B, truth):
    """Of the principal angles between a learned subspace and the planted channel."""
    return torch.linalg.svdvals(B @ truth.channel.T.to(B))


def test_items_without_meaning_are_drawn_once_and_are_neither_index():
    table = drawn_targets(5, 0)
    assert (table == drawn_targets(5, 0)).all() and (table != drawn_targets(5, 1)).any()
    i, j = (~torch.eye(5).bool()).nonzero().T
    assert (table[i, j] != i).all() and (table[i, j] != j).all() and table.min() == 0 and table.max() == 4


def test_an_untrained_copy_has_other_weights_of_the_same_sizes(planted, checkpoints):
    for bridge in (planted[0].bridge, load_model(checkpoints["llama"])):
        before = bridge.W_U.detach().clone()
        copy = untrained_copy(bridge, 0)
        assert copy.W_U.shape == before.shape and not torch.allclose(copy.W_U, before)
        torch.testing.assert_close(copy.W_U, untrained_copy(bridge, 0).W_U)
        torch.testing.assert_close(bridge.W_U, before)


def test_learned_rows_beat_their_controls():
    table = frame(interchange.rows_of(Context(PLANTED, quick=True), 6)).set_index(["measure", "subspace", "k"])
    table = table[table["donor"] == Donor.OTHER_ITEMS]
    for k in (3, 10):
        learned, arbitrary, untrained = (
            table.loc[(MOVED, kind, k)]
            for kind in (Subspace.LEARNED, Subspace.LEARNED_ARBITRARY, Subspace.LEARNED_UNTRAINED)
        )
        most = max(arbitrary["effect"], untrained["effect"])
        assert learned["low"] > most  # by how much, rounding decides: the steps are few
    assert table.loc[(LOGIT_DIFFERENCE, Subspace.LEARNED, 10), "of_ten"] == 1
