from itertools import combinations

import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.dealt import drawn_test, mean_over_draws, names_within_layers
from talking_heads_utils.experiments.icl import clusters
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import (
    bootstrap_mean,
    bootstrap_ratio,
    percentile_among,
    share,
    share_change,
    share_in_clusters,
    spearman,
    summary,
)


def test_draws_deal_names_within_layers_and_p_is_the_share_that_reaches():
    names = names_within_layers(2_000, 3, 5, seed=1)
    assert names.shape == (2_000, 3, 5) and (names.sort(-1).values == torch.arange(5)).all()
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    heads = [Head(0, 1), Head(0, 4), Head(2, 3)]
    drawn = mean_over_draws(values, heads, names)
    first = [values[head.layer, names[0, head.layer, head.head]].item() for head in heads]
    assert drawn[0].item() == pytest.approx(sum(first) / 3)
    means = [
        (values[0, a] + values[0, b] + values[2, c]).item() / 3 for a, b in combinations(range(5), 2) for c in range(5)
    ]
    test = drawn_test(means[7], drawn)
    assert test.p == pytest.approx(sum(m >= means[7] - 1e-6 for m in means) / 50, abs=0.04) and test.n == 2_000
    assert test.null_mean == pytest.approx(sum(means) / 50, abs=0.01)
    assert drawn_test(1.0, torch.zeros(99)).p == 0.01 and drawn_test(0.0, torch.zeros(99)).p == 1
    with pytest.raises(OptionError, match="99 draws"):
        drawn_test(1.0, torch.zeros(98))


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    draws = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) + 3
    covered = sum(i.low <= 3 <= i.high for i in (bootstrap_mean(d, n_boot=400) for d in draws))
    assert 0.88 < covered / 200 < 0.99
    with pytest.raises(OptionError):
        bootstrap_mean(torch.ones(1))


