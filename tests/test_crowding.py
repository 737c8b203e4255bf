"""Crowding and order: statistics by second routes, then planted models whose answer is known."""

from itertools import combinations

import pytest
import torch
from conftest import run_with

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import crowding, order
from talking_heads_utils.experiments.positional.conditional import (
    PRIOR,
    conditional_slope,
    dealt_over_errors,
    dealt_within_index,
)
from talking_heads_utils.experiments.positional.crowding import Cloud, Spans, enough, margins
from talking_heads_utils.experiments.positional.subspace import K, Subspace, chosen
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import CONTROL, PLANTED
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.sets import item_positions

pytestmark = pytest.mark.usefixtures("few_draws")


def drawn(n, n_strata, slope, seed=0):
    generator = torch.Generator().manual_seed(seed)
    strata = torch.randint(n_strata, (n,), generator=generator)
    x = torch.randn(n, generator=generator).double() + strata
    return x, torch.rand(n, generator=generator) < torch.sigmoid(slope * x - 1 + strata % 2), strata


def test_the_slope_within_large_strata_is_that_of_a_regression_with_dummies():
    from sklearn.linear_model import LogisticRegression

    x, right, strata = drawn(2000, 3, 0.7)
    dummies = torch.cat([x[:, None], torch.nn.functional.one_hot(strata)], 1).numpy()
    model = LogisticRegression(C=float("inf"), fit_intercept=False, max_iter=1000, tol=1e-8).fit(dummies, right.numpy())
    found = conditional_slope(x, right, strata)
    assert found.value.item() == pytest.approx(model.coef_[0, 0], rel=0.01)
    p = torch.from_numpy(model.predict_proba(dummies)[:, 1])
    within = torch.stack([(w * (x[s] - (w * x[s]).sum() / w.sum()) ** 2).sum() for s, w in (
        (strata == i, (p * (1 - p))[strata == i]) for i in range(3))])  # fmt: skip
    assert found.error.item() == pytest.approx(within.sum().rsqrt().item(), rel=0.01)


def test_the_slope_within_small_strata_is_the_likeliest_given_how_many_are_right():
    x, right, strata = drawn(24, 4, 1.5, seed=1)

    def gain(beta):
        total = -PRIOR * beta**2
        for i in range(4):
            own, hits = x[strata == i], right[strata == i]
            ways = [beta * own[list(way)].sum() for way in combinations(range(len(own)), int(hits.sum()))]
            total = total + beta * own[hits].sum() - torch.stack(ways).logsumexp(0)
        return total

    both = torch.stack([x, x.flip(0)])
    found = conditional_slope(both, right, strata)
    assert found.value[0].item() == pytest.approx(conditional_slope(x, right, strata).value.item(), rel=1e-6)
    at, step = found.value[0], 0.01
    assert gain(at) > max(gain(at - step), gain(at + step))
    curvature = (2 * gain(at) - gain(at - step) - gain(at + step)) / step**2
    assert found.error[0].item() == pytest.approx(curvature.rsqrt().item(), rel=1e-3)


def test_wrong_answers_are_dealt_anew_and_never_right():
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(4, (40,), generator=generator)
    given = (answers + torch.randint(1, 4, (40,), generator=generator)) % 4
    over, within = dealt_over_errors(answers, given), dealt_within_index(answers, given)
    for dealt in (over, within):
        assert not (dealt == answers).any() and (dealt != given).any(1).all()
        torch.testing.assert_close(dealt.sort(1).values, given.sort().values.expand(999, -1))
    for i in range(4):
        own = within[:, answers == i].sort(1).values
        torch.testing.assert_close(own, given[answers == i].sort().values.expand(999, -1))
    assert (over[:, answers == 0].sort(1).values != given[answers == 0].sort().values).any()
    few = dealt_over_errors(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))  # two dealings, as likely
    one, other = ((few == torch.tensor(dealt)).all(1) for dealt in ([1, 2, 0], [2, 0, 1]))
    assert 375 < one.sum() < 625 and (one | other).all()


