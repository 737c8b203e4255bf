"""The planted model does what its formula says; measures of weights find what was planted and nothing else."""

import pytest
import torch

from talking_heads_utils import metrics
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Head
from talking_heads_utils.planted.model import (
    DECOY,
    DUPLICATE,
    INHIBITION,
    LIST,
    MOVER,
    NOISE,
    place_codes,
    plant,
    predicted_accuracy,
)
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.bridge import head_weights_from_bridge


def accuracy(planted, prompts):
    return metrics.accuracy(planted.bridge, prompts).mean


@pytest.fixture(scope="module")
def quiet():
    return plant(noise=0.0)


@pytest.fixture(scope="module")
def noisy():
    return plant(noise=0.15)


@pytest.fixture(scope="module")
def control():
    return plant(noise=0.15, channel=False)


@pytest.mark.parametrize("rank", [2, 3, 8])
def test_without_noise_it_solves_both_tasks(rank):
    planted = plant(rank=rank, noise=0.0)
    assert accuracy(planted, ioi.build_ioi(planted.tokenizer, 60)) == 1
    for n_items in (3, 20):
        assert accuracy(planted, laundry.build_laundry(planted.tokenizer, n_items, 40)) == 1


def test_its_accuracy_falls_as_the_crowding_of_the_places_predicts(seed=1):
    planted = plant(seed=seed)
    for n_items in (4, 8, 12):
        prompts = laundry.build_laundry(planted.tokenizer, n_items, 200, seed)
        predicted = predicted_accuracy(planted, n_items, prompts.positions["item_0 first"], n_draws=20_000)
        error = (predicted * (1 - predicted) / 200) ** 0.5
        assert abs(accuracy(planted, prompts) - predicted) < 4 * error, n_items
    assert accuracy(planted, ioi.build_ioi(planted.tokenizer, 100, seed)) > 0.95


def test_the_control_guesses(control):
    for n in (3, 7):
        guessed = accuracy(control, laundry.build_laundry(control.tokenizer, n, 100))
        assert abs(guessed - predicted_accuracy(control, n, torch.tensor([6]))) < 4 * (1 / n / 100) ** 0.5
    assert 0.3 < accuracy(control, ioi.build_ioi(control.tokenizer, 100)) < 0.7


def test_heads_attend_as_their_roles_say(quiet):
    prompts = ioi.build_ioi(quiet.tokenizer, 40)
    with torch.no_grad():
        _, cache = quiet.bridge.run_with_cache(prompts.tokens)

    def attention(role, source, dest="end"):
        src, dst, rows = prompts.positions[source], prompts.positions[dest], torch.arange(len(prompts))
        patterns = ((cache[f"blocks.{h.layer}.attn.hook_pattern"], h.head) for h in quiet.roles[role])
        return min(pattern[rows, head, dst, src].min().item() for pattern, head in patterns)

    assert attention(DUPLICATE, "S1", "S2") > 0.99 and attention(INHIBITION, "S2") > 0.99
    assert attention(MOVER, "IO") > 0.99
    third = ioi.build_ioi(quiet.tokenizer, 40, counterfactual="third name")
    assert accuracy(quiet, third) < 1, "with no name named twice there is nothing to inhibit"


def test_weights_alone_find_the_channel_and_nothing_in_the_control(noisy, control):
    scores, blind = (compute_scores(head_weights_from_bridge(p.bridge), "Q") for p in (noisy, control))
    for mover in noisy.roles[MOVER]:
        found = scores.table(mover, "Q").head(4 * 3)
        writers = {str(h) for role in (INHIBITION, LIST, NOISE) for h in noisy.roles[role]}
        assert set(found["writer"].str.split(".").str[0]) == writers and found["z"].min() > 5
        for role in (INHIBITION, LIST, NOISE, DECOY):
            for head in (h for h in control.roles[role] if h.layer < 2):
                assert blind.pair(head, mover, "Q").nan_to_num().max() < 1e-5, "nobody reads it"
        assert scores.pair(Head(0, 0), mover, "Q").nan_to_num()[3:].max() < 0.5


def test_the_truth_it_returns_is_that_of_its_weights(noisy, quiet, control):
    weights = head_weights_from_bridge(noisy.bridge, dtype=torch.float64)
    directions, S = write_directions(weights)
    projector = noisy.channel.double().T @ noisy.channel.double()
    for role, components in noisy.components.items():
        assert {c.of_head for c in components} == set(noisy.roles[role])
        for c in components:
            v = directions[c.layer, c.head, c.component]
            torch.testing.assert_close(v @ projector, v, atol=1e-5, rtol=0)
        assert {c.component for c in components} == {0, 1, 2}
        assert S[1, components[0].head, 3] < 1e-5 * S[1, components[0].head, 0], "rank 3 and no more"
    assert set(noisy.components) == {INHIBITION, LIST, NOISE} and set(quiet.components) == {INHIBITION, LIST}
    assert not control.components and not control.has_channel
    assert torch.allclose(S[1, 0, :3], 0.5 * torch.tensor([1.0, 0.8, 0.65], dtype=torch.float64), atol=1e-5)
    heads = [head for group in noisy.roles.values() for head in group]
    assert len(heads) == len(set(heads)) == 3 * 6


def test_place_codes_are_unit_vectors_that_differ_along_a_list():
    for rank in (2, 3, 4, 6, 8):
        P = place_codes(rank, 128)
        torch.testing.assert_close(P.norm(dim=1), torch.ones(128, dtype=torch.float64))
        items = P[5:45:2]
        assert (torch.cdist(items, items) + torch.eye(20)).min() > 0.05
    for rank in (1, 5, 2.5, "3", None):
        with pytest.raises(OptionError):
            place_codes(rank, 8)
