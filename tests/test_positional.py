"""Chapter 2 where the answer is known: the planted channel holds places, and nothing else is decoded from it."""

import pandas as pd
import pytest
import torch

from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.experiments.positional import coordinates as co
from talking_heads_utils.experiments.positional import study
from talking_heads_utils.experiments.positional.gains import NONE, ONE, ORACLE, PER_PLACE, STRATEGIES, Gain, gains
from talking_heads_utils.figures import positional as figures
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.planted.model import LIST, MOVER
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts.halves import halves, random_folds, wording_folds
from talking_heads_utils.stats import Interval, exact_head_test, share, share_change
from talking_heads_utils.steer import random_directions


@pytest.fixture(scope="module")
def planted():
    return study.channel("planted")


def test_the_writers_span_the_planted_channel(planted):
    from talking_heads_utils.planted.model import plant

    truth = plant()
    assert planted.mover in truth.roles[MOVER]
    projected = planted.directions @ truth.channel.T
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    assert torch.linalg.svdvals(planted.directions)[-1] > 0.3, "three different directions"
    writers = {c for part in truth.components.values() for c in part}
    assert set(planted.writers) <= writers and LIST in truth.components


def test_the_planted_subspace_indexes_places_not_items(planted):
    table = study.decoding_table(planted, 5, 160).set_index(["subspace", "carries", "split"])
    k = round(80 * table.loc[(study.COMPONENTS, co.PLACE, "within wordings"), "right"])
    own = table.loc[(study.COMPONENTS, co.PLACE, "within wordings"), ["right", "low", "high", "n"]]
    assert tuple(own) == pytest.approx(share(torch.arange(80) < k)), "decoded or not: a share"
    recording = planted.record(halves(planted.lists(5, 160))[1])
    prompts, folds = recording.prompts, wording_folds(recording.prompts)
    triples = random_directions(study.N_RANDOM_TRIPLES, 3, planted.directions.shape[1], planted.seed)
    places = [co.points(recording, planted.mover.layer, triple) for triple in triples]
    each = [co.decode(values, prompts, co.PLACE, folds).double().mean().item() for values in places]
    row = table.loc[(study.RANDOM, co.PLACE, "across wordings")]
    assert (row["smallest"], row["largest"]) == pytest.approx((min(each), max(each))), "one triple, not their mean"
    assert row["high"] < row["largest"], "prompts' noise of the mean says little of single triples"
    table = table["right"]
    for split in ("within wordings", "across wordings"):
        assert table[study.COMPONENTS, co.PLACE, split] > 0.9
        assert table[study.COMPONENTS, co.IDENTITY, split] < 0.5
        assert table[study.BEST, co.PLACE, split] > 0.9
        assert table[study.RANDOM, co.PLACE, split] < table[study.COMPONENTS, co.PLACE, split]


def test_long_lists_crowd_in_the_planted_model(planted):
    table = study.crowding_table(planted, [4, 14], 60).set_index("n_items")
    assert table.loc[4, "accuracy"] > 0.9 > table.loc[14, "accuracy"] + 0.2
    assert table.loc[4, "apart"] > 2 * table.loc[14, "apart"] and (table["apart"] > table[study.AT_RANDOM]).all()
    by_place = study.accuracy_by_place(planted, [4], 40)
    assert by_place["n"].sum() == 40 and len(by_place) == 4


def test_moving_the_point_moves_the_planted_movers(planted):
    values = study.axis(planted, 4, 5)
    assert len(values) == 5 and values[2] == 0 and values[0] == -values[4] < 0
    attention = study.traversal(planted, 4, values, 20)
    assert attention.shape == (5, 5, 5, 4)
    assert len(set(attention.argmax(-1).flatten().tolist())) == 4, "every place can be chosen by hand"
    assert attention[2, 2, 2].max() < 0.5, "untouched, the answer's place varies from prompt to prompt"


