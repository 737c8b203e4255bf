"""Steering that is told nothing and the correction of logits: fits by a second route, then known answers."""

import numpy as np
import pytest
import torch

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional import steering
from talking_heads_utils.experiments.positional.correction import PRIOR, corrected, fit
from talking_heads_utils.experiments.positional.ends import listed
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.steering import Method, choose, found_there, scored, search
from talking_heads_utils.experiments.positional.subspace import K, Subspace, chosen
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import CONTROL, PLANTED
from talking_heads_utils.planted.model import INHIBITION, plant

SETTINGS = torch.tensor([[-1.0], [0.0], [1.0]])


def biased(n=600, n_items=5, liking=3.0, seed=0):
    """Logits that favour the answer, and the first item besides."""
    index = torch.arange(n) % n_items
    logits = 1.5 * torch.randn(n, n_items, generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(n), index] += 2
    logits[:, 0] += liking
    return logits, index


def test_constants_are_the_likeliest():
    from scipy.optimize import minimize

    logits, index = biased()

    def loss(values):
        constants = torch.tensor(values, requires_grad=True)
        given = torch.nn.functional.cross_entropy(logits.double() + constants, index, reduction="sum")
        total = given + PRIOR * constants.square().sum()
        total.backward()
        return total.item(), constants.grad.numpy()

    by_scipy = torch.from_numpy(minimize(loss, [0.0] * 5, jac=True, tol=1e-12).x)
    sets = torch.stack([logits, logits.flip(0), 1000 * logits])
    found = fit(sets, index)
    torch.testing.assert_close(found[0], by_scipy - by_scipy.mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(fit(logits, index), found[0], atol=1e-4, rtol=0)
    easy = 1000.0 * torch.nn.functional.one_hot(index)
    assert fit(easy, index).abs().max() < 1e-6 and found.isfinite().all(), "where all are answered nothing runs away"


def test_a_correction_helps_on_other_lists_where_an_index_is_preferred():
    (logits, index), (others, other_index) = biased(), biased(seed=1)
    constants = fit(logits, index)
    unbiased, _ = biased(liking=0.0, seed=1)
    before, after, fair = (
        (answer(of) == other_index).double().mean().item() for of in (others, corrected(others, constants), unbiased)
    )
    assert before + 0.15 < after == pytest.approx(fair, abs=0.03)


def test_choices_by_hand():
    """Two lists an index. The setting 1 answers index 0's lists alone, -1 index 1's and one of index 0's."""
    index = torch.tensor([0, 0, 1, 1])
    good, bad = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.zeros(4, 2)
    bad[torch.arange(4), 1 - index] = 1
    mixed, first = bad.clone(), bad.clone()
    mixed[1:], first[:2] = good[1:], good[:2]
    choice = choose(torch.stack([mixed, bad, first], 1), index, SETTINGS)
    assert choice.one == 0 and choice.told.tolist() == [2, 0] and choice.plain == 1
    found = choice.outcomes({0: mixed, 1: bad, 2: first}, index)
    assert [found[m].sum().item() for m in (Method.NONE, Method.ONE_SETTING, Method.TOLD_INDEX)] == [0, 3, 4]
    assert steering.best(torch.tensor([0.5, 0.5, 0.5]), SETTINGS) == 1, "of equals the smallest"
    assert steering.best(torch.tensor([0.5, 0.4, 0.6]), SETTINGS) == 2


def test_one_setting_undoes_a_shift_of_all_lists():
    """A planted model whose layer 1 adds a constant along a component: it prefers some indices, and one setting takes
    the constant out again. Constants by index cannot: the movers attend to one item alone, so logits tell no more."""
    truth = plant(noise=0.0)
    at = Context(PLANTED, quick=True, loaded=(truth.bridge, truth.tokenizer))
    of = at.kept(chosen)
    assert of.writers[0].of_head in truth.roles[INHIBITION]
    lists = [Lists(part, 6, n) for part, n in ((Part.SELECTION, 80), (Part.HELD_OUT, 100))]
    plain = listed(at, lists[0]).ends
    shift = 2 * (plain.stream @ of.directions[0]).std() * of.directions[0]
    with torch.no_grad():
        truth.bridge.blocks[1].attn.b_O.add_(shift)
    choosing, other = (listed(at, some) for some in lists)
    torch.testing.assert_close(choosing.ends.stream, plain.stream + shift, atol=1e-3, rtol=1e-3)
    found = search(choosing, of.directions[:K])
    here = {m: hit.double().mean().item() for m, hit in scored(found, other, slice(None), 20).items()}
    first, *others = found.choice.settings[found.choice.one].tolist()
    assert first < 0 and others == [0, 0]
    assert here[Method.NONE] < 0.7 < 0.95 < here[Method.ONE_SETTING] and here[Method.ORACLE] == 1
    assert here[Method.CORRECTION] < here[Method.ONE_SETTING] - 0.3
    assert here[Method.BOTH] >= here[Method.ONE_SETTING] - 0.02
    assert set(here) == set(Method) == set(found_there(found))


def test_what_is_told_nothing_gains_nothing_where_nothing_is_read():
    found = frame(steering.run(Context(CONTROL, quick=True)))
    key = ["n_items", "part", "method"]
    assert not found.duplicated([*key, "subspace"]).any()
    own = found[found["subspace"] == Subspace.CHOSEN].set_index(key).sort_index()
    told_nothing = [Method.ONE_SETTING, Method.SCALING, Method.CORRECTION, Method.BOTH]
    told_nothing = own.loc[(slice(None), slice(None), told_nothing), :]
    # rounding alone orders the answers there, and what it prefers differs by machine: no more than chance is right
    chance = 1 / told_nothing.index.get_level_values("n_items")
    assert (told_nothing["accuracy"] < chance + 3 * np.sqrt(chance * (1 - chance) / told_nothing["n"])).all()
    assert told_nothing["p"].mean() > 0.05
    for (n_items, part), cell in own.groupby(level=[0, 1]):
        assert set(cell.index.get_level_values("method")) | {Method.ORACLE} == set(Method)
        plain = cell.loc[(n_items, part, Method.NONE)]
        assert plain["gain"] == 0 == cell.loc[(n_items, part, Method.CORRECTION), "beyond"]
        same = cell["n"] == plain["n"]
        assert (cell["gain"][same] - 100 * (cell["accuracy"][same] - plain["accuracy"])).abs().max() < 1e-9
    matched = found[found["subspace"] == Subspace.MATCHED]
    assert sorted(matched["method"]) == [Method.ONE_SETTING, Method.BOTH] and (matched["n_draws"] == 20).all()
    assert (matched["n_items"] == found["n_items"].max()).all() and (matched["part"] == Part.HELD_OUT).all()
    assert own["p"].count() == 2 and (own["p"].dropna() >= 1 / 21).all()
