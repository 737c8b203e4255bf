"""Chapter 1's measures where the answer is known: planted models, and small cases worked out by hand."""

import pytest
import torch

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.inhibition.list_roles import (
    LEAST_SCORE,
    heads_with_a_role,
    roles_on_lists,
)
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Head
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.halves import check_enough, half_rows, halves


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


def test_a_role_needs_a_share_of_the_best():
    assert heads_with_a_role(torch.tensor([[1.0, 0.3], [0.2, -5.0]])) == [Head(0, 0), Head(0, 1)]
    assert heads_with_a_role(torch.tensor([[-1.0]])) == []
    assert heads_with_a_role(torch.tensor([[0.019, 0.006], [0.012, 0.004]]), least=0.01) == [Head(0, 0), Head(1, 0)]


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
