"""Chapter 1's figures, and what its page says: every value out of its own row, every verb by its number."""

from itertools import product
from types import SimpleNamespace

import made_rows as made
import pandas as pd
import pytest

from talking_heads_utils import roles
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.words import WordsRow
from talking_heads_utils.experiments.inhibition import exchange, rivals, slider
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import circuit, composition, inhibition
from talking_heads_utils.figures import roles as role_figures
from talking_heads_utils.figures.style import CONTROL, role_colour
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Head
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.ioi import IO_FIRST
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.roles import DIRECT, NAME_MOVER, NEGATIVE_MOVER, QUERY, S_INHIBITION, Role, Roles
from talking_heads_utils.site import inhibition as said
from talking_heads_utils.site import notebook
from talking_heads_utils.stats import Interval


def after(figure, entry) -> list:
    """The traces that a menu entry shows."""
    (button,) = (b for b in figure.layout.updatemenus[0].buttons if b.label == entry)
    return [trace for trace, on in zip(figure.data, button.args[0]["visible"], strict=True) if on]


def test_the_slider_picks_one_setting_of_every_curve_and_the_menu_one_prompt():
    table = made.slider_rows(settings=(-2.0, -1.0, 0.0, 1.0, 2.0))
    figure = inhibition.slider_figure(table)
    entries = [b.label for b in figure.layout.updatemenus[0].buttons]
    assert entries[0] == "mean over 200 prompts" and entries[1].startswith("When Ann and Bob") and len(entries) == 3
    for entry, prompt in zip(entries, (None, 0, 1)):
        rows = table[table["prompt"].isna() if prompt is None else table["prompt"] == prompt]
        shown = after(figure, entry)
        cells = product(("attention", "probability"), ("component", "random"), ("first", "second"))
        for trace, (what, direction, name) in zip(shown, cells, strict=True):
            own = rows[(rows["direction"] == direction) & (rows["name"] == name)]
            assert list(trace.x) == own["setting"].tolist()
            assert list(trace.y) == pytest.approx(own[what].tolist(), abs=1e-3)
            assert trace.yaxis == {"attention": "y", "probability": "y2"}[what]
            assert (trace.line.color == CONTROL) == (direction == slider.RANDOM) and trace.selectedpoints == (1,)
            assert (trace.error_y.array is not None) == (prompt is None and direction == slider.COMPONENT)
    steps = figure.layout.sliders[0].steps
    assert [(step.label, step.args[0]["selectedpoints"]) for step in steps] == [
        (f"{value:+.1f}", [[i]]) for i, value in enumerate((-2, -1, 0, 1, 2))
    ]
    first, second = after(figure, entries[1])[:2]
    assert first.text[0] == f"Ann {first.y[0]:.0%}" and second.text[-1] == f"Bob {second.y[-1]:.0%}"
    assert first.textposition[0] == "top center" and first.textposition[-1] == "bottom center"


def test_effects_stand_above_the_scores_of_the_same_components():
    table = made.effect_rows()
    figure = inhibition.effects_figure(table)
    for (head, mover), rows in table.groupby(["head", "mover"]):
        above, below, null = after(figure, f"{head} into {mover}")
        assert list(above.y) == pytest.approx(rows["effect"].tolist(), abs=1e-4) and above.yaxis == "y"
        assert list(below.y) == pytest.approx(rows["score"].tolist(), abs=1e-4) and below.yaxis == null.yaxis == "y2"
        assert list(above.error_y.array) == pytest.approx([0.03] * len(rows))
        assert list(null.y) == [0.12] * 2


def test_the_exchange_is_drawn_by_what_was_chosen_and_where_it_goes():
    table = made.exchange_rows()
    figure = inhibition.exchange_figure(table)
    rows = table[table["measure"] == exchange.LOG_ODDS]
    for head, name in (("L1H0", "L1H0"), (exchange.ALL, "all heads together")):
        own = rows[rows["head"] == head]
        shown = {t.name: t for t in (*after(figure, f"{name}: against controls"),
                                     *after(figure, f"{name}: other ways to choose")) if t.name}  # fmt: skip
        for (chosen, into), part in own.groupby(["set", "into"]):
            label = f"the predicted, into the {into}" if into != exchange.QUERY else chosen.replace("_", " ")
            assert list(shown[label].x) == part["k"].tolist()
            assert list(shown[label].y) == pytest.approx(part["share"].tolist(), abs=1e-4)


