"""Chapter 2's figures, and what its page says: every value out of its own row, every verb by its number."""

from itertools import product

import made_positional as made
import pytest
from plotly.colors import unlabel_rgb

from talking_heads_utils.experiments.positional.steering import Method
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.figures import positional, traversal
from talking_heads_utils.figures.style import ACCENT, INDEX_COLOURS
from talking_heads_utils.site import positional as said


def where(rows, **keys):
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    return rows


def views(figure) -> dict[str, list]:
    """Menu entry -> the traces it shows; every trace is shown by one entry, the first entry's from the start."""
    buttons = figure.layout.updatemenus[0].buttons
    masks = [button.args[0]["visible"] for button in buttons]
    assert all(len(mask) == len(figure.data) and sum(column) == 1 for mask in masks for column in zip(*masks))
    assert [trace.visible is not False for trace in figure.data] == list(masks[0])
    return {b.label: [t for t, on in zip(figure.data, mask) if on] for b, mask in zip(buttons, masks)}


def by_name(traces) -> dict:
    named = [trace for trace in traces if trace.name]
    assert len({trace.name for trace in named}) == len(named)
    return {trace.name: trace for trace in named}


def ends(bars, middle, abs=1e-3) -> list[tuple]:
    below = bars.array if bars.arrayminus is None else bars.arrayminus
    return [(pytest.approx(m - low, abs=abs), pytest.approx(m + up, abs=abs))
            for m, low, up in zip(middle, below, bars.array, strict=True)]  # fmt: skip


def pieces(values) -> list[tuple]:
    """From where to where the pieces of a broken line run."""
    assert set(values[2::3]) == {None}
    return [(pytest.approx(a, abs=0.006), pytest.approx(b, abs=0.006)) for a, b in zip(values[::3], values[1::3])]


def intervals(rows, name="") -> list[tuple]:
    return list(zip(rows[f"{name}low"], rows[f"{name}high"], strict=True))


def test_points_and_means_change_with_the_length():
    table = made.point_rows()
    figure = positional.points_figure(table, made.COMPONENTS, 4)
    assert [s.label for s in figure.layout.sliders[0].steps] == [f.name for f in figure.frames] == ["3", "4", "6"]
    assert list(figure.data[0].x) == list(figure.frames[1].data[0].x) and figure.layout.sliders[0].active == 1
    for frame in figure.frames:
        rows, (cloud, *means) = where(table, n_items=int(frame.name)), frame.data
        for axis in "xyz":
            assert list(cloud[axis]) == pytest.approx(rows[axis].tolist(), abs=0.006)
        assert list(cloud.marker.color) == [INDEX_COLOURS[i] for i in rows["list_index"]]
        assert [symbol == "circle" for symbol in cloud.marker.symbol] == rows["right"].tolist()
        for axis, mean in zip("xyz", means, strict=True):
            of = rows.groupby("list_index")[axis]
            assert list(mean.x) == list(of.groups) and list(mean.y) == pytest.approx(of.mean().tolist(), abs=1e-3)
            assert list(mean.error_y.array) == pytest.approx((1.96 * of.sem()).tolist(), abs=2e-3)
    assert {mean.yaxis for mean in figure.data[1:]} == {"y", "y2", "y3"}


def test_what_is_decoded_stands_under_its_feature_by_length_and_split():
    table = made.decoding_rows()
    shown = views(positional.decoding_figure(table))
    assert list(shown)[0] == "lists of 4: other lists" and len(shown) == 6
    for (n, (split, words)), (feature, name) in product(
        product((4, 6), positional.SPLITS.items()), positional.FEATURES.items()
    ):
        traces = by_name(t for t in shown[f"lists of {n}: {words}"] if t.showlegend is not False)
        own = where(table, n_items=n, split=split, feature=feature)
        rows, matched = (where(own, subspace=s) for s in (Subspace.CHOSEN, Subspace.MATCHED))
        assert list(traces[name].customdata) == rows["k"].tolist() == [round(x) for x in traces[name].x]
        assert list(traces[name].y) == pytest.approx(rows["right"].tolist(), abs=1e-4)
        assert ends(traces[name].error_y, traces[name].y) == intervals(rows)
        any_head = where(own, subspace=Subspace.ANYWHERE)
        assert list(traces[f"{name}, any head"].y) == pytest.approx(any_head["right"].tolist(), abs=1e-4)
        assert list(traces["chance"].y) == [1 / n] * 2
        label = "95% of matched triples" + ", item" * (name == "item")
        (drawn,) = (t for t in shown[f"lists of {n}: {words}"] if t.name == label)
        assert pieces(drawn.y) == intervals(matched) and round(drawn.x[0]) == 3