def test_steering_raises_accuracy_where_places_crowd(planted):
    ours, random = study.steering_gains(planted, 12, study.axis(planted, 12, 5), 80, n_random=2)
    assert ours[PER_PLACE].gain.low > 0.2, "one setting per place is an answer given by hand"
    assert ours[PER_PLACE].gain.mean > max(r[PER_PLACE].gain.mean for r in random) + 0.1
    assert ours[NONE].gain.mean == 0 and ours[ORACLE].accuracy.mean >= ours[PER_PLACE].accuracy.mean
    table = study.gains_table({"planted, 12 items": (ours, random)})
    assert table["strategy"].tolist() == list(STRATEGIES) and set(table["n"]) == {40}


def test_gains_by_hand():
    settings = torch.tensor([[0.0], [1.0], [2.0]])
    right = torch.tensor(
        [[1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    ).bool()
    selection = torch.arange(8) < 4
    places = torch.tensor([0, 1, 1, 0, 0, 1, 1, 0])
    found = gains(right, selection, places, settings)
    assert found[ONE].settings == [2] and found[ONE].accuracy.mean == 0, "chosen where it won, scored where it lost"
    assert found[NONE].accuracy.mean == 0.5 and found[ORACLE].accuracy.mean == 1
    assert found[PER_PLACE].settings == [1, 2] and found[PER_PLACE].accuracy.mean == 0.5
    assert found[ONE].gain == share_change(torch.zeros(4).bool(), right[~selection, 0]) and found[ONE].gain.mean == -0.5
    assert found[ORACLE].accuracy == share(torch.ones(4).bool()) and found[ORACLE].accuracy.low < 0.6
    assert found[NONE].gain == (0, 0, 0, 4), "against itself nothing can differ"
    assert [found[name].where_chosen for name in STRATEGIES] == [0, 0.75, 0.75, 0.75], "a choice looks best there"
    even = gains(torch.ones(8, 3).bool(), selection, places, settings)
    assert even[ONE].settings == [0], "of equals the smallest"
    for bad in (torch.zeros(8).bool(), torch.ones(8).bool()):
        with pytest.raises(OptionError, match="both halves"):
            gains(right, bad, places, settings)
    with pytest.raises(OptionError, match="zero setting once"):
        gains(right, selection, places, settings + 1)


def test_decoding_tells_place_from_identity(planted):
    """Points made by hand: a vector per place, or the sum of a vector per item named twice."""
    prompts = planted.lists(5, 200)
    generator = torch.Generator().manual_seed(0)
    folds = random_folds(200)
    for carried, other in ((co.PLACE, co.IDENTITY), (co.IDENTITY, co.PLACE)):
        rows = co.hypotheses(prompts, carried)
        own = rows[torch.arange(200), torch.as_tensor(prompts.info["index"])]
        values = own @ torch.randn(own.shape[1], 8, generator=generator, dtype=torch.float64)
        values += 0.01 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        assert co.decode(values, prompts, carried, folds).double().mean() > 0.9
        assert co.decode(values, prompts, other, folds).double().mean() < 0.5
    noise = torch.randn(200, 3, generator=generator)
    assert co.decode(noise, prompts, co.PLACE, folds).double().mean() < 0.35
    with pytest.raises(TaskError, match="Laundry List prompts"):
        co.hypotheses(ioi.build_ioi(planted.tokenizer, 4), co.PLACE)


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


def test_too_few_writers_is_an_error(planted):
    recording = planted.record(planted.lists(4, 40))
    scores = study.compute_scores(recording.weights, "Q")
    with pytest.raises(OptionError, match="Fewer than 500"):
        co.choose_writers(scores, planted.mover, recording.directions, k=500)
    assert co.choose_writers(scores, planted.mover, recording.directions, k=1)[0] == planted.writers[0]
    assert isinstance(planted.writers[0], Component) and planted.heads[0] == planted.writers[0].of_head


BAD_CALLS = {
    "an axis of one value": (lambda c: study.axis(c, 6, 1), "odd number of values"),
    "an axis without zero": (lambda c: study.axis(c, 6, 4), "odd number of values"),
    "a grid without zero": (lambda c: study.reach_table(c, 6, [-1.0, 1.0], 40), "zero setting once"),
    "gains without a control": (lambda c: study.steering_gains(c, 6, [-1.0, 0.0, 1.0], 40, n_random=0), "one set"),
    "reach without a control": (lambda c: study.reach_table(c, 6, [-1.0, 0.0, 1.0], 40, n_random=0), "one set"),
    "no number of components": (lambda c: study.dimension_table(c, 6, ()), "each 1 or more"),
    "zero components": (lambda c: study.dimension_table(c, 6, (0, 3)), "each 1 or more"),
    "one wording": (lambda c: decode_one_wording(c.lists(6, 40)), "two wordings"),
    "half a row": (lambda c: c.lists(6, 40).select([0.5]), "whole numbers in one row"),
    "a word for a row": (lambda c: c.lists(6, 40).select(["a"]), "not by \\['a'\\]"),
    "rows of rows": (lambda c: c.lists(6, 40).select([[0, 1]]), "whole numbers in one row"),
    "one number": (lambda c: c.lists(6, 40).select(3), "whole numbers in one row"),
    "a slice of words": (lambda c: c.lists(6, 40).select(slice("a", None)), "a mask, rows or a slice"),
    "a text for a prompt": (lambda c: ioi.build_ioi(c.tokenizer, prompts=["a"]), "not 'a'"),
    "no such layer": (lambda c: exact_head_test(torch.zeros(2, 4), [Head(2, 0)]), "no L2H0"),
    "no such head": (lambda c: exact_head_test(torch.zeros(2, 4), [Head(0, 0), Head(1, 4)]), "no L1H4"),
    "no head": (lambda c: exact_head_test(torch.zeros(2, 4), []), "each once, not none"),
    "a head twice": (lambda c: exact_head_test(torch.zeros(2, 4), [Head(0, 0)] * 2), "each once"),
}


def decode_one_wording(prompts):
    prompts = prompts.where(wording=prompts.info["wording"][0])
    return co.decode(torch.randn(len(prompts), 3), prompts, co.PLACE, wording_folds(prompts))


@pytest.mark.parametrize(("call", "said"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_what_cannot_be_asked_is_said_in_one_line(call, said, planted):
    with pytest.raises((OptionError, TaskError, LabelError), match=said):
        call(planted)


def test_prompts_can_be_taken_backwards(planted):
    prompts = planted.lists(4, 6)
    assert prompts.select(slice(None, None, -1)).texts == prompts.texts[::-1]


def test_figures_hold_what_they_are_given(planted):
    cloud = study.cloud(planted, 4, 20)
    figure = figures.points_figure({4: cloud, 5: study.cloud(planted, 5, 20)}, ["a", "b", "c"])
    assert len(figure.frames) == 2 and list(figure.data[0].x) == cloud["x"].round(3).tolist()
    assert [step.label for step in figure.layout.sliders[0].steps] == ["4", "5"]
    assert [frame.data[0].marker.cmax for frame in figure.frames] == [3.5, 4.5], "a colour for each place"
    assert [trace.marker.showscale for trace in figure.data] == [True, None], "a key to places"
    values = [-1.0, 0.0, 1.0]
    attention = torch.rand(3, 3, 3, 4).numpy()
    longer = torch.rand(3, 3, 3, 6).numpy()
    attention[0, 0, 1], longer[1, 2, 2], longer[..., 5] = (0.1, 0.2, 0.6, 0.1), (0.1, 0.2, 0.1, 0.7, 0.2, 0.0), 0.0
    longer[0, 0, 2] = 0.4
    panel = {4: figures.Traversal(attention, values), 6: figures.Traversal(longer, values)}
    figure = figures.traversal_figure({"m": panel, "planted": panel}, dict.fromkeys(("m", "planted"), "abc"))
    assert [trace.visible for trace in figure.data] == [True, False] * 2
    assert figure.data[0].z[0][0] == 2 and figure.data[0].customdata[0][0] == "most attention to place 2: 0.60"
    assert figure.data[3].zmax == 5.5 and len({colour for _, colour in figure.data[3].colorscale}) == 6 + 1
    lengths, along = figure.layout.sliders
    assert lengths.steps[1].args[0] == {"visible": [False, True] * 2}, "a slider that sets nothing else"
    moved = along.steps[2].args[0]
    assert set(moved) == {"z", "text", "customdata"} and along.steps[along.active].args[0]["z"][1][0] == list(
        figure.data[1].z[0]
    )
    assert moved["z"][1][1][2] == moved["z"][3][1][2] == 3 and moved["z"][1][0][0] == figures.NONE, "empty below a half"
    assert lengths.active == 0, "of two lengths the first"
    every = figures.Traversal(torch.eye(9)[torch.arange(27) % 9].reshape(3, 3, 3, 9).numpy(), values)
    opened = figures.traversal_figure({"m": {**panel, 9: every}}, {"m": "abc"})
    assert [trace.visible for trace in opened.data] == [False, True, False], "of three the one between"
    assert opened.layout.sliders[0].active == 1
    for other in ({4: panel[4]}, {4: panel[4], 6: figures.Traversal(longer, [0.0])}):
        with pytest.raises(ValueError, match="sliders move them all"):
            figures.traversal_figure({"a": panel, "b": other}, dict.fromkeys("ab", "abc"))
    row = dict(model="m", right=0.5, low=0.4, high=0.7, chance=0.25)
    decoded = pd.DataFrame([row | dict(subspace=subspace, carries=carries)
                            for subspace in figures.SHORT for carries in figures.CARRY_COLOURS])  # fmt: skip
    changes = ((0.3, 0.1, 0.4), (-0.1, -0.2, 0.0))
    won, lost = (Gain(Interval(0.5, 0.4, 0.6, 9), Interval(*of, 9), [], 0.0) for of in changes)
    shown = figures.finding_figure(decoded, {"m/x, 4 items": ({PER_PLACE: won}, [{PER_PLACE: lost}, {PER_PLACE: won}])})
    assert [list(trace.y) for trace in shown.data] == [[0.5]] * 4 + [[30], [10]]
    assert shown.data[4].error_y.array[0] == 10 and shown.data[4].error_y.arrayminus[0] == 20
    assert shown.data[0].name == "place, three components" and shown.data[4].x[0] == "m/<br>x<br>4 items"
    table = pd.DataFrame([dict(model="m", n_items=4, accuracy=0.5, low=0.4, high=0.6, place=0.3, identity=0.2)])
    by_place = pd.DataFrame([dict(model="m", n_items=4, place=0, accuracy=0.5)])
    assert figures.crowding_figure(table, by_place).data[3].z[0][0] == 0.5


def test_three_components_are_enough_for_places_and_random_directions_are_not(planted):
    table = study.dimension_table(planted, 5, [1, 3], 120).set_index("k")
    assert table.loc[3, co.PLACE] > 0.9 > table.loc[1, co.PLACE] + 0.1
    assert table.loc[3, f"{co.PLACE} by random directions"] < 0.5 and (table["n"] == 60).all()


def test_accuracy_by_length_is_that_of_each_length_alone(planted):
    from talking_heads_utils.experiments.gate import accuracy_by_length
    from talking_heads_utils.metrics import accuracy

    table = accuracy_by_length(planted.bridge, planted.tokenizer, [4, 12], n_prompts=20).set_index("n_items")
    for n_items, row in table.iterrows():
        prompts = planted.lists(n_items, 20)
        found = accuracy(planted.bridge, prompts)
        assert found == share(torch.arange(20) < round(20 * found.mean)) == tuple(row[["accuracy", "low", "high", "n"]])
        assert torch.equal(row["starts"], prompts.positions["item_0 first"])
