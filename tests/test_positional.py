"""Chapter 2 where the answer is known: the planted channel holds list indices, and nothing else is decoded from it."""

import pytest
import torch

from talking_heads_utils.errors import LabelError, NotApplicable, OptionError, TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.positional import coordinates as co
from talking_heads_utils.experiments.positional import decoding, steering
from talking_heads_utils.experiments.positional.coordinates import Feature
from talking_heads_utils.experiments.positional.decoding import N_RANDOM, Split, Subspace, channel, points
from talking_heads_utils.experiments.positional.gains import GAINS, Strategy, gains
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import positional as figures
from talking_heads_utils.forward.steer import random_directions
from talking_heads_utils.planted.model import LIST, MOVER, plant
from talking_heads_utils.prompts.halves import halves, random_folds, wording_folds
from talking_heads_utils.stats import share, share_change


@pytest.fixture(scope="module")
def planted():
    return Context("planted")


def test_the_writers_span_the_planted_channel(planted):
    truth, at = plant(), planted.kept(channel)
    assert at.mover in truth.roles[MOVER]
    projected = at.directions @ truth.channel.T
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    assert torch.linalg.svdvals(at.directions)[-1] > 0.3, "three different directions"
    writers = {c for part in truth.components.values() for c in part}
    assert set(at.writers) <= writers and LIST in truth.components
    with pytest.raises(NotApplicable, match="Fewer than 500"):
        co.choose_writers(planted.scores, at.mover, planted.record(planted.lists(4, 40), [2]).directions, k=500)


def test_the_planted_subspace_indexes_the_list_not_the_items(planted):
    table = frame(decoding.decoding(planted, 5, 160)).set_index(["subspace", "feature", "split"]).sort_index()
    own = table.loc[(Subspace.COMPONENTS, Feature.LIST_INDEX, Split.PROMPTS), ["right", "low", "high", "n"]]
    assert tuple(own) == pytest.approx(share(torch.arange(80) < round(80 * own["right"]))), "decoded or not: a share"
    at, prompts = planted.kept(channel), halves(planted.lists(5, 160))[1]
    triples = random_directions(N_RANDOM, 3, at.directions.shape[1], planted.seed)
    values = points(planted.record(prompts, [at.mover.layer]), at.mover, triples)
    folds = wording_folds(prompts)
    each = [co.decode(v, prompts, Feature.LIST_INDEX, folds).double().mean().item() for v in values]
    row = table.loc[(Subspace.RANDOM, Feature.LIST_INDEX, Split.WORDINGS)]
    assert (row["smallest"], row["largest"]) == pytest.approx((min(each), max(each))), "one triple, not their mean"
    assert row["high"] < row["largest"], "prompts' noise of the mean says little of single triples"
    assert (table["shuffled"] - table["chance"]).abs().max() < 0.1, "shuffled indices are decoded by chance"
    for split in Split:
        right = table.xs(split, level="split")["right"]
        assert right[Subspace.COMPONENTS, Feature.LIST_INDEX] > 0.9 > 0.5 > right[Subspace.COMPONENTS, Feature.IDENTITY]
        assert right[Subspace.FITTED, Feature.LIST_INDEX] > 0.9
        assert right[Subspace.RANDOM, Feature.LIST_INDEX] < right[Subspace.COMPONENTS, Feature.LIST_INDEX]


def test_long_lists_crowd_in_the_planted_model(planted):
    table = frame(decoding.crowding(planted, [4, 14], 60)).set_index("n_items")
    assert table.loc[4, "accuracy"] > 0.9 > table.loc[14, "accuracy"] + 0.2
    assert table.loc[4, "apart"] > 2 * table.loc[14, "apart"] and (table["apart"] > table["apart_random"]).all()
    by_index = frame(decoding.by_list_index(planted, [4], 40))
    assert by_index["n"].sum() == 40 and len(by_index) == 4


def test_moving_the_point_moves_the_planted_movers(planted):
    values = steering.axis(planted, 4, 5)
    assert len(values) == 5 and values[2] == 0 and values[0] == -values[4] < 0
    attention = steering.traversal(planted, 4, values, 20).attention
    assert attention.shape == (5, 5, 5, 4)
    assert len(set(attention.argmax(-1).flatten().tolist())) == 4, "every item can be chosen by hand"
    assert attention[2, 2, 2].max() < 0.5, "untouched, the answer's index varies from prompt to prompt"