def test_every_subspace_has_its_own_curve_beside_what_is_whole():
    table = made.interchange_rows()
    figure = positional.dimensions_figure(table)
    assert figure.layout.yaxis.title.text.startswith("logits")
    shown = views(figure)
    for n, (measure, words) in product((4, 6), positional.MEASURES.items()):
        traces = by_name(shown[f"{words}, lists of {n}"])
        own = where(table, n_items=n, measure=measure, donor="other_items")
        for subspace, (name, *_) in positional.CURVES.items():
            rows = where(own, subspace=subspace)
            assert list(traces[name].customdata) == rows["k"].tolist()
            assert list(traces[name].y) == pytest.approx(rows["effect"].tolist(), abs=1e-4)
            assert ends(traces[name].error_y, traces[name].y) == intervals(rows)
        for subspace, (name, _) in positional.WHOLE.items():
            assert list(traces[name].y) == pytest.approx(where(own, subspace=subspace)["effect"].tolist() * 2, abs=1e-4)
        drawn = traces["95% of matched triples"]
        assert pieces(drawn.y) == intervals(where(own, subspace=Subspace.MATCHED))
    titles = [b.args[1]["yaxis.title.text"] for b in figure.layout.updatemenus[0].buttons]
    assert titles == [unit for unit in positional.UNITS.values() for _ in range(2)]


def test_a_model_without_learned_subspaces_or_inhibition_heads_is_drawn_without_them():
    table = made.interchange_rows()
    table = table[table["subspace"].isin([Subspace.CHOSEN, Subspace.MATCHED, Subspace.WHOLE_STREAM])]
    for traces in views(positional.dimensions_figure(table)).values():
        assert {t.name for t in traces if t.x} == {
            "components of inhibition heads", "95% of matched triples", "the whole stream"
        }  # fmt: skip
    assert "learned" not in said.interchange(table).data


def test_one_component_moves_attention_above_and_answers_below():
    table = made.line_rows()
    shown = views(traversal.line_figure(table))
    assert list(shown)[:2] == ["L1H0.0, lists of 4", "L1H0.0, lists of 6"] and len(shown) == 6
    for component, n in product(made.COMPONENTS, (4, 6)):
        drawn = [t for t in shown[f"{component}, lists of {n}"] if t.x]
        assert len(drawn) == 6 * n
        for trace in drawn:
            item, kind = trace.name.removeprefix("item ").partition(", ")[::2]
            of = "random" if kind == "random direction" else component
            rows = where(table, n_items=n, component=of, list_index=int(item))
            what, amounts = {"y": "attention", "y2": "answered"}[trace.yaxis], rows["amount"].tolist()
            if kind == "interval":
                assert list(trace.x) == amounts + amounts[::-1]
                expected = [*rows[f"{what}_high"], *reversed(rows[f"{what}_low"].tolist())]
                assert list(trace.y) == pytest.approx(expected, abs=6e-4)
            else:
                assert list(trace.x) == amounts and trace.line.color == INDEX_COLOURS[int(item)]
                assert list(trace.y) == pytest.approx(rows[what].tolist(), abs=6e-4)


