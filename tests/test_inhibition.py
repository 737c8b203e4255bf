"""Chapter 1's measures where the answer is known: planted models, and small cases worked out by hand."""

import pytest
import torch
from conftest import random_prompts

from talking_heads_utils.effects import component_effects
from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.inhibition import concentration
from talking_heads_utils.experiments.inhibition.agreement import (
    _jackknife_error,
    _random_halves,
    _within_heads,
    agreement,
    composition_into,
    cross_validated,
    rotated,
)
from talking_heads_utils.experiments.inhibition.list_roles import (
    LEAST_SCORE,
    heads_with_a_role,
    roles_on_lists,
)
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.halves import check_enough, half_rows, halves
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.stats import spearman


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def lists(planted):
    return laundry.build_laundry(planted.tokenizer, 5, 80)


@pytest.fixture(scope="module")
def recording(planted, lists):
    return record(planted.bridge, lists, [2])


def test_roles_are_found_where_they_were_planted(planted, lists):
    found = roles_on_lists(planted.bridge, lists)
    assert set(found.movers) == set(planted.roles[MOVER]) and found.through_movers and found.share > 0.9
    assert set(found.inhibition) == set(planted.roles[INHIBITION])
    assert found.n_prompts == 40, "the selection half"


def test_without_a_channel_nothing_is_found():
    control = plant(channel=False)
    found = roles_on_lists(control.bridge, laundry.build_laundry(control.tokenizer, 5, 80))
    assert set(found.movers) == set(control.roles[MOVER]) and found.inhibition == []
    assert found.mover_scores.abs().max() < LEAST_SCORE, "they copy the answer, and every other item as much"
    assert found.patched.nan_to_num().abs().max() < 1e-3


def test_a_model_without_movers_says_so(checkpoints):
    prompts = random_prompts(n=80)
    assert not roles_on_lists(load_model(checkpoints["gpt2"]), prompts).through_movers


def test_a_role_needs_a_share_of_the_best():
    assert heads_with_a_role(torch.tensor([[1.0, 0.3], [0.2, -5.0]])) == [Head(0, 0), Head(0, 1)]
    assert heads_with_a_role(torch.tensor([[-1.0]])) == []
    assert heads_with_a_role(torch.tensor([[0.019, 0.006], [0.012, 0.004]]), least=0.01) == [Head(0, 0), Head(1, 0)]


def test_spearman_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = torch.stack([x**3, -x, torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([2.0, 1.0, 4.0, 3.0])])
    expected = torch.tensor([1.0, -1.0, 2 / 5**0.5, 0.6], dtype=torch.float64)
    torch.testing.assert_close(spearman(x, rows), expected)
    ties = torch.tensor([3.0, 1.0, 3.0, 3.0])
    assert spearman(ties, ties[None]).item() == pytest.approx(1)


def test_weights_and_activations_agree_on_what_was_planted(planted, recording):
    mover = planted.roles[MOVER][0]
    found = agreement(recording, component_effects(recording, mover), n_draws=50, n_rotations=2)
    assert 0.2 < found.low <= found.spearman <= found.high
    assert found.n_prompts == 80 and abs(found.rotated_mean) < found.spearman + 0.5 and found.permuted_max > 0
    table = compute_scores(recording.weights, "Q").block(mover, "Q")[0].score[..., mover.head]
    torch.testing.assert_close(composition_into(recording, mover), table, equal_nan=True, atol=1e-5, rtol=0)


def test_random_bases_stay_within_a_heads_span_and_have_unit_rows():
    """Heads of rank 3 among 8 components: random directions of the span, where reads and writes are unrelated."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.full((10, 20, 8, 24), torch.nan)
    directions[..., :3, :] = torch.linalg.qr(torch.randn(10, 20, 24, 3, generator=generator))[0].mT
    turned = rotated(directions, generator)
    kept = turned[..., :3, :]
    assert torch.equal(turned.isnan(), directions.isnan()) and not torch.allclose(kept, directions[..., :3, :])
    torch.testing.assert_close(kept @ kept.mT, torch.eye(3).expand(10, 20, 3, 3), atol=1e-5, rtol=0)
    spans = [part.mT @ part for part in (kept, directions[..., :3, :])]
    torch.testing.assert_close(*spans, atol=1e-5, rtol=0)
    read, written = torch.randn(2, 24, generator=generator)
    assert abs(spearman((kept @ read).abs().flatten(), (kept @ written).abs().flatten()[None]).item()) < 0.15


@pytest.fixture
def components():
    """Scores of 300 components and effects on 200 prompts, which vary more where the score is higher: pure noise."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(300, generator=generator, dtype=torch.float64)
    noise = scores * torch.randn(200, 300, generator=generator, dtype=torch.float64)
    return scores, noise - noise.mean(0), _random_halves(200, generator)


