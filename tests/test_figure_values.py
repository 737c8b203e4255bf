"""Every value a figure draws stands under the name of its own series, and in the hover text under its own word."""

import re
from itertools import product

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from counted import MODELS, table

from talking_heads_utils.experiments.gate import ANYWHERE
from talking_heads_utils.experiments.inhibition import links
from talking_heads_utils.figures import circuit, composition, icl, models
from talking_heads_utils.figures import roles as role_figures
from talking_heads_utils.figures.style import CONTROL, role_colour
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION, Link
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.training import seeds

ROLES = {S_INHIBITION: [Head(0, 1), Head(1, 2)], NAME_MOVER: [Head(2, 0), Head(2, 3)]}
LINK = Link(S_INHIBITION, NAME_MOVER, "Q", tuple(product(ROLES[S_INHIBITION], ROLES[NAME_MOVER])))


def where(rows, **keys) -> pd.DataFrame:
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    return rows


def after(figure, entry) -> list:
    """The visible traces once a menu entry is chosen."""
    (button,) = (b for b in figure.layout.updatemenus[0].buttons if b.label == entry)
    changed, update = go.Figure(figure), button.args[0]
    which = button.args[1] if button.method == "restyle" else range(len(changed.data))
    for i, trace in enumerate(which):
        changed.data[trace].update({key: values[i] for key, values in update.items()})
    return [trace for trace in changed.data if trace.visible is not False]


def by_name(traces) -> dict:
    assert len({trace.name for trace in traces}) == len(traces)
    return {trace.name: trace for trace in traces}


def xy(trace) -> dict:
    assert len(trace.x) == len(trace.y) == len(set(trace.x))
    return dict(zip(trace.x, trace.y))


def series(figure, entry) -> dict[str, dict]:
    """Name -> x -> y, of what a menu entry shows."""
    return {name: pytest.approx(xy(trace)) for name, trace in by_name(after(figure, entry)).items()}


def column(rows, x, y) -> dict:
    return dict(zip(rows[x], rows[y]))


def hover(trace, i) -> str:
    """The text over a point, its template filled in."""

    def value(match) -> str:
        name, index, form = match.groups()
        found = getattr(trace, name) if name == "meta" else getattr(trace, name)[i]
        found = found[int(index)] if index else found
        return format(int(found) if form == "," else found, form or "")

    return re.sub(r"%\{(\w+)(?:\[(\d+)\])?(?::([^}]*))?\}", value, trace.hovertemplate).removesuffix("<extra></extra>")


def made_scores() -> CompositionScores:
    """Scores of which no two into one layer agree, with another null for every reader."""
    generator, blocks = torch.Generator().manual_seed(0), {}
    for kind, layer in product("QV", (1, 2)):
        order = torch.randperm(layer * 80, generator=generator).view(layer, 4, 5, 4) + 1
        mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.05, 0.06, 0.07, 0.08])
        blocks[kind, layer] = ReaderScores(kind, layer, order / (layer * 80 + 1), mean, std, mean + 3 * std)
    singular_values = torch.arange(60, 0, -1).view(3, 4, 5) / 10
    return CompositionScores(blocks, singular_values, dict(model="made", d_model_effective=24))


def z_and_rank(scores, component, reader, kind) -> tuple[float, int]:
    block = scores.blocks[kind, reader.layer]
    into = block.score[..., reader.head]
    own = into[component.layer, component.head, component.component]
    z = (own - block.null_mean[reader.head]) / block.null_std[reader.head]
    return z.item(), 1 + int((into > own).sum())


def by_model(rows) -> dict:
    return {model: where(rows, model=model) for model in MODELS}


def test_accuracy_is_that_of_the_named_functions():
    rows = table(["accuracy", "bayes"], group=["trained", "held-out"], n_examples=[0, 1, 2])
    figure = icl.accuracy_figure(by_model(rows))
    for model in MODELS:
        assert series(figure, model) == {
            f"{name}, {group}": column(where(rows, model=model, group=group), "n_examples", measured)
            for group in ("trained", "held-out")
            for name, measured in (("model", "accuracy"), ("Bayes-optimal", "bayes"))
        }


