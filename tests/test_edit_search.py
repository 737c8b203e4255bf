"""The engine that scales many components at once against whole runs of the edited model, and the search on it."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from talking_heads_utils.editing import OV, QK, edit, weights_to_edit
from talking_heads_utils.edits.edits import new_edit
from talking_heads_utils.errors import EditError, LabelError, NotApplicable, OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import gains, removal, search
from talking_heads_utils.experiments.editing import upper as engine
from talking_heads_utils.experiments.editing.components import ELSEWHERE, Prompts, choose, random_like
from talking_heads_utils.experiments.editing.harm import harm_at_end, heads_moved, text_harm
from talking_heads_utils.experiments.editing.search import Search
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import editing as figures
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import INHIBITION, LIST, NOISE, plant
from talking_heads_utils.prompts.lists import wordings
from talking_heads_utils.weights.heads import Processing

SETS = {
    "all layers": (Component(0, 1, 0), Component(0, 1, 2), Component(1, 2, 0), Component(2, 0, 0)),
    "from the middle on": (Component(1, 2, 1), Component(1, 1, 0), Component(2, 3, 0)),
    "the last layer": (Component(2, 0, 0), Component(2, 1, 1)),
}
READ = {OV: SETS, QK: {"two layers": (Component(0, 0, 1), Component(2, 0, 0)), "the last layer": (Component(2, 0, 1),)}}
CASES = [(matrix, name) for matrix, sets in READ.items() for name in sets]
MOVER = Head(2, 1)


def whole_run(bridge, prompts, changes, mover=MOVER, matrix=OV):
    """Logits and a mover's attention from ``end`` of the edited model, everything run anew."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with edit(bridge, changes, matrix), torch.no_grad():
        logits, cache = bridge.run_with_cache(prompts.tokens)
    return logits[rows, end], cache[f"blocks.{mover.layer}.attn.hook_pattern"][rows, mover.head, end]