def first(k, n):
    """n answers, the first k of them right."""
    return torch.arange(n) < k


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_that_of_newcombes_table(k, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert share(first(k, n)) == pytest.approx((k / n, low, high, n), abs=5e-5)


def test_the_interval_of_a_change_is_that_of_textbooks():
    """Approval of a prime minister: Agresti, Categorical Data Analysis, 10.1.1, -0.059 to -0.021 there, where it is
    Wald's: with 1600 pairs a half in each cell moves no third digit. And 40 pairs of 160 lost, 20 gained, by hand from
    Agresti and Min 2005."""
    counts = torch.tensor([794, 150, 86, 570])
    before, after = (torch.tensor(kind).bool().repeat_interleave(counts) for kind in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert share_change(after, before) == pytest.approx((-0.04, -0.059, -0.021, 1600), abs=5e-4)
    before, after = first(40, 160), (torch.arange(160) >= 40) & (torch.arange(160) < 60)
    reach = 1.959964 * (40 + 20 + 1 - 20**2 / 162) ** 0.5 / 162
    assert share_change(after, before) == pytest.approx(
        (-20 / 160, -20 / 162 - reach, -20 / 162 + reach, 160), abs=1e-6
    )


def test_an_interval_of_hits_has_a_width_where_nothing_varies():
    right, wrong = first(64, 64), first(0, 64)
    assert share(right) == pytest.approx((1, 1 / (1 + 1.959964**2 / 64), 1, 64)) and share(right).high == 1
    assert share(wrong) == pytest.approx((0, 0, 1 - share(right).low, 64)) and share(wrong).low == 0
    assert share_change(right, right) == pytest.approx((0, -1.959964 / 66, 1.959964 / 66, 64))
    assert share_change(right, wrong) == pytest.approx((1, (64 - 1.959964 * (65 - 64**2 / 66) ** 0.5) / 66, 1, 64))
    assert share_change(first(2, 2), first(0, 2)).high == 1 and share_change(first(0, 2), first(2, 2)).low == -1
    draws = torch.stack([right, wrong]).double().mean(0)
    assert share_change(right, right.double()) == share_change(right, right), "a share per prompt may be a hit"
    assert share_change(right, draws)[:2] == pytest.approx((0.5, (32 - 1.959964 * (17 - 32**2 / 66) ** 0.5) / 66))
    with pytest.raises(OptionError):
        share_change(right, right[:9])
    for found in (share, lambda hits: share_change(hits, hits)):
        with pytest.raises(OptionError):
            found(torch.ones(1).bool())


@pytest.mark.parametrize(("n", "p"), [(40, 0.9), (64, 0.99), (250, 0.5)])
def test_intervals_of_hits_cover_the_truth_about_as_often_as_they_say(n, p):
    """A change: a quarter of the answers is drawn anew, right with probability 0.5 or as before."""
    generator = torch.Generator().manual_seed(0)
    before, anew = (torch.rand(1500, n, generator=generator) < p for _ in range(2))
    assert sum(i.low <= p <= i.high for i in map(share, before)) / 1500 >= 0.92
    redrawn, even = torch.rand(1500, n, generator=generator) < 0.25, torch.rand(1500, n, generator=generator) < 0.5
    for other, change in ((anew, 0.0), (even, 0.25 * (0.5 - p))):
        found = map(share_change, torch.where(redrawn, other, before), before)
        assert sum(i.low <= change <= i.high for i in found) / 1500 >= 0.92


def test_hits_that_come_in_clusters_tell_less():
    kinds = torch.arange(14).repeat_interleave(14)
    alike = (torch.arange(14) < 6).repeat_interleave(14)
    found, few = share_in_clusters(alike, kinds), share(torch.arange(14) < 6)
    assert found.mean == few.mean and found.n == 196
    assert found.high - found.low == pytest.approx(few.high - few.low, rel=0.05), "as many as there are clusters"
    mixed = alike[torch.randperm(196, generator=torch.Generator().manual_seed(0))]
    assert share_in_clusters(mixed, kinds).low == pytest.approx(share(mixed).low, abs=0.03)
    assert share_in_clusters(torch.ones(196, dtype=torch.bool), kinds) == share(torch.ones(196, dtype=torch.bool))
    with pytest.raises(OptionError):
        share_in_clusters(alike, torch.zeros(196))


def test_intervals_in_clusters_cover():
    """30 functions of 7 prompts each, whose own shares vary; the truth is their mean over all functions."""
    generator, kinds = torch.Generator().manual_seed(3), torch.arange(30).repeat_interleave(7)
    covered, plain = 0, 0
    for _ in range(400):
        own = torch.rand(30, generator=generator)
        hits = torch.rand(30, 7, generator=generator) < own[:, None]
        found, independent = share_in_clusters(hits.flatten(), kinds), share(hits.flatten())
        covered += found.low <= 0.5 <= found.high
        plain += independent.low <= 0.5 <= independent.high
    assert covered / 400 >= 0.92 > 0.85 > plain / 400


def test_percentiles_share_ties_and_leave_out_what_is_undefined():
    found = percentile_among(torch.tensor([1.0, 3.0, 2.0, 2.0, torch.nan])).tolist()
    assert found == pytest.approx([0, 100, 50, 50, torch.nan], nan_ok=True)


def test_rank_correlation_is_that_of_ranks():
    """Without ties 1 - 6 sum d^2 / (k^3 - k); a monotone map changes nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(9, generator=generator), torch.rand(3, 9, generator=generator)
    apart = x.argsort().argsort() - y.argsort(1).argsort(1)
    torch.testing.assert_close(spearman(x, y), 1 - apart.square().sum(1).double() / 120)
    torch.testing.assert_close(spearman(x.exp(), y**3), spearman(x, y))
    assert spearman(torch.tensor([1.0, 1, 2, 3]), torch.tensor([[0.5, 0.5, 7, 8]])).item() == pytest.approx(1)


def test_a_summary_has_each_columns_own_interval():
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    found, hits, before = summary(values, n_boot=500), values > 0, values.flip(1) > 0
    for k in range(3):
        ends = (found.mean[k].item(), found.low[k].item(), found.high[k].item(), found.n)
        assert ends == pytest.approx(bootstrap_mean(values[:, k], n_boot=500))
        by_hits, change = summary(hits, hits=True), summary(hits, before, hits=True)
        assert by_hits.low[k].item() == share(hits[:, k]).low and by_hits.mean[k].item() == share(hits[:, k]).mean
        assert change.high[k].item() == share_change(hits[:, k], before[:, k]).high
    torch.testing.assert_close(summary(values, values - 1).low, torch.ones(3).double())
    assert summary(values[:1]).low.isnan().all() and summary(values[:1]).n == 1


def test_a_ratio_of_sums_by_hand_and_its_interval_covers():
    one = bootstrap_ratio(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert (one.mean, one.n) == (1.0, 2) and one.low == 0.5 and one.high == 1.5
    two = bootstrap_ratio(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0], [2.0, 5.0]]))
    assert two.mean == 0.5, "the mean of two ratios"
    generator, covered = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        below = torch.rand(60, generator=generator) + 0.1
        found = bootstrap_ratio(below * (0.3 + torch.randn(60, generator=generator)), below, n_boot=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_prompts_of_one_cluster_count_as_one() -> None:
    """Each of 40 values repeated five times: as wide as the interval of the 40 alone, in one cluster each."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    alone = clusters.mean_in_clusters(values, torch.arange(40))
    repeated = clusters.mean_in_clusters(values.repeat_interleave(5), torch.arange(40).repeat_interleave(5))
    torch.testing.assert_close(torch.stack(alone), torch.stack(repeated))
    assert alone.high - alone.low == pytest.approx(float(3.92 * values.std() / 40**0.5), rel=0.15)


def test_over_tasks_the_spread_of_tasks_counts() -> None:
    """Six tasks whose prompts hardly vary: the interval is that of six values; with equal tasks that of prompts."""
    generator = torch.Generator().manual_seed(1)
    of_tasks = torch.tensor([0.0, 1, 2, 3, 4, 5]).double()
    noise = [0.01 * torch.randn(50, generator=generator).double() for _ in of_tasks]

    def over_tasks(values):
        drawn = [clusters.drawn_means(v, torch.arange(50), seed=i) for i, v in enumerate(values)]
        return clusters.ends(clusters.drawn_over_tasks(drawn))

    apart, alike = over_tasks([m + e for m, e in zip(of_tasks, noise)]), over_tasks(noise)
    assert apart.value == pytest.approx(2.5, abs=0.01)
    usual = 3.92 * of_tasks.std(correction=0) / 6**0.5
    assert apart.high - apart.low == pytest.approx(float(usual), rel=0.15)
    assert alike.high - alike.low < 0.01


def test_an_interval_needs_two() -> None:
    with pytest.raises(OptionError, match="two clusters"):
        clusters.drawn_weights(torch.zeros(5, dtype=torch.long))
    with pytest.raises(OptionError, match="two tasks"):
        clusters.drawn_over_tasks([torch.zeros(3, 1)])