def test_parts_show_each_score_under_its_name():
    scores = {"exact": "exact", "near": "near", "parity": "parity", "parity of copied answers": "parity_copied"}
    rows = table(list(scores.values()), part=["attention", "mlp"], layer=[0, 1])
    rows["distance"] = [1.0 + i for i in range(len(rows))]
    rows["name"] = [f"{'MLP' if part == 'mlp' else part} {layer}" for part, layer in zip(rows["part"], rows["layer"])]
    rows = rows.assign(near_low=0.0, near_high=1.0, parity_low=0.0, parity_high=1.0)
    figure = icl.parts_figure(by_model(rows))
    for model in MODELS:
        own = where(rows, model=model)
        assert series(figure, model) == {name: column(own, "name", score) for name, score in scores.items()}
        for score, trace in list(by_name(after(figure, model)).items())[:3]:
            assert [hover(trace, i) for i in range(len(own))] == [
                f"without {row['name']}: {row[score]:.2f}<br>off by {row['distance']} on average"
                for row in own.to_dict("records")
            ]


def test_attention_to_y_and_to_x_are_not_exchanged():
    rows = table(["to_y", "to_x"], head=["L0H0", "L1H3"])
    rows["even"] = rows["model"].map(dict(zip(MODELS, (0.1, 0.2))))
    figure = icl.attention_figure(by_model(rows))
    for model in MODELS:
        own = where(rows, model=model)
        expected = {f"to earlier {x}": column(own, "head", f"to_{x}") for x in "yx"}
        assert series(figure, model) == expected | {"spread evenly, to y": column(own, "head", "even")}
        traces = by_name(after(figure, model))
        for name, of_head in expected.items():
            assert hover(traces[name], 1) == f"L1H3 {name}: {of_head['L1H3']:.2f}"


def test_backups_have_the_fixed_change_along_x_and_the_free_one_along_y():
    rows = table(["fixed", "free", "attention"], out=["a layer", "all heads"], head=["L0H0", "L1H3"])
    rows = rows.assign(free_low=rows["free"] - 0.25, free_high=rows["free"] + 0.5)
    figure = icl.backups_figure(by_model(rows))
    assert "held fixed" in figure.layout.xaxis.title.text and "left free" in figure.layout.yaxis.title.text
    for model, ablated in product(MODELS, ("a layer", "all heads")):
        own = where(rows, model=model, out=ablated)
        (trace,) = after(figure, f"{model}: without {ablated}")
        assert list(trace.x) == pytest.approx(own["fixed"].tolist())
        assert list(trace.y) == pytest.approx(own["free"].tolist())
        assert list(trace.marker.color) == pytest.approx(own["attention"].tolist())
        assert list(trace.error_y.array) == [0.5] * 2 and list(trace.error_y.arrayminus) == [0.25] * 2
        assert list(trace.text) == list(trace.customdata) == own["head"].tolist()
        for i, row in enumerate(own.to_dict("records")):
            assert hover(trace, i) == f"{row['head']}<br>held fixed {row['fixed']:.3f}<br>left free {row['free']:.3f}"


def test_belief_is_that_of_the_model_with_its_own_laws():
    rows = table(["log_odds"], law=["model", *icl.LAWS], n_examples=[0, 1, 2])
    figure = icl.belief_figure(by_model(rows), 2)
    for model in MODELS:
        assert series(figure, model) == {
            name: column(where(rows, model=model, law=law), "n_examples", "log_odds")
            for law, name in {"model": "the model", **icl.LAWS}.items()
        }
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 1.5 and line.line.dash == "dash", "between the last fitted n and the first judged"


def test_removal_by_effect_and_at_random_are_apart():
    rows = table(["exact"], order=["by_effect", "random 1", "random 2"], out=[0, 1, 2, 3]).assign(head="L0H0")
    rows["order"] = rows["order"].str.removesuffix(" 1")
    figure = icl.removal_figure(by_model(rows))
    expected = {}
    for model in MODELS:
        effect, *draws = (
            column(where(rows, model=model, order=order), "out", "exact")
            for order in ("by_effect", "random", "random 2")
        )
        expected |= {
            f"{model}, by effect": effect,
            f"{model}, at random": {out: (draws[0][out] + draws[1][out]) / 2 for out in range(4)},
        }
    *curves, mark = figure.data
    assert {name: pytest.approx(xy(trace)) for name, trace in by_name(curves).items()} == expected
    assert list(mark.x) == [0, 0] and list(mark.y) == pytest.approx([expected[f"{m}, by effect"][0] for m in MODELS])


