"""Every value a figure draws stands under the name of its own series, and in the hover text under its own word."""

import re
from itertools import product

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from counted import MODELS, table

from talking_heads_utils.experiments.gate import ANYWHERE
from talking_heads_utils.figures import composition, models
from talking_heads_utils.figures import roles as role_figures
from talking_heads_utils.figures.style import CONTROL, role_colour
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.roles import S_INHIBITION
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.scores.scores import CompositionScores
from talking_heads_utils.training import seeds


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
    traces = [t for t in models.seeds_figure(runs).data if t.yaxis == "y"]
    assert {t.name: xy(t) for t in traces} == {f"seed {seed}": {2: seed / 10} for seed in range(5)}


def test_models_are_introduced_by_what_was_measured_and_what_was_predicted():
    rows = pd.DataFrame(dict(n_items=[3, 6], accuracy=[0.9, 0.5], low=[0.8, 0.4], high=[1.0, 0.6]))
    measured, predicted = models.accuracy_figure({"planted": rows}, {"planted": [0.88, 0.52]}).data
    assert list(measured.y) == [0.9, 0.5] and list(measured.error_y.array) == pytest.approx([0.1, 0.1])
    assert list(predicted.x) == [3, 6] and list(predicted.y) == [0.88, 0.52] and predicted.mode == "markers"
    log = [dict(step=s, accuracy={"IOI": s / 400, "lists of 2": s / 200}) for s in (200, 400)]
    figure = models.training_figure(log, ["lists of 2"])
    assert [(t.name, list(t.x), list(t.y)) for t in figure.data] == [("lists of 2", [200, 400], [1.0, 2.0])]
