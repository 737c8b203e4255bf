"""Decoding where the answer is known: points made by hand, and the planted model's, which hold list indices alone."""

from __future__ import annotations

import pytest
import torch

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.dealt import random_folds
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional import decoding
from talking_heads_utils.experiments.positional.decoding import Feature, Split
from talking_heads_utils.experiments.positional.subspace import K, Subspace, chosen
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.metrics import answer_logits, correct

pytestmark = pytest.mark.usefixtures("few_draws")


def made_lists(n: int = 200, n_items: int = 5, n_words: int = 30):
    generator = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(n_words, generator=generator)[:n_items] for _ in range(n)])
    return items, torch.arange(n) % n_items


@pytest.mark.parametrize("feature", Feature)
def test_decoding_tells_list_index_from_identity(feature):
    """Points made by hand: a vector per list index, or the sum of a vector per item named twice."""
    (items, index), generator, folds = made_lists(), torch.Generator().manual_seed(0), random_folds(200, 0)
    (other,) = set(Feature) - {feature}
    rows = decoding.hypotheses(items, feature)
    own = rows[torch.arange(200), index]
    values = own @ torch.randn(own.shape[1], 8, generator=generator, dtype=torch.float64)
    values += 0.01 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 3, generator=generator)
    right = decoding.decode([values, noise], rows, index, folds)
    assert right[0].mean() > 0.9 and right[1].mean() < 0.35
    assert decoding.decode([values], decoding.hypotheses(items, other), index, folds).mean() < 0.5
    torch.testing.assert_close(right, torch.cat([decoding.decode([v], rows, index, folds) for v in (values, noise)]))
    with pytest.raises(TaskError, match="two wordings"):
        decoding.decode([values], rows, index, torch.zeros(200))


def test_hypotheses_that_tie_up_to_rounding_share_the_credit():
    distance = torch.tensor([[1.0, 1 + 1e-9, 3.0], [2.0, 1.0, 1 + 1e-3], [1e9, 1e9 + 1, 1e9]], dtype=torch.float64)
    for index, expected in enumerate([[1 / 2, 0, 1 / 3], [1 / 2, 1, 1 / 3], [0, 0, 1 / 3]]):
        assert decoding.credit(distance, torch.full((3,), index)).tolist() == pytest.approx(expected)


def by_hand(X, y, penalty, test):
    """Squared error on some rows of a ridge regression that was fitted to the others."""
    centre, mean = X[~test].mean(0), y[~test].mean(0)
    A, b = X[~test] - centre, y[~test] - mean
    fit = torch.linalg.solve(A.T @ A + penalty * torch.eye(A.shape[1]).double(), A.T @ b)
    return float(((y[test] - mean - (X[test] - centre) @ fit).square() / y.var(0)).sum())


def test_each_set_gets_the_penalty_that_does_best_on_groups_left_out():
    generator = torch.Generator().manual_seed(0)
    X, noise = (torch.randn(60, k, generator=generator, dtype=torch.float64) for k in (40, 3))
    y, groups, of_set = X[:, :3] + 3 * noise, torch.arange(60) % 4, torch.tensor([0, 0, 0, 1, 1, 1])
    errors = [sum(by_hand(X, y, p, groups == g) for g in range(4)) for p in decoding.PENALTIES]
    noisy, clean = decoding.choose_penalty(X, torch.cat([y, X[:, :3]], 1), groups, of_set)
    assert noisy == decoding.PENALTIES[min(range(len(errors)), key=errors.__getitem__)]
    assert clean == decoding.PENALTIES[0] < noisy, "without noise the smallest"
    fits = decoding.ridge(X, y, torch.stack([noisy, noisy, clean]))
    by_penalty = [torch.linalg.solve(X.T @ X + p * torch.eye(40).double(), X.T @ y) for p in (noisy, clean)]
    torch.testing.assert_close(fits, torch.cat([by_penalty[0][:, :2], by_penalty[1][:, 2:]], 1))


def test_the_planted_subspace_indexes_the_list_not_the_items(planted):
    table = frame(decoding.run(planted)).set_index(["subspace", "k", "feature", "split"]).sort_index()
    assert set(table["n_items"]) == {4}
    own = table.loc[(Subspace.CHOSEN, K)]
    for split in Split:
        index, item = (own.loc[(feature, split)] for feature in (Feature.LIST_INDEX, Feature.IDENTITY))
        assert index["right"] > 0.9 > 0.6 > item["right"] and index["p"] == 0.01 and index["n_draws"] == 9
        assert index["low"] <= index["right"] <= index["high"] and abs(index["shuffled"] - 0.25) < 0.15
        matched = table.loc[(Subspace.MATCHED, K, Feature.LIST_INDEX, split)]
        assert matched["right"] == pytest.approx(0.25), "where nothing differs all hypotheses tie"
    assert own.loc[(Feature.IDENTITY, Split.OBJECTS), "right"] == 0.25, "of items that no fit has seen nothing is told"
    assert table.loc[(Subspace.CHOSEN, 1, Feature.LIST_INDEX, Split.LISTS), "right"] < 0.8, "one dimension is too few"
    assert table["p"].notna().sum() == len(Split) * len(Feature)


def test_wordings_and_objects_are_left_out_whole(planted):
    found = decoding.pools(planted, 4)
    assert [len(pool.folds.unique()) for pool in found.values()] == [5, 5, 2]
    objects = found[Split.OBJECTS]
    seen, new = (set(objects.items[objects.folds == fold].flatten().tolist()) for fold in (0, 1))
    assert not seen & new
    assert len(found[Split.WORDINGS].folds) == len(found[Split.LISTS].folds) + 20


def test_points_are_coordinates_of_the_stream_in_units_of_the_selection_lists(planted):
    of_four = [row for row in decoding.run_points(planted) if row.n_items == 4]
    at, stream = planted.kept(chosen), {}
    for part, n in ((Part.HELD_OUT, 20), (Part.SELECTION, 20)):
        prompts = planted.kept(Lists(part, 4, n))
        _, cache = planted.bridge.run_with_cache(prompts.tokens)
        stream[part] = cache["blocks.2.hook_resid_pre"][torch.arange(n), prompts.positions["end"]] @ at.directions[:K].T
    expected = (stream[Part.HELD_OUT] - stream[Part.SELECTION].mean(0)) / stream[Part.SELECTION].std(0)
    found = torch.tensor([[row.x, row.y, row.z] for row in of_four])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    prompts = planted.kept(Lists(Part.HELD_OUT, 4, 20))
    assert [row.right for row in of_four] == correct(answer_logits(planted.bridge, prompts), prompts).tolist()
    assert [row.list_index for row in of_four] == list(prompts.info["index"])