def test_the_slider_moves_the_third_component_of_every_map_and_the_menu_chooses_one():
    table = made.map_rows()
    figure = traversal.traversal_figure(table, made.COMPONENTS)
    labels = [f"lists of {n}: {words}" for n in (4, 6) for words, _ in traversal.KINDS.values()]
    assert list(views(figure)) == labels and figure.layout.sliders[0].active == 2
    steps = figure.layout.sliders[0].steps
    assert [s.label for s in steps] == ["-100%", "-50%", "0%", "+50%", "+100%"]
    for (i, step), (j, (n, (kind, (_, share)))) in product(
        enumerate(steps), enumerate(product((4, 6), traversal.KINDS.items()))
    ):
        z, at = step.args[0]["z"][j], where(table, n_items=n, third=i - 2.0).set_index(["second", "first"])
        for (row, second), (column, first) in product(enumerate(figure.data[j].y), enumerate(figure.data[j].x)):
            cell = at.loc[(second, first)]
            assert int(z[row][column]) == cell[kind]
            strength = min(max((cell[share] - 1 / n) / (1 - 1 / n), 0), 0.999)
            assert z[row][column] % 1 == pytest.approx(strength, abs=0.006)
            said_there = step.args[0]["customdata"][j][row][column]
            assert said_there == f"item {cell[kind]}: {cell[share]:.0%}"
        if i == 2:
            assert [list(row) for row in figure.data[j].z] == z
    full = [colour for _, colour in figure.data[0].colorscale][1::2]
    assert [unlabel_rgb(c.replace("rgba", "rgb").rsplit(",", 1)[0] + ")") for c in full] == [
        tuple(int(c[k : k + 2], 16) for k in (1, 3, 5)) for c in INDEX_COLOURS[:4]
    ]
    with pytest.raises(ValueError, match="as many settings"):
        traversal.traversal_figure(table[(table["n_items"] == 4) | (table["third"] > -2)], made.COMPONENTS)


def test_crowding_scales_order_and_gains_show_their_rows():
    margins = made.margin_rows()
    for trace in positional.crowding_figure(margins).data:
        rows = where(margins, statistic="accuracy", n_items=int(trace.name.removeprefix("lists of ")))
        assert list(trace.x) == rows["quarter"].tolist() and ends(trace.error_y, trace.y) == intervals(rows)
        assert list(trace.y) == pytest.approx(rows["value"].tolist(), abs=1e-4)
    scales = made.scale_rows()
    for entry, (area, mean, own) in views(positional.scales_figure(scales)).items():
        rows = where(scales, n_items=int(entry.removeprefix("lists of ")))
        chosen, matched = (where(rows, subspace=s) for s in (Subspace.CHOSEN, Subspace.MATCHED))
        assert list(own.y) == pytest.approx(chosen["accuracy"].tolist(), abs=1e-4) and own.line.color == ACCENT
        assert ends(own.error_y, own.y) == intervals(chosen)
        assert list(mean.y) == pytest.approx(matched["accuracy"].tolist(), abs=1e-4)
        expected = [*matched["high"], *reversed(matched["low"].tolist())]
        assert list(area.y) == pytest.approx(expected, abs=1e-4) and list(area.x[:6]) == matched["scale"].tolist()


def test_order_has_a_panel_for_each_order_and_a_line_for_each_strategy():
    table = made.order_rows()
    for entry, traces in views(positional.order_figure(table)).items():
        for panel, order in (("y", "kept"), ("y2", "shuffled")):
            rows = where(table, n_items=int(entry.removeprefix("lists of ")), order=order)
            lines = by_name(t for t in traces if t.yaxis == panel)
            for column, (name, *_) in positional.STRATEGIES.items():
                assert list(lines[name].x) == rows["list_index"].tolist()
                assert list(lines[name].y) == pytest.approx(rows[column].tolist(), abs=1e-4)
            assert ends(lines["the model"].error_y, lines["the model"].y) == intervals(rows)


def test_gains_stand_in_the_row_of_their_method():
    table = made.gain_rows()
    shown, methods = views(traversal.gains_figure(table)), list(traversal.METHODS)
    assert len(shown) == 6 and list(shown)[0] == "lists of 4: held out"
    for (part, words), n in product(traversal.PARTS.items(), (4, 6)):
        for trace, kind in zip(shown[f"lists of {n}: {words}"], (Subspace.MATCHED, Subspace.CHOSEN), strict=True):
            rows = where(table, n_items=n, part=part, subspace=kind)
            rows = rows[rows["method"] != Method.NONE]
            own = kind == Subspace.CHOSEN
            assert [methods[round(y)] for y in (trace.y if own else trace.y[::3])] == rows["method"].tolist()
            if own:
                assert ends(trace.error_x, trace.x, 0.01) == intervals(rows, "gain_")
                assert list(trace.x) == pytest.approx(rows["gain"].tolist(), abs=0.01)
            else:
                assert pieces(trace.x) == intervals(rows, "gain_")


