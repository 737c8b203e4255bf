"""What a component says at ``end``: known answers on the planted model, and on made-up coefficients."""

import pytest
import torch

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import says
from talking_heads_utils.experiments.inhibition.prediction import coefficients_at_end, predicted_components
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.recording import record
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Component
from talking_heads_utils.planted.model import INHIBITION, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry


@pytest.fixture(scope="module")
def planted():
    return Context(PLANTED, quick=True)


@pytest.fixture(scope="module")
def drawn(planted):
    return says.versions(ioi.draw_ioi(planted.tokenizer, 120, 1))


def test_coefficients_are_those_of_a_recording(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [2])
    components = [Component(0, 1, 0), Component(1, 0, 1), Component(1, 0, 0)]
    found = coefficients_at_end(bridge, recording.weights, components, prompts)
    expected = recording.activations(range(2))
    for i, c in enumerate(components):
        torch.testing.assert_close(found[:, i], expected[:, c.layer, c.head, c.component], atol=2e-4, rtol=1e-4)


def test_the_planted_component_says_a_place(planted):
    rows = frame(says.run(planted))
    components = predicted_components(planted)
    truth = plant().components[INHIBITION]
    assert set(components) <= set(truth) and len({c.of_head for c in components}) == len(components) == 2
    shares = rows[rows["statistic"] == says.VERSION].groupby("feature")["value"].min()
    assert shares[says.NAME_ORDER] > 0.99
    on_lists = rows[(rows["task"] == laundry.TASK) & (rows["statistic"] == says.VARIANCE)]
    table = on_lists.pivot_table(index="feature", columns="split", values="value", aggfunc="min")
    assert table.loc[says.LIST_INDEX, says.ACROSS] > 0.9 > 0.5 > table.loc[says.ITEMS, says.ACROSS]
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert not rows.drop(columns="model").duplicated(["task", "component", "statistic", "feature", "split", "group",
                                                      "template"]).any()  # fmt: skip


@pytest.mark.parametrize("feature", [says.NAME_ORDER, says.WHICH_NAME, says.TEMPLATE, says.NO_DUPLICATE])
def test_what_made_up_coefficients_go_by_is_found(drawn, feature):
    """With as much noise as signal."""
    generator = torch.Generator().manual_seed(0)
    flat = [p for part in drawn for p in part]
    labels = {
        says.NAME_ORDER: [p.io_first for p in flat],
        says.WHICH_NAME: [p.s for p in flat],
        says.TEMPLATE: [p.template for p in flat],
        says.NO_DUPLICATE: [p.repeated == p.third for p in flat],
    }[feature]
    design = says.one_hot(labels)
    values = design @ torch.randn(design.shape[1], generator=generator).double()
    values = ((values - values.mean()) / values.std()).view(6, -1)
    values = values + torch.randn(values.shape, generator=generator)
    names = list(says.SaysRow.__dataclass_fields__)[3:]
    rows = [dict(zip(names, row)) for row in says.rows_of_ioi(values, drawn, 0, 3)]
    shares = {(r["feature"], r["split"]): r for r in rows if r["statistic"] == says.VARIANCE}
    own = shares.pop((feature, says.WITHIN))
    assert 0.2 < own["low"] < own["value"] < own["high"] < 0.65
    assert all(r["value"] < 0.1 for (name, split), r in shares.items() if name != feature or split == says.SHUFFLED)
    exact = {r["feature"]: r["value"] for r in rows if r["statistic"] == says.VERSION}
    assert sum(exact.values()) == pytest.approx(1)
    if feature in exact:
        assert exact[feature] == max(exact.values()) > 0.45
    means = {r["group"]: r for r in rows if r["statistic"] == says.GROUP_MEAN and not r["template"]}
    apart = abs(means[ioi.IO_FIRST]["value"] - means[ioi.S_FIRST]["value"])
    assert apart > 1 if feature == says.NAME_ORDER else apart < 0.3


def test_the_six_versions(drawn):
    plain, order, names, both, none, none_swapped = (part[0] for part in drawn)
    assert (plain.io, plain.s) == (order.io, order.s) == (names.s, names.io) and plain.io_first != order.io_first
    assert both == ioi.swap_names(order) and none.repeated == none_swapped.repeated == plain.third
    for part, first in ((plain, plain.io_first), (both, not plain.io_first)):
        assert part.io_first == first


def out_of_fold(values, labels, generator):
    error, base = says.out_of_fold(values, says.one_hot(labels.tolist()), torch.randperm(400, generator=generator) % 5)
    return 1 - (error.sum() / base.sum()).item()


@pytest.mark.parametrize("n_labels", [6, 64])
def test_no_feature_is_lost_by_a_penalty_that_suits_another(n_labels):
    """Few columns or many: of a third of the variance, of all of it, of noise."""
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(n_labels, (400,), generator=generator)
        signal = torch.randn(n_labels, generator=generator).double()[labels]
        noise = torch.randn(400, generator=generator)
        found.append(out_of_fold(signal / signal.std() * 0.5**0.5 + noise, labels, generator))
    assert 0.15 < sum(found) / 4 < 0.4
    assert out_of_fold(signal, labels, generator) > 0.99
    assert out_of_fold(noise, labels, generator) < 0.1