def test_steering_turns_answers_right_where_lists_crowd_but_not_by_one_setting(planted):
    rows = steering.steering_gains(planted, 12, steering.axis(planted, 12, 5), 80, n_random=2)
    of = {(row.draw, row.strategy): row for row in rows}
    assert len(of) == 3 * len(Strategy) and {row.n for row in rows} == {40}
    told = of[None, Strategy.TOLD_INDEX]
    assert told.low > 20 and told.gain > max(of[draw, Strategy.TOLD_INDEX].gain for draw in (0, 1)) + 10
    assert of[None, Strategy.NONE].gain == 0 and of[None, Strategy.ORACLE].accuracy >= told.accuracy
    assert abs(of[None, Strategy.ONE].gain) < 15, "what is told nothing gains little"


RIGHT = torch.tensor(
    [[1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
).bool()  # fmt: skip
SETTINGS = torch.tensor([[0.0], [1.0], [2.0]])
INDEX = torch.tensor([0, 1, 1, 0, 0, 1, 1, 0])


def test_gains_by_hand():
    selection = torch.arange(8) < 4
    found = gains(RIGHT, selection, INDEX, SETTINGS)
    one = found[Strategy.ONE]
    assert one.settings == [2] and one.accuracy.mean == 0, "chosen where it won, scored where it lost"
    assert found[Strategy.NONE].accuracy.mean == 0.5 and found[Strategy.ORACLE].accuracy.mean == 1
    told = found[Strategy.TOLD_INDEX]
    assert told.settings == [1, 2] and told.accuracy.mean == 0.5
    assert one.gain == share_change(torch.zeros(4).bool(), RIGHT[~selection, 0]) and one.gain.mean == -0.5
    assert found[Strategy.ORACLE].accuracy == share(torch.ones(4).bool())
    assert found[Strategy.NONE].gain == (0, 0, 0, 4), "against itself nothing can differ"
    assert [found[name].where_chosen for name in Strategy] == [0, 0.75, 0.75, 0.75], "a choice looks best there"
    even = gains(torch.ones(8, 3).bool(), selection, INDEX, SETTINGS)
    assert even[Strategy.ONE].settings == [0], "of equals the smallest"
    for bad in (torch.zeros(8).bool(), torch.ones(8).bool()):
        with pytest.raises(OptionError, match="both halves"):
            gains(RIGHT, bad, INDEX, SETTINGS)
    with pytest.raises(OptionError, match="zero setting once"):
        gains(RIGHT, selection, INDEX, SETTINGS + 1)


def test_what_is_called_a_gain_is_told_nothing_of_the_held_out_answers():
    """Other list indices on the held-out half change what is told them, and nothing that counts as a gain."""
    selection = torch.arange(8) < 4
    found = gains(RIGHT, selection, INDEX, SETTINGS)
    other = gains(RIGHT, selection, torch.where(selection, INDEX, 1 - INDEX), SETTINGS)
    assert all(found[name] == other[name] for name in GAINS)
    assert found[Strategy.TOLD_INDEX] != other[Strategy.TOLD_INDEX] and "told" in Strategy.TOLD_INDEX
    assert not {Strategy.TOLD_INDEX, Strategy.ORACLE} & set(GAINS)


@pytest.mark.parametrize("feature", [Feature.LIST_INDEX, Feature.IDENTITY])
def test_decoding_tells_list_index_from_identity(planted, feature):
    """Points made by hand: a vector per list index, or the sum of a vector per item named twice."""
    prompts, generator, folds = planted.lists(5, 200), torch.Generator().manual_seed(0), random_folds(200)
    (other,) = {Feature.LIST_INDEX, Feature.IDENTITY} - {feature}
    rows = co.hypotheses(prompts, feature)
    own = rows[torch.arange(200), co.index_of_answer(prompts)]
    values = own @ torch.randn(own.shape[1], 8, generator=generator, dtype=torch.float64)
    values += 0.01 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    assert co.decode(values, prompts, feature, folds).double().mean() > 0.9
    assert co.decode(values, prompts, other, folds).double().mean() < 0.5
    noise = torch.randn(200, 3, generator=generator)
    assert co.decode(noise, prompts, feature, folds).double().mean() < 0.35
    with pytest.raises(TaskError, match="Laundry List prompts"):
        co.hypotheses(planted.ioi(40), feature)


def test_hypotheses_that_tie_up_to_rounding_share_the_credit():
    distance = torch.tensor([[1.0, 1 + 1e-9, 3.0], [2.0, 1.0, 1 + 1e-3], [1e9, 1e9 + 1, 1e9]], dtype=torch.float64)
    for index, expected in enumerate([[1 / 2, 0, 1 / 3], [1 / 2, 1, 1 / 3], [0, 0, 1 / 3]]):
        assert co.credit(distance, torch.full((3,), index)).tolist() == pytest.approx(expected)


def by_hand(X, y, penalty, test):
    """Squared error on some rows of a ridge regression that was fitted to the others."""
    centre, mean = X[~test].mean(0), y[~test].mean(0)
    A, b = X[~test] - centre, y[~test] - mean
    fit = torch.linalg.solve(A.T @ A + penalty * torch.eye(A.shape[1]).double(), A.T @ b)
    return float(((y[test] - mean - (X[test] - centre) @ fit).square() / y.var(0)).sum())


def test_the_penalty_is_the_one_that_does_best_on_groups_left_out():
    generator = torch.Generator().manual_seed(0)
    X, noise = (torch.randn(60, k, generator=generator, dtype=torch.float64) for k in (40, 3))
    y, groups = X[:, :3] + 3 * noise, torch.arange(60) % 4
    errors = [sum(by_hand(X, y, p, groups == g) for g in range(4)) for p in co.PENALTIES]
    chosen = co.choose_penalty(X, y, groups)
    assert chosen == co.PENALTIES[min(range(len(errors)), key=errors.__getitem__)]
    assert co.choose_penalty(X[:, :3], X[:, :3], groups) == co.PENALTIES[0] < chosen, "without noise the smallest"
    fit = co.ridge(X, y, chosen[None])[0]
    torch.testing.assert_close(fit, torch.linalg.solve(X.T @ X + chosen * torch.eye(40).double(), X.T @ y))


@pytest.mark.parametrize("noise", [0.2, 1.0, 4.0])
def test_few_columns_and_many_each_get_a_penalty_that_predicts_new_prompts(planted, noise):
    """At a realistic ratio of signal to noise: one penalty of 1 for both predicts many columns worse."""
    prompts, test, worse = planted.lists(5, 400), torch.arange(400) >= 200, {}
    for feature in (Feature.LIST_INDEX, Feature.IDENTITY):
        rows = co.hypotheses(prompts, feature)
        X, generator = rows[torch.arange(400), co.index_of_answer(prompts)], torch.Generator().manual_seed(0)
        signal = X @ torch.randn(X.shape[1], 3, generator=generator, dtype=torch.float64)
        y = signal + noise * signal.std(0) * torch.randn(signal.shape, generator=generator, dtype=torch.float64)
        errors = {float(p): by_hand(X, y, p, test) for p in co.PENALTIES}
        least = min(errors.values())
        chosen = float(co.choose_penalty(X[~test], y[~test], torch.arange(200) % 5))
        assert errors[chosen] < 1.03 * least
        worse[feature] = by_hand(X, y, 1.0, test) / least
    assert worse[Feature.IDENTITY] > 1.03 * worse[Feature.LIST_INDEX] or noise < 4


def test_discriminants_and_separability_by_hand():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(300) % 3
    noise = torch.randn(300, 6, generator=generator)
    noise[:, 0] *= 20  # loud, and of no use
    centres = torch.zeros(3, 6)
    centres[1, 1], centres[2, 2] = 8.0, 8.0
    values = noise + centres[groups]
    found = co.discriminant_directions(values, groups, k=2)
    assert found[:, [1, 2]].norm(dim=1).min() > 0.95 and found[:, 0].abs().max() < 0.1
    assert co.separability(values[:, 1:3], groups) > 6 > 1 > co.separability(noise[:, 3:5], groups)
    sets = random_directions(4, 3, 10)
    torch.testing.assert_close(sets @ sets.mT, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)


def one_wording(run):
    prompts = run.lists(6, 40).where(wording=run.lists(6, 40).info["wording"][0])
    return co.decode(torch.randn(len(prompts), 3), prompts, Feature.LIST_INDEX, wording_folds(prompts))


BAD_CALLS = {
    "an axis of one value": (lambda run: steering.axis(run, 6, 1), "odd number of values"),
    "an axis without zero": (lambda run: steering.axis(run, 6, 4), "odd number of values"),
    "a grid without zero": (lambda run: steering.reach(run, 6, [-1.0, 1.0], 40), "zero setting once"),
    "gains without a control": (lambda run: steering.steering_gains(run, 6, [-1, 0, 1], 40, n_random=0), "one set"),
    "reach without a control": (lambda run: steering.reach(run, 6, [-1.0, 0.0, 1.0], 40, n_random=0), "one set"),
    "no number of components": (lambda run: decoding.dimensions(run, 6, ()), "each 1 or more"),
    "zero components": (lambda run: decoding.dimensions(run, 6, (0, 3)), "each 1 or more"),
    "one wording": (one_wording, "two wordings"),
    "half a row": (lambda run: run.lists(6, 40).select([0.5]), "whole numbers in one row"),
    "a word for a row": (lambda run: run.lists(6, 40).select(["a"]), "not by \\['a'\\]"),
    "rows of rows": (lambda run: run.lists(6, 40).select([[0, 1]]), "whole numbers in one row"),
    "one number": (lambda run: run.lists(6, 40).select(3), "whole numbers in one row"),
    "a slice of words": (lambda run: run.lists(6, 40).select(slice("a", None)), "a mask, rows or a slice"),
}


@pytest.mark.parametrize(("call", "said"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_what_cannot_be_asked_is_said_in_one_line(call, said, planted):
    with pytest.raises((OptionError, TaskError, LabelError), match=said):
        call(planted)


def test_three_components_are_enough_and_random_directions_are_not(planted):
    table = (
        frame(decoding.dimensions(planted, 5, [1, 3], 120))
        .set_index(["subspace", "feature", "k"])
        .sort_index()["right"]
    )
    own = table[Subspace.COMPONENTS, Feature.LIST_INDEX]
    assert own[3] > 0.9 > own[1] + 0.1 and table[Subspace.RANDOM, Feature.LIST_INDEX, 3] < 0.5


def test_points_are_drawn_where_they_are(planted):
    cloud = frame([row for n in (4, 5) for row in decoding.cloud(planted, n, 20)])
    figure = figures.points_figure(cloud, ["a", "b", "c"])
    assert list(figure.data[0].x) == cloud.loc[cloud["n_items"] == 4, "x"].round(3).tolist()
    assert [step.label for step in figure.layout.sliders[0].steps] == ["4", "5"]
    assert [frame.data[0].marker.cmax for frame in figure.frames] == [3.5, 4.5], "a colour for each list index"
    assert [trace.marker.showscale for trace in figure.data] == [True, None], "a key to list indices"


def test_a_traversal_shows_who_has_half_and_its_sliders_do_not_reset_each_other():
    values = [-1.0, 0.0, 1.0]
    attention, longer = torch.rand(3, 3, 3, 4).numpy(), torch.rand(3, 3, 3, 6).numpy()
    attention[0, 0, 1], longer[1, 2, 2], longer[..., 5] = (0.1, 0.2, 0.6, 0.1), (0.1, 0.2, 0.1, 0.7, 0.2, 0.0), 0.0
    longer[0, 0, 2] = 0.4
    panel = {4: steering.Traversal(attention, values), 6: steering.Traversal(longer, values)}
    figure = figures.traversal_figure({"m": panel, "planted": panel}, dict.fromkeys(("m", "planted"), "abc"))
    assert [trace.visible for trace in figure.data] == [True, False] * 2
    assert figure.data[0].z[0][0] == 2 and figure.data[0].customdata[0][0] == "most attention to list index 2: 0.60"
    assert figure.data[3].zmax == 5.5 and len({colour for _, colour in figure.data[3].colorscale}) == 6 + 1
    lengths, along = figure.layout.sliders
    assert lengths.steps[1].args[0] == {"visible": [False, True] * 2}, "a slider that sets nothing else"
    moved, at_rest = along.steps[2].args[0], along.steps[along.active].args[0]
    assert set(moved) == {"z", "text", "customdata"} and at_rest["z"][1][0] == list(figure.data[1].z[0])
    assert moved["z"][1][1][2] == moved["z"][3][1][2] == 3
    assert moved["z"][1][0][0] == figures.NOBODY, "empty below a half"
    every = steering.Traversal(torch.eye(9)[torch.arange(27) % 9].reshape(3, 3, 3, 9).numpy(), values)
    opened = figures.traversal_figure({"m": {**panel, 9: every}}, {"m": "abc"})
    assert [trace.visible for trace in opened.data] == [False, True, False], "of three the one between"
    for other in ({4: panel[4]}, {4: panel[4], 6: steering.Traversal(longer, [0.0])}):
        with pytest.raises(ValueError, match="sliders move them all"):
            figures.traversal_figure({"a": panel, "b": other}, dict.fromkeys("ab", "abc"))


def test_crowding_sets_accuracy_above_the_map_of_list_indices(planted):
    table, by_index = (frame(of(planted, [4, 6], 40)) for of in (decoding.crowding, decoding.by_list_index))
    drawn = figures.crowding_figure(table, by_index).data
    assert list(drawn[0].y) == table["accuracy"].round(3).tolist() and drawn[3].yaxis == "y2"
    assert [row[0] for row in drawn[3].z[:4]] == pytest.approx(by_index["accuracy"][:4].round(3).tolist())
    assert drawn[3].z[5][0] is None, "lists of four have no index 5"