def test_where_heads_look_stands_beside_matched_components():
    table = made.attends_rows()
    figure, targets = inhibition.attends_figure(table), list(dict.fromkeys(table["target"]))
    grey, coloured = figure.data[::2], figure.data[1::2]
    for control, trace in zip(grey, coloured, strict=True):
        own = table[table["component"] == trace.name]
        assert [targets[round(x)] for x in trace.x] == own["target"].tolist()
        assert list(trace.y) == pytest.approx(own["excess"].tolist()) and list(control.y) == pytest.approx([0.05] * 3)
        assert list(control.error_y.array) == pytest.approx([0.04] * 3)


def test_attention_of_two_states_is_the_mean_over_heads_token_by_token():
    before = pd.DataFrame({"token": ["0 a", "1 b"], "L1H0": [0.2, 0.8], "L1H1": [0.4, 0.6]})
    now = before.assign(L1H0=[0.6, 0.4])
    first, second = inhibition.attention_figure({"as it is": before, "without": now}).data
    assert list(first.y) == pytest.approx([0.3, 0.7]) and list(second.y) == pytest.approx([0.5, 0.5])
    assert (first.name, second.name) == ("as it is", "without") and list(first.customdata) == ["0 a", "1 b"]


def test_links_stand_beside_their_own_controls_and_draws():
    table = made.link_rows()
    *controls, drawn, own = composition.links_figure(table).data
    links = table[(table["control"] == "") & table["link"].str.contains("→")]
    assert list(own.x) == links["value"].tolist() and list(own.y) == list(drawn.y) == links["link"].tolist()
    assert list(drawn.x) == pytest.approx(links["null_high"].tolist(), abs=0.05)
    for trace in controls:
        part = table[table["control"] == trace.name.removeprefix("control: ")]
        assert list(trace.x) == pytest.approx(part["value"].tolist()) and list(trace.y) == part["link"].tolist()


def test_listeners_are_told_from_other_heads_model_by_model():
    tables = {"a": made.listener_rows(9), "b": made.listener_rows(12)}
    figure = composition.listeners_figure(tables)
    for (model, table), others, listens in zip(tables.items(), figure.data[::2], figure.data[1::2], strict=True):
        heads = table[table["head"] != "all"]
        for trace, keep in ((others, False), (listens, True)):
            own = heads[heads["listener"] == keep]
            assert list(trace.x) == own["rank"].tolist() and list(trace.y) == own["value"].tolist(), model
            assert [text.split(",")[0] for text in trace.text] == own["head"].tolist()


def test_bases_and_rivals_show_heads_or_readers_beside_their_mean():
    points, mean, *_ = composition.basis_figure({"a": made.basis_rows()}).data
    assert list(points.text) == list(made.HEADS) and list(points.y) == pytest.approx([1.4, 1.5])
    assert list(mean.y) == [1.45] and list(mean.error_y.array) == pytest.approx([0.03])
    table = made.rival_rows()
    figure = composition.rivals_figure({"a": table, "b": table})
    of_all = table[(table["link"] == "all")]
    for trace in figure.data:
        value = "auc" if trace.yaxis == "y" else "r_precision"
        rows = of_all[(of_all["reader"] == "all") == (trace.marker.size == 11)]
        assert list(trace.y) == pytest.approx(rows[value].round(3).tolist())
        assert [rivals.MEASURES[round(x)] for x in trace.x] == rows["measure"].tolist()


