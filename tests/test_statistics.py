from itertools import combinations

import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Head
from talking_heads_utils.statistics import bootstrap_mean, exact_head_test, percentile_among


def test_the_exact_test_counts_every_choice():
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    heads = [Head(0, 1), Head(0, 4), Head(2, 3)]
    means = [
        (values[0, a] + values[0, b] + values[2, c]).item() / 3 for a, b in combinations(range(5), 2) for c in range(5)
    ]
    test = exact_head_test(values, heads)
    assert test.n == len(means) == 50
    assert test.p == pytest.approx(sum(m >= test.observed - 1e-6 for m in means) / 50)
    assert test.null_mean == pytest.approx(sum(means) / 50)


def test_the_largest_choice_has_the_smallest_p():
    assert exact_head_test(torch.eye(4), [Head(2, 2)]).p == 1 / 4
    assert exact_head_test(torch.zeros(2, 4), [Head(0, 0)]).p == 1


def test_a_head_without_a_value_is_in_no_choice():
    values = torch.tensor([[1.0, 2.0, torch.nan, 0.0]])
    assert exact_head_test(values, [Head(0, 1)])._asdict() == dict(observed=2.0, null_mean=1.0, p=1 / 3, n=3)
    with pytest.raises(OptionError, match="no value for L0H2"):
        exact_head_test(values, [Head(0, 2)])


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    draws = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) + 3
    covered = sum(i.low <= 3 <= i.high for i in (bootstrap_mean(d, n_boot=400) for d in draws))
    assert 0.88 < covered / 200 < 0.99
    with pytest.raises(OptionError, match="two values at least"):
        bootstrap_mean(torch.ones(1))


def test_percentiles_share_ties():
    assert percentile_among(torch.tensor([1.0, 3.0, 2.0, 2.0])).tolist() == pytest.approx([0, 100, 50, 50])


def test_undefined_values_have_no_percentile_and_count_for_none():
    found = percentile_among(torch.tensor([1.0, torch.nan, 3.0, 2.0]))
    assert found[[0, 2, 3]].tolist() == pytest.approx([0, 100, 50]) and found[1].isnan()