@pytest.mark.parametrize("reader", [Head(2, 0), Head(2, 3)], ids=str)
def test_components_stand_beside_the_others_of_their_layer_and_say_their_z_and_rank(reader):
    scores, writers = made_scores(), [Head(0, 1), Head(1, 2)]
    figure = composition.components_figure(scores, writers, [Head(2, 0), Head(2, 3)], "Q")
    traces = {(t.xaxis or "x", t.name): t for t in after(figure, f"into {reader}, query")}
    into = scores.blocks["Q", 2].score[..., reader.head]
    for writer, axis in zip(writers, ("x", "x2")):
        own, bars = into[writer.layer, writer.head], traces[axis, "this head"]
        others = into[writer.layer, [head for head in range(4) if head != writer.head]]
        middle = others.sort(0).values[1]
        assert list(bars.y) == pytest.approx(own.tolist())
        assert list(traces[axis, "maximum of the layer's other heads"].y) == pytest.approx(others.amax(0).tolist())
        assert list(traces[axis, "their median"].y) == pytest.approx(middle.tolist())
        for c in range(5):
            component = Component(writer.layer, writer.head, c)
            z, rank = z_and_rank(scores, component, reader, "Q")
            assert hover(bars, c) == (
                f"{component} → {reader}<br>C = {own[c]:.3f}, z = {z:.1f}<br>rank {rank} of all earlier components<br>"
                f"singular value {scores.singular_values[writer.layer, writer.head, c]:.2f}"
            )


def lines(trace) -> list[tuple[Head, Head]]:
    """The heads at the two ends of every line."""
    points = list(zip(trace.x, trace.y, strict=True))
    assert set(points[2::3]) <= {(None, None)}
    ends = [Head(y, x) for i, (x, y) in enumerate(points) if i % 3 < 2]
    return list(zip(ends[::2], ends[1::2], strict=True))


def assert_on_lines(points, edges) -> None:
    """Each edge's text is a third of the way along it. edges: writer, reader, text."""
    at = [((2 * w.head + r.head) / 3, (2 * w.layer + r.layer) / 3, text) for w, r, text in edges]
    assert list(zip(points.x, points.y, points.text, strict=True)) == at


def test_the_landing_figure_s_lines_join_the_heads_of_their_edges():
    scores = made_scores()
    figure = circuit.link_figure(scores, LINK, thresholds=[0, 1, 2], start=1)
    colours = {False: CONTROL, True: role_colour(S_INHIBITION)}
    for frame in figure.frames:
        found = links.edges_above(scores, LINK, float(frame.name))
        at = {figure.data[i].line.color or figure.data[i].marker.color: [] for i in frame.traces}
        for trace, i in zip(frame.data, frame.traces, strict=True):
            at[figure.data[i].line.color or figure.data[i].marker.color].append(trace)
        for known, colour in colours.items():
            joined, points = at[colour]
            edges = [edge[:3] for edge in found if edge[3] == known]
            assert lines(joined) == [edge[:2] for edge in edges] and edges
            assert_on_lines(points, edges)


def ends(trace) -> dict:
    """x -> the two ends of the error bar."""
    bars = trace.error_y
    below = bars.array if bars.arrayminus is None else bars.arrayminus
    return {x: pytest.approx((y - low, y + high)) for x, y, low, high in zip(trace.x, trace.y, below, bars.array)}


def test_an_exchange_stands_beside_the_range_of_its_own_control():
    rows = [
        ("all three", "L1H0, L2H0", -3.0, -3.5, -2.5, 1.25, -0.8, 0.4, 99),
        (S_INHIBITION, "L1H0", -2.0, -2.4, -1.6, 0.83, -0.3, 0.1, 64),
    ]
    names = ["part", "heads", "effect", "low", "high", "share", "control_low", "control_high", "n_sets"]
    found, control = role_figures.exchange_figure(pd.DataFrame(rows, columns=names).assign(n=64)).data
    assert xy(found) == {"all three": -3, S_INHIBITION: -2}
    assert ends(found) == {"all three": (-3.5, -2.5), S_INHIBITION: (-2.4, -1.6)}
    assert ends(control) == {"all three": (-0.8, 0.4), S_INHIBITION: (-0.3, 0.1)}
    assert found.marker.color[1] == role_colour(S_INHIBITION) != found.marker.color[0]