def made_roles() -> Roles:
    """Heads with a role; what is not confirmed is not drawn."""

    def entry(name, head, path, reader, mean, width=0.1, attention=(0.1, 0.2, 0.3)):
        effect = Interval(mean, mean - width, mean + width, 40)
        return Role(name, head, path, reader, mean, 0.01, effect, attention)

    movers = [entry(NAME_MOVER, Head(2, i), DIRECT, None, 1 + i, attention=(0.6 + i / 10, 0.2, 0.1)) for i in (0, 1)]
    inhibits = [entry(S_INHIBITION, Head(1, i), QUERY, Head(2, j), -(i + 1 + j / 10)) for i in (0, 1) for j in (0, 1)]
    doubtful = entry(NAME_MOVER, Head(2, 3), DIRECT, None, 0.1, 0.2)
    return Roles((*movers, entry(NEGATIVE_MOVER, Head(2, 2), DIRECT, None, -1.5), *inhibits, doubtful))


def test_every_confirmed_role_stands_at_its_head_with_its_interval_and_attention():
    figure = role_figures.roles_figure(made_roles().shown(), 3, 4)
    marks = {t.name: t for t in figure.data if t.mode == "markers" and t.name}
    assert {name: [Head(y, x) for x, y in zip(t.x, t.y)] for name, t in marks.items()} == {
        NAME_MOVER: [Head(2, 1), Head(2, 0)], NEGATIVE_MOVER: [Head(2, 2)], S_INHIBITION: [Head(1, 1), Head(1, 0)],
    }  # fmt: skip
    assert all(t.marker.color == role_colour(name) for name, t in marks.items()) and len(figure.data[0].x) == 12
    assert "2.00 [1.90, 2.10] logits, n = 40<br>attention: IO 0.70, S1 0.20, S2 0.10" in marks[NAME_MOVER].hovertext[0]
    lengths = {t.name: [(b - a) / 0.6 for a, b in zip(t.x[::3], t.x[1::3])] for t in figure.data if t.mode == "lines"}
    shown = made_roles().shown()
    for name, column in (("attention to IO", "to_io"), ("to S1", "to_s1"), ("to S2", "to_s2")):
        assert lengths[name] == pytest.approx(shown[column].tolist())


def test_the_sketch_names_the_heads_that_were_found_and_what_they_change():
    figure = circuit.sketch(made_roles().frame(), {"S2": "John", "end": "to"}, "Mary")
    texts = [a.text for a in figure.layout.annotations if a.text]
    assert "<b>name mover</b><br>L2H1 L2H0<br>65% of attention<br>goes to IO" in texts
    assert "-2.10 to -1.00<br>nats, in queries" in texts and "+1.00 to +2.00<br>logits" in texts
    assert "next token: <b>Mary</b>" in texts and not any("L2H3" in text for text in texts)
    assert "at <b>John</b> (S2)" in texts
    found = made_roles().frame()
    found = found[found["confirmed"].astype(bool) & found["role"].isin(list(circuit.PLACES))]
    confirmed = set(zip(found["head"], found["effect"]))
    assert {(told[0], told[2]) for trace in figure.data for told in trace.customdata} == confirmed


def test_sentences_follow_the_numbers():
    links = made.link_rows()
    assert "links stand out (p = 0.001). Taken one by one, 3 of 3" in said.links(links).data
    weak = links.assign(p=0.4, p_holm=0.9)
    assert "do not stand out (p = 0.4). Taken one by one, 0 of 3" in said.links(weak).data
    table = made.exchange_rows()
    row = table.query(
        "head == 'all' and set == 'predicted' and into == 'query' and measure == 'log_odds' and k == 2"
    ).iloc[0]
    finding = said.finding(table, "made").data
    assert (
        f"**{row['share']:.0%} [{row['share_low']:.0%}, {row['share_high']:.0%}]**" in finding
        and "2 components" in finding
    )
    assert "at least half" in said.exchange(table).data and f"{row['share']:.0%}" in said.exchange(table).data
    low = table.assign(share=0.2, share_low=0.1, share_high=0.3, matched_share=0.4)
    assert "less than half" in said.exchange(low).data and "no more than 95%" in said.exchange(low).data
    ahead = made.rival_rows().assign(ahead_low=0.1, ahead_high=0.2)
    assert said.rivals({"a": ahead}).data.count("the component is better") == 3
    assert (
        said.rivals({"a": ahead.assign(ahead_low=-0.2, ahead_high=-0.1)}).data.count("better than the component") == 3
    )
    assert said.strongest(made.effect_rows()) == ["L1H0.0"] and said.strongest(made.effect_rows().iloc[:0]) == []
    assert said.hits(made.hit_rows()).data.endswith("Neither plain rule finds more.")
    swapped = made.hit_rows().assign(hit_at_1=lambda rows: rows["predictor"] == "largest_variance")
    assert said.hits(swapped).data.endswith("By largest variance more are found.")
    assert "the first 1, 2, 4" in said.known(table).data and f"%, {row['share']:.0%}, " in said.known(table).data
    told = said.lists(made.says_rows()).data
    assert "L1H0.1: list index 40% [38%, 43%], items -10% [-12%, -7%], n = 200 lists" in told
    assert said.links(links.iloc[:0]) is None