def test_margins_and_quarters_by_hand():
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    points = torch.tensor([[-2.0], [0.0], [2.0], [8.0], [10.0], [12.0]])  # variance within: 16 / 4
    at = margins(Cloud.of(points, index).distances(torch.tensor([[1.0], [5.0], [10.0]])), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(at, torch.tensor([(9 - 1) / 2, 0.0, 5.0]).double())
    index = torch.arange(16) % 2
    quarters = crowding.quarters_within(torch.arange(16.0) + 100 * index, index)
    assert quarters.tolist() == [0, 0] * 2 + [1, 1] * 2 + [2, 2] * 2 + [3, 3] * 2


@pytest.fixture(autouse=True)
def two_lengths(monkeypatch):
    monkeypatch.setattr(crowding, "LENGTHS", (4, 8))


def test_a_scaled_cloud_is_that_of_plain_hooks(planted):
    of, at = planted.kept(chosen), enough(planted, Part.HELD_OUT, 6, 300).ends
    fitted = enough(planted, Part.SELECTION, 6, 300).ends
    spans = Spans.of(torch.cat([of.directions[None, :K], of.matched[:2]]), fitted.stream)
    found = spans.logits(at, [0.0, 1.0, 2.0], slice(3, 9))
    rows, end = torch.arange(30), at.prompts.positions["end"]
    _, candidates = item_positions(at.prompts)
    middle, energy = fitted.stream.mean(0), None
    for t, directions in enumerate([of.directions[:K], *of.matched[:2]]):
        onto = torch.linalg.pinv(directions) @ directions
        own = ((fitted.stream - middle) @ onto).square().sum(1).mean()
        energy = own if energy is None else energy
        longer = min((energy / own).sqrt().item(), crowding.MOST)
        for s, scale in enumerate((0.0, 1.0, 2.0)):

            def scaled(value, onto=onto, amount=(scale - 1) * longer):
                value[rows, end] += amount * (value[rows, end] - middle) @ onto

            logits, _ = run_with(planted.bridge, at.prompts, [(f"blocks.{of.layer}.hook_resid_pre", scaled)])
            logits = logits.gather(1, candidates)
            torch.testing.assert_close(found[:, t, s], logits[3:9], atol=2e-3, rtol=0)
    assert (found[:, 0, 0] - found[:, 0, 1]).abs().max() > 1 > 0.01 > (found[:, 1, 1] - found[:, 0, 1]).abs().max()


def test_too_few_lists_of_an_index(planted):
    with pytest.raises(TaskError, match="4 of 20 lists have their answer at index 0; it takes 5"):
        enough(planted, Part.HELD_OUT, 5, 20)


def test_errors_lie_where_the_planted_codes_crowd(planted):
    found = frame(crowding.run_margins(planted))
    found = found[found["n_items"] == 8].set_index("statistic")
    slope, nearest = found.loc[crowding.SLOPE], found.loc[crowding.NEAREST]
    assert slope["p"] <= 0.05 and slope["value"] > 1 and slope["n"] == 100
    assert nearest["p"] <= 0.05 and nearest["low"] > 0
    quarters = found.loc[crowding.ACCURACY].sort_values("quarter")
    assert quarters["value"].iloc[0] < quarters["value"].iloc[3] - 0.3 and quarters["n"].sum() == 100
    assert found.loc[crowding.NEIGHBOURS, "p"] > 0.5, "neighbours in the list lie far apart in the code"


def test_wider_clouds_help_against_noise_that_comes_after_them_and_more_in_long_lists():
    """A weak channel without noise in it, and logits that like some words more than others."""
    truth = plant(strength=10.0, noise=0.0)
    bias = truth.bridge.unembed.b_U
    bias += 2 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    c = Context(PLANTED, quick=True, loaded=(truth.bridge, truth.tokenizer))
    found = frame(crowding.run_scales(c))
    found = found.set_index(["subspace", "n_items", "scale"]).sort_index()
    own = found.loc[Subspace.CHOSEN]
    assert own.loc[(8, 3.0), "change_low"] > 0 and own.loc[(8, 3.0), "p"] <= 0.05
    assert own.loc[(8, 3.0), "change"] > own.loc[(4, 3.0), "change"] + 5
    assert own.loc[(8, 0.5), "change_high"] < 0 and own.loc[(8, 0.5), "p"] <= 0.05
    assert own.loc[(8, 0.0), "accuracy"] < 0.3 and own.loc[(8, 1.0), "change"] == 0
    assert (found.loc[Subspace.MATCHED]["change_high"] < 5).all()


def test_noise_in_the_planted_channel_is_scaled_with_the_signal(planted):
    """So scaling about nothing changes no answer, and about the mean only as the mean itself prefers some indices."""
    of, at = planted.kept(chosen), enough(planted, Part.HELD_OUT, 8, 1000).ends
    spans = Spans.of(of.directions[None, :K], enough(planted, Part.SELECTION, 8, 800).ends.stream)
    about_zero = spans._replace(centres=torch.zeros_like(spans.centres)).logits(at, (1.0, 3.0))[:, 0]
    right = at.right(about_zero)
    assert right[:, 0].double().mean() < 0.9 and (right[:, 0] != right[:, 1]).double().mean() < 0.03
    about_mean = at.right(spans.logits(at, (1.0, 3.0))[:, 0])
    assert (about_mean[:, 0] != about_mean[:, 1]).double().mean() > 0.05


def test_scaling_what_nobody_reads_changes_nothing():
    """Attention ties there but for rounding, so answers are by chance."""
    control = Context(CONTROL, quick=True)
    own = frame(crowding.run_scales(control))
    own = own[own["subspace"] == Subspace.CHOSEN]
    assert ((own["change_low"] <= 0) | (own["p"] > 0.05).fillna(True)).all()
    margin = frame(crowding.run_margins(control)).set_index("statistic")
    assert (margin.loc[crowding.SLOPE]["low"] < 0).all() and (margin.loc[crowding.SLOPE]["p"] > 0.05).all()


def test_order_beside_plain_strategies(planted):
    found = frame(order.run(planted)).set_index(["n_items", "order", "list_index"]).sort_index()
    assert (found["least_recent"] == 1).all(), "the answer alone is not named again"
    kept, shuffled = (found.xs(which, level="order") for which in ("kept", "shuffled"))
    last = kept.index.get_level_values("list_index") == kept.index.get_level_values("n_items") - 1
    assert (kept["next_in_order"] == last).all() and (kept["last_named"] == last).all()
    assert 0 < shuffled["next_in_order"].mean() < 0.5
    assert (kept["says_last_named"][last] == kept["accuracy"][last]).all()
    assert (found["range_p"] > 0.05).all() and (found["through_p"] > 0.05).all()
    assert found["n"].groupby("n_items").sum().unique().tolist() == [100]


def test_a_range_over_indices_is_seen_and_where_it_comes_from():
    index, generator = torch.arange(400) % 4, torch.Generator().manual_seed(0)
    even = torch.rand(400, generator=generator) < 0.6
    uneven = torch.rand(400, generator=generator) < torch.tensor([0.9, 0.6, 0.6, 0.3])[index]
    assert order.dealt_p(uneven, index) <= 0.01 and order.dealt_p(even, index) > 0.05
    assert order.narrowing(uneven, torch.stack([even, uneven], 1), index)[0] > 0.3
    assert order.narrowing(uneven, uneven, index) == 0