def test_the_gate_is_drawn_by_index_and_order_and_chance_by_length():
    cells = [
        dict(task=task, order=order, wording="all", index=index, n_items=n, accuracy=a / 100, low=a / 100 - 0.05,
             high=a / 100 + 0.04)
        for a, (task, order, (n, index)) in enumerate(product(
            (laundry.TASK, "ioi"), ("all", laundry.KEPT, laundry.SHUFFLED),
            ((3, ANYWHERE), (3, 0), (3, 2), (5, ANYWHERE), (5, 0), (5, 4)),
        ), 10)
    ]  # fmt: skip
    table = pd.DataFrame(cells)
    figure = models.gate_figure(table.sample(frac=1, random_state=0))
    for n in (3, 5):
        own = where(table, task=laundry.TASK, n_items=n)
        own = own[own["index"] != ANYWHERE]
        expected = {
            f"{order} order": column(where(own, order=order), "index", "accuracy")
            for order in (laundry.KEPT, laundry.SHUFFLED)
        }
        assert series(figure, f"lists of {n}") == expected | {"chance": {0: 1 / n, n - 1: 1 / n}}
        kept = by_name(after(figure, f"lists of {n}"))[f"{laundry.KEPT} order"]
        assert ends(kept) == {
            r["index"]: (r["low"], r["high"]) for r in where(own, order=laundry.KEPT).to_dict("records")
        }


def test_tasks_of_words_are_drawn_by_number_of_examples_and_their_kind():
    kinds = ["its own", "shuffled labels", "another task"]
    rows = table(["accuracy"], task=["past_tense", "capitals"], examples=kinds, n_examples=[0, 4, 8])
    rows = where(rows, model=MODELS[0]).sort_values(["task", "examples"], ascending=False)
    rows = rows.sort_values("examples", key=lambda names: names.map(kinds.index), kind="stable")
    figure = models.words_figure(rows)
    for task in ("past_tense", "capitals"):
        own = where(rows, task=task)
        assert series(figure, task.replace("_", " ")) == {
            f"examples: {kind}": column(where(own, examples=kind), "n_examples", "accuracy") for kind in kinds
        }
        colours = [trace.line.color for trace in after(figure, task.replace("_", " "))]
        assert colours[1:] == [CONTROL, CONTROL] and colours[0] != CONTROL


def seed_run(model, seed, accuracy, whole, top, random) -> dict:
    curve = [
        dict(k=k, what=what, mean=mean)
        for k in (1, 2)
        for what, mean in (
            (seeds.TOP, whole * top[k - 1]),
            (seeds.RANDOM, whole * random[k - 1]),
            (seeds.TOGETHER, whole),
        )
    ]
    return dict(model=model, seed=seed, accuracy=dict(ioi=0.99) | accuracy, channel=curve)


def test_every_seed_has_its_own_accuracies_and_its_channel_s_shares():
    runs = [
        seed_run("a", 0, {"n=2": 0.91, "n=3": 0.81}, -0.5, [0.6, 0.9], [0.10, 0.20]),
        seed_run("b", 0, {"n=2": 0.92, "n=3": 0.82}, -0.4, [0.7, 0.8], [0.15, 0.25]),
        seed_run("a", 1, {"n=2": 0.93, "n=3": 0.83}, -0.2, [0.5, 1.0], [0.30, 0.50]),
        dict(model="b", seed=2, accuracy={"n=2": 0.94, "ioi": 0.98}),
    ]
    figure = models.seeds_figure(runs)
    assert [note.text for note in figure.layout.annotations] == [
        "accuracy over the vocabulary",
        "share of the effect on I(m)",
    ]
    expected = {
        "a": {
            ("y", "seed 0"): {2: 0.91, 3: 0.81},
            ("y2", "seed 0"): {1: 0.6, 2: 0.9},
            ("y", "seed 1"): {2: 0.93, 3: 0.83},
            ("y2", "seed 1"): {1: 0.5, 2: 1.0},
            ("y2", "random directions"): {1: 0.2, 2: 0.35},
        },
        "b": {
            ("y", "seed 0"): {2: 0.92, 3: 0.82},
            ("y2", "seed 0"): {1: 0.7, 2: 0.8},
            ("y", "seed 2"): {2: 0.94},
            ("y2", "random directions"): {1: 0.15, 2: 0.25},
        },
    }
    for model, curves in expected.items():
        traces = {(t.yaxis, t.name): t for t in after(figure, model) if t.x}
        assert {at: pytest.approx(xy(trace)) for at, trace in traces.items()} == curves
        for (_, name), trace in traces.items():
            assert hover(trace, 0) == f"{name}, {trace.x[0]}: {trace.y[0]:.3f}"


def test_no_run_of_a_recipe_is_left_out():
    runs = [seed_run("a", seed, {"n=2": seed / 10}, -0.5, [0.2, 0.4], [0.1, 0.2]) for seed in range(5)]
    traces = [t for t in after(models.seeds_figure(runs), "a") if t.yaxis == "y"]
    assert {t.name: xy(t) for t in traces} == {f"seed {seed}": {2: seed / 10} for seed in range(5)}