def test_a_table_that_is_not_there_is_empty_and_says_why(monkeypatch):
    monkeypatch.setattr(notebook, "finished", lambda model: {})
    table = notebook.Tables("planted", live=False)["links"]
    assert table.empty and "link" in table and "reproduce --model planted" in table.attrs["missing"]
    assert roles.Roles.of_frame(notebook.Tables("planted", live=False)["roles"]).heads(NAME_MOVER) == []
    assert notebook.by_model("links", notebook.Tables("planted", live=False)) == {}


def test_what_every_experiment_reads_is_made_once_with_the_reason_why_there_is_none(monkeypatch):
    made = []

    def experiment(name):
        def table(c):
            made.append(name)
            if name == "tasks":
                raise NotApplicable("it can do none")
            return pd.DataFrame({"by": [c.quick]})

        return SimpleNamespace(table=table, row=WordsRow)

    monkeypatch.setattr(notebook, "_experiment", experiment)
    monkeypatch.setenv(notebook.QUICK_VARIABLE, "1")
    c = notebook.Tables("a/folder").context
    assert c.quick and c.finished("gate")["by"].all() and c.finished("gate")["by"].all() and c.finished("words") is None
    for _ in range(2):
        with pytest.raises(NotApplicable, match="^it can do none$"):
            c.finished("tasks")
    assert made == ["gate", "tasks"]


def test_a_prompt_of_one_s_own_moves_as_it_does_among_others():
    c = Context(PLANTED, quick=True)
    table = frame(slider.run(c))
    mine = table[table["prompt"] == 0]
    first, second = mine["word"].drop_duplicates()
    answer, other = (first, second) if mine["order"].iloc[0] == IO_FIRST else (second, first)
    again = frame(slider.text_rows(c, table, mine["text"].iloc[0], answer.strip(), other.strip()))
    assert again["word"].tolist() == mine["word"].tolist() and again["setting"].tolist() == mine["setting"].tolist()
    for what in ("attention", "probability", "coefficient", "plain"):
        assert again[what].tolist() == pytest.approx(mine[what].tolist(), abs=1e-5), what


def test_one_prompt_is_told_as_the_model_itself_answers_it():
    planted = plant()
    bridge, text = planted.bridge, "When Mary and John went to the school, John gave the hat to"
    positions = {"IO": ["Mary"], "S1": [("John", 0)]}
    prompt = from_texts([text], ["Mary"], ["John"], planted.tokenizer, positions=positions)
    logits, cache = bridge.run_with_cache(prompt.tokens)
    told = notebook.next_tokens(bridge, prompt, k=1)
    best = logits[0, -1].softmax(-1).topk(1)
    assert told["token"].tolist() == [planted.tokenizer.decode([int(t)]) for t in best.indices]
    assert told["probability"].tolist() == pytest.approx(best.values.tolist(), abs=1e-5)
    looks = notebook.attention_by_token(bridge, prompt, [Head(2, 0)])
    assert looks["L2H0"].tolist() == pytest.approx(cache["blocks.2.attn.hook_pattern"][0, 0, -1].tolist(), abs=1e-5)
    assert looks["token"].iloc[1] == f"1 {text.split()[0]}" or looks["token"].iloc[0] == f"0 {text.split()[0]}"
    assert "**Mary** (IO)" in notebook.named_tokens(prompt, bridge).data
