"""The engine that scales many components at once against whole runs of the edited model, and the search on it."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from talking_heads_utils.edit.apply import apply, weights_to_edit
from talking_heads_utils.edit.edits import OV, QK, new_edit, scales
from talking_heads_utils.errors import EditError, LabelError, OptionError
from talking_heads_utils.experiments.editing import search, study
from talking_heads_utils.experiments.editing.harm import harm_at_end, text_harm
from talking_heads_utils.figures import editing as figures
from talking_heads_utils.forward import upper as engine
from talking_heads_utils.forward.layers import attention_layer
from talking_heads_utils.forward.suffix import suffix
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.stats import share
from talking_heads_utils.weights.heads import Processing

SETS = {
    "all layers": (Component(0, 1, 0), Component(0, 1, 2), Component(1, 2, 0), Component(2, 0, 0)),
    "from the middle on": (Component(1, 2, 1), Component(1, 1, 0), Component(2, 3, 0)),
    "the last layer": (Component(2, 0, 0), Component(2, 1, 1)),
}
READ = {OV: SETS, QK: {"two layers": (Component(0, 0, 1), Component(2, 0, 0)), "the last layer": (Component(2, 0, 1),)}}
CASES = [(matrix, name) for matrix, sets in READ.items() for name in sets]
MOVER = Head(2, 1)


def whole_run(bridge, prompts, changes, mover=MOVER):
    """Logits and a mover's attention from ``end`` of the edited model, everything run anew."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with apply(bridge, new_edit(weights_to_edit(bridge), changes)), torch.no_grad():
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
        expected = whole_run(bridge, prompts, scales(dict(zip(components, row)), matrix))
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


def test_a_cached_prefix_is_exact_for_the_last_layer_and_for_no_other(case):
    """One token on keys and values of the untouched prefix, with the edited layer's own weights."""
    bridge, prompts = case
    heads = {1: (Component(1, 2, 0), Component(1, 1, 0)), 2: (Component(2, 2, 0), Component(2, 2, 1))}
    gaps = {}
    for layer, components in heads.items():
        changes = scales(dict.fromkeys(components, 4.0))
        kept = suffix(bridge, prompts, layer)
        with apply(bridge, new_edit(weights_to_edit(bridge), changes)):
            edited = replace(kept.layers[0], attention=attention_layer(bridge, layer))
            found = replace(kept, layers=[edited, *kept.layers[1:]])
            logits = found.logits(found.final(found.resid[:, None]))[:, 0]
        gaps[layer] = (logits - whole_run(bridge, prompts, changes)[0]).abs().max()
    assert gaps[2] < 1e-3
    if bridge.cfg.model_name != "planted":  # there no key of the last layer reads what layer 1 writes
        assert gaps[1] > 1e-2


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
    with pytest.raises(OptionError, match="one component at least"):
        engine.prepare(bridge, prompts, [])
    with pytest.raises(LabelError, match="is not in"):
        engine.prepare(bridge, prompts, [Component(0, 40, 0)])
    upper = engine.prepare(bridge, prompts, [Component(1, 2, 0)])
    for mover in (Head(0, 0), Head(1, 0)):
        with pytest.raises(OptionError, match="does not lie above the edit"):
            upper.run(torch.ones(1, 1), mover=mover)
    raw = load_model(checkpoints["gpt2"], processing=Processing(False, False))
    with pytest.raises(EditError, match="processed weights"):
        engine.prepare(raw, prompts, [Component(1, 2, 0)])


def test_the_gradient_search_stays_on_its_sphere_and_the_grid_is_every_scale(case):
    bridge, prompts = case
    upper = engine.prepare(bridge, prompts, SETS["from the middle on"])
    columns, before = [0, 2], search.score(upper, torch.ones(1, 3)).log_prob.mean()
    tried = search.by_gradient(upper, columns, 0.3, n_steps=4)
    amounts = (tried.factors - 1) * upper.singular_values.float()
    torch.testing.assert_close(amounts.norm(dim=1), torch.full((4,), 0.3), atol=1e-4, rtol=0)
    assert (tried.factors[:, 1] == 1).all(), "what is not searched stays"
    again = search.score(upper, tried.factors).log_prob.mean(0)
    torch.testing.assert_close(tried.objective, again, atol=1e-4, rtol=1e-4)
    if bridge.cfg.model_name != "planted":
        assert tried.objective.max() > before, "up the gradient"
    grid = search.grid_amounts(upper.singular_values[columns], (0.0, 1.0, 3.0))
    same = search.at_norm(grid, 0.3)
    torch.testing.assert_close(same.norm(dim=1), torch.full((len(same),), 0.3))
    assert len(same) == len(grid) and len(search.at_norm(torch.cat([grid, grid / 2, -grid]), 0.3)) == 6
    found = search.by_grid(upper, columns, grid)
    assert found.factors[:, [0, 2]].round().tolist() == [[0, 1], [3, 1], [1, 0], [1, 3], [0, 0], [3, 3]]
    assert found.best == int(found.objective.argmax())
    for size, steps in ((0.0, 1), (float("nan"), 1), (1.0, 0)):
        with pytest.raises(OptionError, match="positive size"):
            search.by_gradient(upper, columns, size, n_steps=steps)