@pytest.mark.parametrize(("matrix", "name"), CASES, ids=" ".join)
def test_scales_on_kept_lower_layers_equal_whole_runs(case, matrix, name):
    bridge, prompts = case
    components = READ[matrix][name]
    if bridge.cfg.model_name == "planted":  # decoys in the last layer; its movers' QK is nonzero
        components = tuple(replace(c, head=2) if matrix == OV and c.layer == 2 else c for c in components)
    upper = engine.prepare(bridge, prompts, components, matrix)
    factors = 3 * torch.randn(4, len(components), generator=torch.Generator().manual_seed(0))
    mover = None if matrix == OV and name == "the last layer" else MOVER
    final, pattern = upper.run(factors, mover=mover)
    logits = upper.suffix.logits(final)
    untouched, _ = whole_run(bridge, prompts, ())
    for k, row in enumerate(factors.tolist()):
        expected = whole_run(bridge, prompts, dict(zip(components, row)), matrix=matrix)
        torch.testing.assert_close(logits[:, k], expected[0], atol=5e-4, rtol=1e-4)
        if mover:
            torch.testing.assert_close(pattern[:, k], expected[1], atol=1e-4, rtol=0)
    again = logits.gather(2, prompts.candidates[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(upper.logits(factors), again, atol=5e-4, rtol=1e-4)
    ones = upper.logits(torch.ones(1, len(components)))[:, 0]
    torch.testing.assert_close(ones, untouched.gather(1, prompts.candidates), atol=5e-4, rtol=1e-4)
    if bridge.cfg.model_name != "planted":
        assert (logits[:, 0] - untouched).abs().max() > 1e-2, "an edit without effect would prove nothing"
    part = upper.run(factors, slice(2, 5), mover)
    torch.testing.assert_close(part[0], final[2:5], atol=1e-4, rtol=1e-4)


def test_gradients_equal_finite_differences(case):
    bridge, prompts = case
    upper = engine.prepare(bridge, prompts, SETS["from the middle on"])
    factors = torch.tensor([[1.5, 0.5, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(upper.logits(factors)[:, 0].log_softmax(-1)[:, 0].sum(), factors)
    for i in range(3):
        step = torch.zeros(1, 3)
        step[0, i] = 0.01
        with torch.no_grad():
            ends = [upper.logits(factors + sign * step)[:, 0].log_softmax(-1)[:, 0].sum() for sign in (1, -1)]
        assert gradient[0, i].item() == pytest.approx(((ends[0] - ends[1]) / 0.02).item(), abs=2e-2, rel=2e-2)


def test_what_cannot_be_scaled_is_one_clear_error(case, checkpoints):
    bridge, prompts = case
    upper, some = engine.prepare(bridge, prompts, [Component(1, 2, 0)]), torch.ones(1, 1)
    raw = load_model(checkpoints["gpt2"], processing=Processing(False, False))
    for error, message, ask in (
        (OptionError, "one component at least", lambda: engine.prepare(bridge, prompts, [])),
        (LabelError, "is not in", lambda: engine.prepare(bridge, prompts, [Component(0, 40, 0)])),
        (OptionError, "does not lie above the edit", lambda: upper.run(some, mover=Head(0, 0))),
        (OptionError, "does not lie above the edit", lambda: upper.run(some, mover=Head(1, 0))),
        (EditError, "processed weights", lambda: engine.prepare(raw, prompts, [Component(1, 2, 0)])),
    ):
        with pytest.raises(error, match=message):
            ask()


def test_the_gradient_search_stays_on_its_sphere_and_the_grid_is_every_scale(case):
    bridge, prompts = case
    upper = engine.prepare(bridge, prompts, SETS["from the middle on"])
    columns, before = [0, 2], search.score(upper, torch.ones(1, 3)).log_prob.mean()
    tried = search.by_gradient(upper, columns, 0.3, n_steps=4)
    factors = torch.stack([c.factors for c in tried])
    amounts = (factors - 1) * upper.singular_values.float()
    torch.testing.assert_close(amounts.norm(dim=1), torch.full((4,), 0.3), atol=1e-4, rtol=0)
    assert (factors[:, 1] == 1).all(), "what is not searched stays"
    again = search.score(upper, factors).log_prob.mean(0).tolist()
    assert [c.objective for c in tried] == pytest.approx(again, abs=1e-4, rel=1e-4)
    if bridge.cfg.model_name != "planted":
        assert max(c.objective for c in tried) > before, "up the gradient"
    grid = search.grid_amounts(upper.singular_values[columns], (0.0, 1.0, 3.0))
    same = search.at_norm(grid, 0.3)
    torch.testing.assert_close(same.norm(dim=1), torch.full((len(same),), 0.3))
    assert len(same) == len(grid) and len(search.at_norm(torch.cat([grid, grid / 2, -grid]), 0.3)) == 6
    found = search.by_grid(upper, columns, grid)
    scales = [c.factors[[0, 2]].round().tolist() for c in found]
    assert scales == [[0, 1], [3, 1], [1, 0], [1, 3], [0, 0], [3, 3]]
    assert search.best(found, Search.GRID).objective == max(c.objective for c in found)
    for size, steps in ((0.0, 1), (float("nan"), 1), (1.0, 0)):
        with pytest.raises(OptionError, match="positive size"):
            search.by_gradient(upper, columns, size, n_steps=steps)


def test_random_components_are_others_of_the_same_layer_and_like_size():
    S = torch.tensor([[[4.0, 2.0, 0.0], [3.9, 1.9, 0.1]], [[9.0, 1.0, 0.5], [2.0, 1.2, 0.0]]])
    chosen = [Component(0, 0, 0), Component(1, 0, 1)]
    draws = [random_like(S, chosen, [], seed) for seed in range(20)]
    assert {draw[0] for draw in draws} == {Component(0, 1, 0), Component(0, 0, 1)}
    assert {draw[1] for draw in draws} == {Component(1, 1, 1), Component(1, 1, 0), Component(1, 0, 2)}
    assert random_like(S, chosen, [], 3) == draws[3]
    far = random_like(S, [Component(1, 0, 0)], [], 0)[0]
    assert far in {Component(1, 1, 0), Component(1, 1, 1), Component(1, 0, 1)}, "the nearest where none is alike"
    with pytest.raises(NotApplicable, match="no other component"):
        random_like(S[:1], chosen[:1], [Component(0, 0, 1), *(Component(0, 1, i) for i in range(3))], 0)


def test_harm_is_what_whole_runs_say(case):
    bridge, prompts = case
    components = SETS["from the middle on"]
    upper = engine.prepare(bridge, prompts, components)
    factors = torch.tensor([[3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    kl, right = harm_at_end(upper, factors)
    edits = [new_edit(weights_to_edit(bridge), dict(zip(components, row))) for row in factors.tolist()]
    edited_, untouched = text_harm(bridge, edits, prompts.tokens, batch=4)
    rows = torch.arange(len(prompts))
    plain = whole_run(bridge, prompts, ())[0].log_softmax(-1)
    edited = whole_run(bridge, prompts, dict(zip(components, [3.0, 0.0, 1.0])))[0]
    expected = (plain.exp() * (plain - edited.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(kl[:, 0], expected, atol=5e-4, rtol=1e-3)
    own, others = edited[rows, prompts.answers], edited.gather(1, prompts.distractors)
    assert right[:, 0].tolist() == (own[:, None] > others).all(1).tolist()
    assert kl[:, 1].abs().max() < 1e-4 and untouched.pattern.abs().max() < 1e-5
    with torch.no_grad():
        logits = bridge(prompts.tokens)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], prompts.tokens[0, 1:])
    torch.testing.assert_close(edited_.before[0], loss, atol=1e-4, rtol=1e-4)
    assert edited_.kl.shape == (len(prompts),)
    assert edited_.pattern.shape == (bridge.cfg.n_layers, bridge.cfg.n_heads)
    assert edited_.pattern[:2].abs().max() < 1e-5, "layers up to the first edited one attend as before"


@pytest.fixture(scope="module")
def planted():
    return Context("planted")


@pytest.fixture(scope="module")
def at(planted):
    return choose(planted, 10, n_prompts=80, n_draws=2)


@pytest.fixture(scope="module")
def tried(planted, at):
    return search.search(planted, at)


def test_an_edit_along_the_planted_channel_helps_where_lists_crowd_and_a_random_one_does_not(planted, at, tried):
    truth = plant().components
    assert set(at.chosen) <= {c for role in (INHIBITION, LIST, NOISE) for c in truth[role]}
    assert len(set(at.every)) == 18 and at.columns(1) == list(range(12, 18))
    best = search.winners(tried)
    assert [(c.search, c.draw) for c in best[:2]] == [(Search.GRID, None), (Search.GRADIENT, None)]
    assert {(c.search, c.draw) for c in best} == {(s, d) for s in Search for d in (None, 0, 1)}
    for own in best[:2]:
        sizes = [c.size for c in tried if c.search == own.search and c.draw is not None]
        assert sizes == pytest.approx([own.size] * len(sizes), rel=1e-4), "all of our winner's Frobenius norm"
    assert [sum((c.search, c.draw) == (Search.GRID, d) for c in tried) for d in (None, 0)] == [21, 14]
    sets = [(Prompts.KNOWN, None), (Prompts.NEW, None), (Prompts.LISTS, 14)]
    gained = frame(gains.edit_gains(planted, at, best, sets))
    for prompts in (Prompts.KNOWN, Prompts.NEW):
        part = gained[gained["prompts"] == prompts]
        own, draws = part[part["draw"].isna()], part[part["draw"].notna()]
        assert own["low"].max() > 0 and set(part["n"]) == {160}
        random = draws[draws["search"] == Search.GRADIENT]["gain"].mean()
        assert own["gain"].max() > random + 5 and draws["beyond"].isna().all()
        gradient = own[own["search"] == Search.GRADIENT].iloc[0]
        assert gradient["beyond"] == pytest.approx(gradient["gain"] - random), "the mean over draws, prompt by prompt"
    grid = best[0]
    of_known = gained[(gained["prompts"] == Prompts.KNOWN) & gained["draw"].isna() & (gained["search"] == Search.GRID)]
    assert (of_known["after"] - of_known["before"]).item() * 100 == pytest.approx(of_known["gain"].item())
    harmed = frame(gains.harm(planted, at, [grid]))
    row = gains.tried(planted, at, [grid, *best[2:4]])[0]
    assert row.kl == pytest.approx(harmed["kl"].mean(), rel=1e-3), "the same prompts in figure and table"
    assert [row.gain, row.low, row.high] == pytest.approx(of_known[["gain", "low", "high"]].iloc[0].tolist())
    assert row.lost == pytest.approx(-harmed["change"].mean(), abs=1e-3)
    assert harmed["before"].min() > 0.9 and list(harmed["prompts"]) == [Prompts.IOI, Prompts.LISTS]
    versus = frame(gains.against_steering(planted, at, grid, n_values=3)).set_index("strategy")
    assert versus.loc[gains.EDIT, "gain"] == pytest.approx(row.gain) and set(versus["n"]) == {160}


@pytest.mark.parametrize(("ask", "said"), [
    (lambda run, at: choose(run, 6, n_draws=0), "one random draw at least"),
    (lambda run, at: choose(run, 6, n_components=0), "One component"),
    (lambda run, at: search.search(run, at, sizes=()), "one size"),
    (lambda run, at: search.search(run, at, values=(1.0,)), "one scale other than 1"),
    (lambda run, at: gains.against_steering(run, replace(at, chosen=at.chosen[:2]), None), "three components, and 2"),
], ids=["no draw", "no component", "no size", "no scale", "two components"])  # fmt: skip
def test_what_cannot_be_asked_is_one_clear_error(planted, at, ask, said):
    with pytest.raises(OptionError, match=said):
        ask(planted, at)


def test_patterns_over_padding_do_not_count(planted, at):
    prompts = at.on(planted, Prompts.IOI)[0]
    assert len(set(prompts.mask.sum(1).tolist())) > 1, "prompts of one length would prove nothing"
    half = torch.full((len(at.every),), 0.5)
    edit = [at.edit(planted, half)]
    rows = [int(prompts.mask.sum(1).argmin()), int(prompts.mask.sum(1).argmax())]
    tokens, mask = prompts.tokens[rows], prompts.mask[rows]
    (found,) = text_harm(planted.bridge, edit, tokens, mask)
    alone = [text_harm(planted.bridge, edit, t[m][None])[0] for t, m in zip(tokens, mask)]
    for name in ("before", "loss", "kl"):
        one_by_one = torch.cat([getattr(a, name) for a in alone])
        torch.testing.assert_close(getattr(found, name), one_by_one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pattern, torch.stack([a.pattern for a in alone]).mean(0), atol=1e-5, rtol=1e-4)
    padded = text_harm(planted.bridge, edit, tokens)[0]
    assert not torch.allclose(padded.pattern, found.pattern, atol=1e-5), "else padding proves nothing"
    moved = frame(heads_moved(planted, at, [search.Candidate(Search.GRID, None, half, 1.0, 0.0)], 24))
    part = text_harm(planted.bridge, edit, prompts.tokens[:24], prompts.mask[:24])[0].pattern
    assert moved["moved"].tolist() == pytest.approx(part.flatten().tolist(), abs=1e-6)
    assert set(moved.loc[moved["edited"].astype(bool), "layer"]) == {1}
    assert moved.loc[moved["layer"] < 2, "moved"].max() < 1e-6, "only movers attend otherwise"


def test_choices_and_scores_share_no_prompt(planted, at):
    sets = {name: at.on(planted, name)[0] for name in (Prompts.SELECTION, Prompts.KNOWN, Prompts.NEW)}
    texts = {name: set(prompts.texts) for name, prompts in sets.items()}
    assert not texts[Prompts.SELECTION] & (texts[Prompts.KNOWN] | texts[Prompts.NEW])
    assert set(sets[Prompts.NEW].info["wording"]) == set(wordings(held_out=True))
    assert not set(sets[Prompts.NEW].info["wording"]) & set(sets[Prompts.KNOWN].info["wording"])
    assert [len(at.on(planted, *prompts)[0]) for prompts in ELSEWHERE] == [80, 160]


def test_removal_lowers_what_the_planted_channel_does_and_the_noise_head_raises_it(planted, at):
    rows = {row.removed: row for row in removal.removal(planted, at)}
    nothing = rows[""]
    assert nothing.inhibition_change == nothing.accuracy_high == 0, "against itself nothing can differ"
    assert rows["L1H0"].inhibition_change < -0.1 < rows["L1H3"].inhibition_change
    decoys = [row for name, row in rows.items() if name.startswith(("L1H4.", "L1H5."))]
    assert decoys and max(abs(row.inhibition_change) for row in decoys) < 1e-3, "nobody reads what decoys write"
    drawn = [row for row in rows.values() if row.kind == removal.Kind.RANDOM]
    assert {row.drawn_for for row in drawn} == set(map(str, at.chosen)) and len(drawn) == 12
    noise = next(c for c in at.chosen if str(c).startswith("L1H3."))
    gain = gains.gain_without(planted, at, noise)
    assert 100 * gain.mean == pytest.approx(rows[str(noise)].accuracy_change) and gain.low > 0
    figure = figures.removal_figure(frame(rows.values()))
    own = [row for row in rows.values() if row.kind == removal.Kind.CHOSEN]
    assert list(figure.data[0].x) == [round(row.inhibition_change, 4) for row in own]
    assert list(figure.data[0].error_y.array) == pytest.approx([row.accuracy_high - row.accuracy_change for row in own],
                                                              abs=0.01)  # fmt: skip


def test_scaling_by_one_is_the_same_model_and_figures_show_the_scales(planted, at):
    lines = frame(removal.scale_one(planted, at, (0.0, 1.0), (4, 12), 20))
    untouched = lines[lines["scale"] == 1].groupby("n_items")["accuracy"].nunique()
    assert untouched.tolist() == [1, 1], "scale 1 is the same model, whichever component"
    planes = frame(removal.scale_two(planted, at, (0.5, 1.0), (4, 12), n_prompts=20))
    both = planes[(planes["scale"] == 1) & (planes["other_scale"] == 1) & (planes["n_items"] == 12)]["accuracy"].item()
    assert both == pytest.approx(lines.query("n_items == 12 and scale == 1")["accuracy"].iloc[0])
    figure = figures.planes_figure(planes)
    assert figure.frames[1].data[0].z[1][1] == pytest.approx(both, abs=1e-3)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["4", "12"]
    figure = figures.lines_figure(lines)
    assert len(figure.data) == 6 and list(figure.data[0].x) == [0, 1]


def test_the_finding_of_chapter_three_shows_every_model_and_search():
    rows = pd.DataFrame([
        dict(model=model, search=search, draw=draw, gain=gain - 3 * (draw or 0), low=gain - 2, high=gain + 3)
        for model, gain in (("a", 5.0), ("b", -1.0)) for search in Search for draw in (None, 0, 1)
    ])  # fmt: skip
    figure = figures.finding_figure(rows)
    assert [trace.name for trace in figure.data] == ["gradient", "random, gradient", "grid", "random, grid"]
    for trace in figure.data:
        random = trace.name.startswith("random")
        assert list(trace.x) == ["a", "b"] and list(trace.y) == ([3.5, -2.5] if random else [5, -1])
        assert random or (list(trace.error_y.array), list(trace.error_y.arrayminus)) == ([3, 3], [2, 2])


def test_an_edit_of_some_components_is_data(planted, at):
    factors = torch.ones(len(at.every))
    factors[2] = 0.25
    edit = at.edit(planted, factors)
    assert [(c.component, c.value) for c in edit.changes] == [(at.chosen[2], 0.25)] and edit.model == "planted"
