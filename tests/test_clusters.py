"""Intervals over clusters of prompts and over tasks."""

from __future__ import annotations

import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.clusters import (
    drawn_means,
    drawn_over_tasks,
    drawn_weights,
    ends,
    mean_in_clusters,
)


def test_prompts_of_one_cluster_count_as_one() -> None:
    """Each of 40 values repeated five times: as wide as the interval of the 40 alone, in one cluster each."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    alone = mean_in_clusters(values, torch.arange(40))
    repeated = mean_in_clusters(values.repeat_interleave(5), torch.arange(40).repeat_interleave(5))
    torch.testing.assert_close(torch.stack(alone), torch.stack(repeated))
    assert alone.high - alone.low == pytest.approx(float(3.92 * values.std() / 40**0.5), rel=0.15)


def test_over_tasks_the_spread_of_tasks_counts() -> None:
    """Six tasks whose prompts hardly vary: the interval is that of six values; with equal tasks that of prompts."""
    generator = torch.Generator().manual_seed(1)
    of_tasks = torch.tensor([0.0, 1, 2, 3, 4, 5]).double()
    noise = [0.01 * torch.randn(50, generator=generator).double() for _ in of_tasks]
    apart = ends(drawn_over_tasks([drawn_means(m + e, torch.arange(50), seed=i)
                                   for i, (m, e) in enumerate(zip(of_tasks, noise))]))  # fmt: skip
    alike = ends(drawn_over_tasks([drawn_means(e, torch.arange(50), seed=i) for i, e in enumerate(noise)]))
    assert apart.value == pytest.approx(2.5, abs=0.01)
    usual = 3.92 * of_tasks.std(correction=0) / 6**0.5
    assert apart.high - apart.low == pytest.approx(float(usual), rel=0.15)
    assert alike.high - alike.low < 0.01


def test_an_interval_needs_two() -> None:
    with pytest.raises(OptionError, match="two clusters"):
        drawn_weights(torch.zeros(5, dtype=torch.long))
    with pytest.raises(OptionError, match="two tasks"):
        drawn_over_tasks([torch.zeros(3, 1)])