def test_random_components_are_others_of_the_same_layer_and_like_size():
    S = torch.tensor([[[4.0, 2.0, 0.0], [3.9, 1.9, 0.1]], [[9.0, 1.0, 0.5], [2.0, 1.2, 0.0]]])
    chosen = [Component(0, 0, 0), Component(1, 0, 1)]
    draws = [search.random_like(S, chosen, [], seed) for seed in range(20)]
    assert {draw[0] for draw in draws} == {Component(0, 1, 0), Component(0, 0, 1)}
    assert {draw[1] for draw in draws} == {Component(1, 1, 1), Component(1, 1, 0), Component(1, 0, 2)}
    assert search.random_like(S, chosen, [], 3) == draws[3]
    far = search.random_like(S, [Component(1, 0, 0)], [], 0)[0]
    assert far in {Component(1, 1, 0), Component(1, 1, 1), Component(1, 0, 1)}, "the nearest where none is alike"
    with pytest.raises(OptionError, match="ask for fewer draws"):
        search.random_like(S[:1], chosen[:1], [Component(0, 0, 1), *(Component(0, 1, i) for i in range(3))], 0)


def test_harm_is_what_whole_runs_say(case):
    bridge, prompts = case
    components = SETS["from the middle on"]
    upper = engine.prepare(bridge, prompts, components)
    factors = torch.tensor([[3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    kl, right = harm_at_end(upper, factors)
    edits = {str(k): new_edit(weights_to_edit(bridge), scales(dict(zip(components, row))))
             for k, row in enumerate(factors.tolist())}  # fmt: skip
    found = text_harm(bridge, edits, prompts.tokens, batch=4)
    rows = torch.arange(len(prompts))
    plain = whole_run(bridge, prompts, ())[0].log_softmax(-1)
    edited = whole_run(bridge, prompts, scales(dict(zip(components, [3.0, 0.0, 1.0]))))[0]
    expected = (plain.exp() * (plain - edited.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(kl[:, 0], expected, atol=5e-4, rtol=1e-3)
    own, others = edited[rows, prompts.answers], edited.gather(1, prompts.distractors)
    assert right[:, 0].tolist() == (own[:, None] > others).all(1).tolist()
    assert kl[:, 1].abs().max() < 1e-4 and found["1"].pattern.abs().max() < 1e-5
    with torch.no_grad():
        logits = bridge(prompts.tokens)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], prompts.tokens[0, 1:])
    torch.testing.assert_close(found["0"].before[0], loss, atol=1e-4, rtol=1e-4)
    assert found["0"].kl.shape == (len(prompts),) and found["0"].pattern.shape == (
        bridge.cfg.n_layers,
        bridge.cfg.n_heads,
    )
    assert found["0"].pattern[:2].abs().max() < 1e-5, "layers up to the first edited one attend as before"


@pytest.fixture(scope="module")
def planted():
    return study.bench("planted", n_items=10, n_prompts=80, n_draws=2)


def test_an_edit_along_the_planted_channel_helps_where_places_crowd_and_a_random_one_does_not(planted):
    from talking_heads_utils.planted.model import INHIBITION, LIST, NOISE, plant

    truth = plant().components
    assert set(planted.components) <= {c for role in (INHIBITION, LIST, NOISE) for c in truth[role]}
    assert len(set(planted.every)) == 18 and planted.columns(1) == list(range(12, 18))
    rows = study.search(planted)
    best = study.winners(rows)
    draws = [study.drawn(search, draw) for draw in (0, 1) for search in (study.GRADIENT, study.GRID)]
    assert list(best) == [study.GRID, study.GRADIENT, *draws]
    for found_by, names in ((study.GRADIENT, draws[::2]), (study.GRID, draws[1::2])):
        sizes = [row.size for row in rows if row.found_by in names]
        assert sizes == pytest.approx([best[found_by].size] * len(sizes), rel=1e-4), (
            "all of our winner's Frobenius norm"
        )
    assert [sum(row.found_by == name for row in rows) for name in (study.GRID, draws[1])] == [21, 14]
    table = study.gains_table(planted, best, [study.KNOWN, study.NEW, "lists of 14"])
    gains = table.set_index(["prompts", "edit"])
    for prompts in (study.KNOWN, study.NEW):
        own = gains.loc[prompts].loc[[study.GRADIENT, study.GRID]]
        assert own["low"].max() > 0 and set(own["n"]) == {160}
        assert own["gain"].max() > gains.loc[(prompts, study.drawn(study.GRADIENT)), "gain"] + 5
    assert (gains.loc[study.KNOWN].loc[[study.GRADIENT, study.GRID], "beyond random"] != "+0 (+0 to +0)").all()
    pareto = study.pareto_table(planted, rows)
    assert len(pareto) == len(rows) and (pareto["kl"] > -1e-5).all() and set(pareto["n"]) == {160}
    controlled = study.with_controls(best)
    assert (
        list(controlled) == [study.GRADIENT, draws[0], study.GRID, draws[1]] and controlled[draws[1]] is best[draws[1]]
    )
    harm = study.harm_table(planted, {"grid": best[study.GRID]})
    of_best = pareto.iloc[next(i for i, row in enumerate(rows) if row is best[study.GRID])]
    assert of_best["kl"] == pytest.approx(harm["KL, nats"].mean(), rel=1e-3), "the same prompts in figure and table"
    same = ["gain", "low", "high"]
    assert of_best[same].tolist() == pytest.approx(gains.loc[(study.KNOWN, study.GRID), same].tolist())
    assert harm["before"].min() > 0.9 and list(harm["prompts"]) == [study.IOI, study.SHORT]
    moved, patterns = study.heads_moved(planted, {"grid": best[study.GRID]}, 8)
    assert patterns["grid"].shape == (3, 6) and patterns["grid"][:2].max() < 1e-6, "only movers attend otherwise"
    steering = study.against_steering(planted, best[study.GRID], n_values=3)
    assert steering["method"].iloc[0] == "edit" and set(steering["n"]) == {160}


ASKED_BADLY = {
    "no draw": (lambda at: study.bench("planted", n_items=6, n_draws=0), "one random draw at least"),
    "no component": (lambda at: study.bench("planted", n_items=6, n_components=0), "one component"),
    "no size": (lambda at: study.search(at, sizes=()), "one size"),
    "no scale": (lambda at: study.search(at, values=()), "one scale other than 1"),
    "the scale that changes nothing": (lambda at: study.search(at, values=(1.0,)), "one scale other than 1"),
    "unknown prompts": (lambda at: at.on("nonsense"), "No prompts are called 'nonsense'"),
    "lists of what": (lambda at: at.on("lists of x"), "No prompts are called 'lists of x'"),
    "two components": (
        lambda at: study.against_steering(replace(at, components=at.components[:2]), None),
        "three components; this bench has 2",
    ),
}


@pytest.mark.parametrize(("ask", "said"), ASKED_BADLY.values(), ids=list(ASKED_BADLY))
def test_what_a_bench_cannot_do_is_one_clear_error(planted, ask, said):
    with pytest.raises(OptionError, match=said):
        ask(planted)


def test_patterns_over_padding_do_not_count(planted):
    prompts = planted.on(study.IOI)[0]
    assert len(set(prompts.mask.sum(1).tolist())) > 1, "prompts of one length would prove nothing"
    edit = {"it": planted.edit(torch.full((len(planted.every),), 0.5))}
    rows = [int(prompts.mask.sum(1).argmin()), int(prompts.mask.sum(1).argmax())]
    tokens, mask = prompts.tokens[rows], prompts.mask[rows]
    found = text_harm(planted.bridge, edit, tokens, mask)["it"]
    alone = [text_harm(planted.bridge, edit, t[m][None])["it"] for t, m in zip(tokens, mask)]
    for name in ("before", "loss", "kl"):
        torch.testing.assert_close(
            getattr(found, name), torch.cat([getattr(a, name) for a in alone]), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(found.pattern, torch.stack([a.pattern for a in alone]).mean(0), atol=1e-5, rtol=1e-4)
    padded = text_harm(planted.bridge, edit, tokens)["it"]
    assert not torch.allclose(padded.pattern, found.pattern, atol=1e-5), "else padding proves nothing"
    _, patterns = study.heads_moved(
        planted, {"it": study.Row("it", torch.full((len(planted.every),), 0.5), 1.0, 0.0)}, 24
    )
    part = text_harm(planted.bridge, edit, prompts.tokens[:24], prompts.mask[:24])["it"].pattern
    torch.testing.assert_close(patterns["it"], part)


def test_choices_and_scores_share_no_prompt(planted):
    from talking_heads_utils.prompts.lists import wordings

    sets = {name: planted.on(name)[0] for name in (study.SELECTION, study.KNOWN, study.NEW)}
    texts = {name: set(prompts.texts) for name, prompts in sets.items()}
    assert not texts[study.SELECTION] & (texts[study.KNOWN] | texts[study.NEW])
    assert set(sets[study.NEW].info["wording"]) == set(wordings(held_out=True))
    assert not set(sets[study.NEW].info["wording"]) & set(sets[study.KNOWN].info["wording"])
    assert len(planted.on(study.IOI)[0]) == len(planted.on(study.SHORT)[0]) == 80


def test_removal_scales_and_figures_show_what_was_measured(planted):
    removed = study.removal_table(planted).set_index("removed")
    assert removed.loc["nothing", "change of I(m)"] == 0
    level = share(torch.arange(160) < round(160 * removed.loc["nothing", "accuracy"]))
    assert removed.loc["nothing", ["accuracy", "accuracy low", "accuracy high"]].tolist() == pytest.approx(level[:3])
    assert removed.loc["nothing", "change of accuracy high"] == 0, "against itself nothing can differ"
    assert removed.loc["L1H0", "change of I(m)"] < -0.1 < removed.loc["L1H3", "change of I(m)"]
    decoys = removed[removed.index.str.startswith(("L1H4.", "L1H5."))]
    assert len(decoys) and decoys["change of I(m)"].abs().max() < 1e-3, "nobody reads what decoys write"
    lines = study.scale_lines(planted, (0.0, 1.0), (4, 12), 20)
    untouched = lines[lines["scale"] == 1].groupby("n_items")["accuracy"].nunique()
    assert untouched.tolist() == [1, 1], "scale 1 is the same model, whichever component"
    planes = study.scale_planes(planted, (0.5, 1.0), (4, 12), n_prompts=20)
    assert planes[12][1, 1].item() == pytest.approx(lines.query("n_items == 12 and scale == 1")["accuracy"].iloc[0])
    table = study.removal_table(planted)
    figure = figures.removal_figure(table)
    assert sorted(figure.data[0].x) == sorted(table[table["kind"] == "channel"]["change of I(m)"].round(4))
    figure = figures.planes_figure({"planted": planes}, (0.5, 1.0), {"planted": ("a", "b")})
    assert figure.frames[1].data[0].z[1][1] == pytest.approx(planes[12][1, 1].item(), abs=1e-3)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["4", "12"]
    figure = figures.lines_figure(lines)
    assert len(figure.data) == 6 and list(figure.data[0].x) == [0, 1]
    figure = figures.heads_figure({"a": torch.eye(2), "b": torch.zeros(2, 2)})
    assert [t.visible for t in figure.data] == [True, False] and figure.data[0].z[0][0] == 1


def test_what_removal_does_is_told_per_size_and_with_how_many_controls_are_of_like_size():
    rows = [("untouched", 0.0, 0.0), ("channel", 8.0, -0.4), ("channel", 2.0, -0.1),
            ("random", 4.0, -0.2), ("random", 0.5, 0.0), ("random", 1.0, -0.05), ("random", 3.0, -0.15)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["kind", "size", "change of accuracy"]).assign(model="a")
    (row,) = study.removal_summary(table).to_dict("records")
    assert (row["alike"], row["of"]) == (2, 4), "4 for 8, and 3 for 2"
    assert row["channel"] == pytest.approx(-25) and row["random"] == pytest.approx(-10)
    assert row["worst"] == pytest.approx(-20)
    assert row["channel per size"] == pytest.approx(-5) and row["random per size"] == pytest.approx(-40 / 8.5)


def test_what_is_said_of_gains_beyond_random_edits_is_what_the_table_has():
    rows = [("a", study.GRADIENT, 0.9), ("a", study.GRADIENT, -0.1), ("a", study.GRID, 0.0),
            ("b", study.GRID, 5.0), ("b", study.drawn(study.GRID), float("nan"))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "edit", "beyond random, low"])
    assert study.said_beyond(table, ["a", "b"]) == "gradient in a (1 of 2 sets), grid in b (1 of 1 sets)"
    assert study.said_beyond(table[table["edit"] == study.GRID], ["a"]) == "none"


def test_the_finding_of_chapter_three_shows_every_model_and_search():
    rows = [dict(model=model, edit=edit, gain=gain, low=gain - 2, high=gain + 3)
            for model, gain in (("a", 5.0), ("b", -1.0)) for edit in figures.GAIN_COLOURS]  # fmt: skip
    figure = figures.finding_figure(pd.DataFrame(rows))
    assert [trace.name for trace in figure.data] == list(figures.GAIN_COLOURS)
    for trace in figure.data:
        assert list(trace.x) == ["a", "b"] and list(trace.y) == [5, -1]
        assert list(trace.error_y.array) == [3, 3] and list(trace.error_y.arrayminus) == [2, 2]


def test_an_edit_of_a_bench_is_data(planted):
    factors = torch.ones(len(planted.every))
    factors[2] = 0.25
    edit = planted.edit(factors)
    (change,) = edit.changes
    assert change.component == planted.components[2] and change.value == 0.25 and edit.model == "planted"