def test_prompts_noise_alone_is_no_agreement(components):
    scores, noise, halves = components
    plain = spearman(scores, noise[torch.arange(0, 200, 3)].mean(0).abs()[None]).item()
    drawn = noise * (2 * torch.randint(2, (200, 1), generator=torch.Generator().manual_seed(1)) - 1)
    assert plain > 0.4, "what the size of a plain mean would say"
    assert abs(cross_validated(scores, drawn, halves)) < 0.15


def test_effects_that_follow_the_scores_agree(components):
    scores, noise, halves = components
    assert cross_validated(scores, scores + 0.01 * noise, halves) > 0.99
    assert cross_validated(scores, -scores + 0.01 * noise, halves) > 0.99, "the size counts, not the sign"
    assert abs(cross_validated(scores, scores.flip(0) + 0.01 * noise, halves)) < 0.2


def test_the_jackknife_s_error_is_that_of_drawing_prompts_anew():
    generator, found, errors = torch.Generator().manual_seed(5), [], []
    scores = torch.rand(100, generator=generator, dtype=torch.float64)
    for _ in range(40):
        halves = _random_halves(100, generator)
        drawn = scores + 3 * torch.randn(100, 100, generator=generator, dtype=torch.float64)
        found.append(cross_validated(scores, drawn, halves))
        errors.append(_jackknife_error(scores, drawn, halves, generator))
    assert torch.tensor(errors).mean() == pytest.approx(torch.tensor(found).std().item(), rel=0.4)


def test_orders_within_heads_stay_within_them():
    keep = torch.ones(2, 3, 4, dtype=torch.bool)
    keep[0, 1, 2:] = False
    head = torch.arange(6).view(2, 3, 1).expand(2, 3, 4)[keep]
    order = _within_heads(keep, torch.Generator().manual_seed(0))
    assert torch.equal(head[order], head) and sorted(order.tolist()) == list(range(22)) != order.tolist()


def test_concentration_is_the_rank_that_was_planted(planted, lists):
    selection, held_out = (record(planted.bridge, half, [2]) for half in halves(lists))
    mover = planted.roles[MOVER][0]
    for writer in planted.roles[INHIBITION]:
        k, whole = concentration.needed_for(selection, held_out, mover, writer)
        assert 1 <= k <= 3 and whole < -0.2
        table = frame(concentration.concentration(selection, held_out, mover, writer, k_max=4, n_random=5))
        by = table.pivot(index="k", columns="what", values="mean")
        assert by.loc[3, concentration.TOP] == pytest.approx(by.loc[3, concentration.WHOLE], abs=1e-3)
        assert by.loc[3, concentration.RANDOM] > by.loc[3, concentration.TOP] + 0.1
        assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    decoy = Head(1, 4)
    assert concentration.effect_of_sets(held_out, mover, decoy, torch.ones(1, 223)).abs().max() < 1e-4
    assert concentration.stable_rank(torch.tensor([2.0, 2.0, 0.0])) == 2


def test_halves_share_nothing_and_are_balanced(planted, lists):
    selection, held_out = halves(lists)
    assert set(selection.info["half"]) == {laundry.SELECTION} and set(held_out.info["half"]) == {laundry.HELD_OUT}
    names = ioi.build_ioi(planted.tokenizer, 80)
    rows = half_rows(names)
    assert not set(rows[0]) & set(rows[1]) and len(rows[0]) == len(rows[1]) == 40
    for half in halves(names):
        assert half.info["order"].count(ioi.IO_FIRST) == 20


def test_bad_requests_are_one_clear_error_each(planted, lists):
    few = lists.select(list(range(10)))
    with pytest.raises(TaskError, match="20 prompts at least, not 10"):
        check_enough(few)
    with pytest.raises(TaskError, match="20 prompts at least"):
        roles_on_lists(planted.bridge, few)