def test_sentences_follow_the_numbers():
    table = made.interchange_rows()
    rows = where(table, n_items=4, donor="other_items", measure="logit_difference")

    def logits(subspace, k):
        row = where(rows, subspace=subspace, k=k).iloc[0]
        return f"{row['effect']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"

    one, three, ten, learned, stream = (
        logits(*of) for of in (("chosen", 1), ("chosen", 3), ("chosen", 10), ("learned", 1), ("whole_stream", 0))
    )
    found = said.finding(table, "made").data
    assert found.startswith("In made, one direction") and f"moves by **{one}** logits" in found
    assert found.endswith(f"in lists of 4. The whole stream moves it by {stream}.") and "carries part" in found
    assert "does not clearly carry" in said.finding(table.assign(low=-1.0), "made").data
    told = said.interchange(table).data
    assert (
        f"in lists of 4, by number of dimensions:\n\n- the chosen components: one {one}, three {three}, ten {ten}\n"
        in told
    )
    assert "- matched triples: 95% of them at most 0.40 (p = 0.01)\n" in told
    assert f"learned for this: one {learned}" in told and ", ten 3" not in told and "works against" not in told
    ratio = [where(rows, subspace="chosen", k=k)["effect"].iloc[0] for k in (1, 3)]
    assert f"the first alone does {ratio[0] / ratio[1]:.0%} in lists of 4 and" in told
    against = table.assign(low=table["low"].where(table["subspace"] != "whole_heads", 9.0))
    assert said.interchange(against).data.count("Something else in it works against the heads") == 1
    decoded = made.decoding_rows()
    assert "that is more than" in said.decoding(decoded).data
    assert "that is no clearly more than" in said.decoding(decoded.assign(p=0.3)).data
    margins, scales = made.margin_rows(), made.scale_rows()
    assert said.margins(margins).data.count("in lists of 4, 6 and 8") == 2
    assert said.margins(margins.assign(p=0.2)).data.count("at no length") == 2
    assert "2 times as wide is answered better in lists of 4, 6 and 8, and one 0.5 times" in said.scales(scales).data
    assert said.scales(scales.assign(p=0.2)).data.count("at no length") == 2
    gains = made.gain_rows()
    told = said.gains(gains).data
    assert "neither way to steer gains more than the correction of the logits. " in told
    assert told.endswith(
        "a setting adds to the correction: +1.4 [-0.6, 3.4] in lists of 4 and +1.6 [-0.4, 3.6] in lists of 6."
    )
    told = said.gains(gains.assign(beyond_low=1.0)).data
    assert "more than by the correction is gained by one setting in lists of 4, one setting in lists of 6" in told
    grid, reach = made.map_rows(), made.reach_rows()
    told = said.traversal(grid, reach).data
    assert (
        "6 of the items are attended most somewhere on the grid, and 5 are answered most. Both are the same item in 18%"
        in told
    )
    assert "That is more attention than along matched triples (p = 0.01), clearly so for 5 of 6 items." in told
    assert "no clearly more attention" in said.traversal(grid, reach.assign(mean_p=0.5)).data


def test_sentences_name_their_rows():
    assert said.three(made.component_rows()) == ["L1H0.0", "L1H1.0", "L1H0.1"]
    assert said.three(made.component_rows().iloc[:0]) == []
    told = said.components(made.component_rows()).data
    assert told.endswith("L0H0.1. The components matched with them have 90%, 80% and 70% of their energy.")
    line = said.line(made.line_rows()).data
    assert "attention to item 3 goes from 3% to 64%, and the share of lists answered with it from 2% to 32%." in line
    assert line.endswith("Along the random direction, attention to no item changes by more than 4%.")
    assert (
        "in lists of 6:\n\n- kept order: 25% at index 0, 67% at index 5 (p = 0.001)\n- shuffled order: 20%"
        in said.order(made.order_rows()).data
    )
    assert "33% to 51% in lists of 6, 26% to 44% in lists of 8" in said.margins(made.margin_rows()).data
    assert "1.3, 1.2 and 0.1 in lists of 3; 1.6, 1.2 and" in said.points(made.point_rows(), made.COMPONENTS).data
    known = said.known({"planted": (made.interchange_rows(), made.decoding_rows()),
                        "none": (made.interchange_rows().iloc[:0], made.decoding_rows().iloc[:0])}).data  # fmt: skip
    assert known.startswith("- planted: three dimensions move the answer by 2.42") and "none" not in known
    for say in (said.components, said.interchange, said.margins, said.scales, said.order, said.gains, said.line):
        assert say(made.component_rows().iloc[:0]) is None
