"""What the chapters draw and say, out of the tables that ship: every point is a row of its own series, every interval
in a sentence one of a row, and every verb follows its number."""

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from talking_heads_utils import roles
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.words import WordsRow
from talking_heads_utils.experiments.inhibition import slider
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.store import Finished
from talking_heads_utils.figures import (
    circuit,
    composition,
    icl,
    icl_evidence,
    icl_redundancy,
    inhibition,
    models,
    traversal,
)
from talking_heads_utils.figures import editing as editing_figures
from talking_heads_utils.figures import positional as positional_figures
from talking_heads_utils.figures import roles as role_figures
from talking_heads_utils.figures.data import tidy
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Head
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.ioi import IO_FIRST
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.site import editing, notebook, positional, sentences
from talking_heads_utils.site import icl as icl_said
from talking_heads_utils.site import inhibition as inhibition_said
from talking_heads_utils.site.claim_words import SENTENCES

MODEL, PUBLISHED = notebook.Tables("smollm2", live=False), notebook.Tables("gpt2-weights", live=False)
THREE = positional.three(MODEL["components"])


class Drawn(NamedTuple):
    """A figure of a table. value: the column that is drawn, or the columns by words in menu, panel or axis; by: what
    the rows of one series have in common; names: of the traces that hold rows, as a regular expression."""

    figure: Callable[[pd.DataFrame], object]
    table: str
    value: str | dict[str, str]
    by: tuple[str, ...]
    names: str = ".*"
    axis: str = "y"
    ends: str = ""
    where: str = "index == index"
    digits: int = 3  # that are drawn


DRAWN = {
    "links": Drawn(composition.links_figure, "links", "value", ("control",), "control.*|the link", "x", digits=1),
    "listeners": Drawn(lambda t: composition.listeners_figure({"a": t}), "listeners", "value", ("listener",), digits=1),
    "basis": Drawn(lambda t: composition.basis_figure({"a": t}), "basis", "ratio", ("reader",)),
    "rivals": Drawn(lambda t: composition.rivals_figure({"a": t}), "rivals",
                    {"writers before": "auc", "writers in": "r_precision"}, ("link",)),
    "exchange": Drawn(inhibition.exchange_figure, "exchange", "share", ("head", "set", "into", "measure"),
                      ends="share_"),
    "effects": Drawn(inhibition.effects_figure, "effects", {"I(m)": "effect", "score": "score"}, ("head", "mover"), ""),
    "slider": Drawn(inhibition.slider_figure, "slider", {"attention to": "attention", "probability": "probability"},
                    ("direction", "name"), where="not prompt > 1"),
    "attends": Drawn(inhibition.attends_figure, "attends", "excess", ("component",), "L.*|mean"),
    "decoding": Drawn(positional_figures.decoding_figure, "decoding", "right",
                      ("n_items", "subspace", "feature", "split"), "(list index|item)(, any head)?"),
    "interchange": Drawn(positional_figures.dimensions_figure, "interchange", "effect",
                         ("n_items", "subspace", "measure"), "components.*|learned.*|inhibition.*|the whole.*",
                         where="donor == 'other_items'"),
    "margins": Drawn(positional_figures.crowding_figure, "margins", "value", ("n_items",)),
    "scales": Drawn(positional_figures.scales_figure, "scales", "accuracy", ("n_items", "subspace"), ".*mean|the.*"),
    "order": Drawn(positional_figures.order_figure, "order", "accuracy", ("n_items", "order"), "the model"),
    "line": Drawn(traversal.line_figure, "line", {"attention to": "attention", "answered with": "answered"},
                  ("n_items", "component", "list_index"), r"item \d(, random direction)?", where="n_items == 4"),
    "gains": Drawn(traversal.gains_figure, "steering-gains", "gain", ("n_items", "part", "subspace"), "the.*", "x",
                   "gain_", digits=2),
    "tasks": Drawn(icl.tasks_figure, "tasks", "accuracy", ("examples", "half")),
    "patches": Drawn(icl.patches_figure, "patches", "accuracy", ("task", "b_sees", "out", "how"), "nothing.*|layers.*",
                     where="task in ['plural', 'antonyms']"),
    "first-layer": Drawn(icl.first_figure, "first-layer", "moved", ("task", "b_sees", "how", "posts")),
    "evidence": Drawn(lambda t: icl_evidence.evidence_figure(t, MODEL["slopes"]), "evidence", "log_odds",
                      ("labels", "flip", "n_examples"), r"\d+% flipped"),
    "sums": Drawn(icl_evidence.sums_figure, "sums", "ratio", ("flip",)),
    "parts": Drawn(icl_evidence.parts_figure, "parts", "change", ("task", "part", "attribute"),
                   where="task in ['plural', 'antonyms']"),
    "sets": Drawn(icl_redundancy.redundancy_figure, "sets", "ratio", ("heads_are", "where", "n_heads"), "chosen.*"),
    "backups": Drawn(icl_redundancy.backups_figure, "backups", "share", ("task", "heads_are", "alone"), axis="x",
                     where="task in ['all', 'plural'] and (draw.isna() or draw < 3)"),
    "sufficient": Drawn(icl_redundancy.sufficient_figure, "sufficient", "kept", ("task", "which"), r"set \d"),
    "removal": Drawn(editing_figures.removal_figure, "removal", "share", ("task", "n_items", "chosen_by"),
                     "[sn].*|the.*", ends="share_"),
    "edit-gains": Drawn(editing_figures.gains_figure, "edit-gains", {"points": "gain", "percent": "relative"},
                        ("part", "best"), "best.*", digits=1),
    "families": Drawn(editing_figures.families_figure, "edit-gains", "gain", ("family", "n_items"),
                      "into.*|movers|direct", digits=1),
    "tried": Drawn(editing_figures.tried_figure, "edit-tried", "gain", ("family",), "[^b].*", digits=2),
    "gate": Drawn(models.gate_figure, "gate", "accuracy", ("n_items", "order", "task", "wording"), ".*order"),
    "words": Drawn(models.words_figure, "tasks", "accuracy", ("task", "examples")),
    "circuit": Drawn(lambda t: role_figures.exchange_figure(t[t["measure"] == "exchange"]), "circuit", "effect",
                     ("measure",), "heads.*"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_every_point_is_a_row_of_its_own_series(name):
    """With its interval, where one is drawn; no two entries of a menu draw the same."""
    of = DRAWN[name]
    rows = (PUBLISHED if of.table == "links" else MODEL)[of.table].query(of.where)
    points = tidy(json.loads(of.figure(rows).to_json()))
    points["trace"] = points["trace"].fillna("") if "trace" in points else ""
    drawn = points[points["trace"].str.fullmatch(of.names)]
    places = [place for place in ("menu", "panel", "y_axis", "trace") if place in drawn]
    groups = [own for _, own in drawn.groupby(places, dropna=False, sort=False)]
    assert groups, "no series has this name"
    for own in groups[:: max(1, len(groups) // 12)]:
        told = " ".join(str(own[place].iloc[0]) for place in ("menu", "panel", "y_axis") if place in own)
        (value,) = ([of.value] if isinstance(of.value, str) else
                    {column for words, column in of.value.items() if words in told})  # fmt: skip
        series = [set(map(tuple, like(rows, of, value, point)[list(of.by)].astype(str).to_numpy()))
                  for _, point in own.iloc[:: max(1, len(own) // 6)].iterrows()]  # fmt: skip
        assert set.intersection(*series), own.iloc[0].to_dict()
    if "menu" in drawn:
        shown = [own.drop(columns="menu").to_csv() for _, own in drawn.reset_index(drop=True).groupby("menu")]
        assert len(shown) == len(set(shown))


def like(rows: pd.DataFrame, of: Drawn, value: str, point: pd.Series) -> pd.DataFrame:
    """Rows of which a point is drawn, as it is rounded for a page."""
    wanted = {value: point[of.axis]}
    if pd.notna(point.get(f"{of.axis}_low")) and f"{of.ends or value + '_'}low" in rows:
        wanted |= {f"{of.ends or value + '_'}{end}": point[f"{of.axis}_{end}"] for end in ("low", "high")}
    elif pd.notna(point.get(f"{of.axis}_low")):
        wanted |= {end: point[f"{of.axis}_{end}"] for end in ("low", "high")}
    kept = rows
    for column, one in wanted.items():
        kept = kept[(kept[column] - one).abs() < 1.2 * 10**-of.digits]
    return kept


def test_maps_show_what_stands_in_their_cell():
    """Of two layers out, with the post's in a frame; and of the grid at every step of its slider."""
    table = MODEL["layers-out"].query("task == 'plural' and how == 'zero'")
    cells, framed = icl.layers_out_figure(table).data
    for row in table.iloc[::40].to_dict("records"):
        i, j = list(cells.y).index(row["a"]), list(cells.x).index(row["b"])
        assert cells.z[i][j] == pytest.approx(row["change"], abs=6e-4) and cells.z[j][i] is None
    assert table.query("posts")[["a", "b"]].to_numpy().tolist() == [[framed.y[0], framed.x[0]]]
    grid = MODEL["map"]
    figure = traversal.traversal_figure(grid, THREE)
    middle = grid[(grid["third"] == 0) & (grid["n_items"] == 4)].set_index(["second", "first"])
    step = figure.layout.sliders[0].steps[figure.layout.sliders[0].active].args[0]
    for i, j in ((0, 0), (3, 7), (10, 5)):
        at = abs(middle.index.to_frame() - (figure.data[0].y[i], figure.data[0].x[j])).sum(axis=1)
        cell = middle.loc[at.idxmin()]
        assert int(step["z"][0][i][j]) == cell["attended"]
        assert step["customdata"][0][i][j] == f"item {cell['attended']:.0f}: {cell['attention']:.0%}"
    with pytest.raises(ValueError, match="as many settings"):
        traversal.traversal_figure(grid[(grid["n_items"] == 4) | (grid["third"] > -1)], THREE)


def test_points_change_with_the_length_and_their_means_with_them():
    table = MODEL["points"]
    figure = positional_figures.points_figure(table, THREE, 4)
    assert figure.layout.sliders[0].active == 1 and list(figure.data[0].x) == list(figure.frames[1].data[0].x)
    for drawn in figure.frames:
        rows, (cloud, *means) = table[table["n_items"] == int(drawn.name)], drawn.data
        assert [symbol == "circle" for symbol in cloud.marker.symbol] == rows["right"].tolist()
        for axis, mean in zip("xyz", means, strict=True):
            of = rows.groupby("list_index")[axis]
            assert list(cloud[axis]) == pytest.approx(rows[axis].tolist(), abs=0.006)
            assert list(mean.y) == pytest.approx(of.mean().tolist(), abs=1e-3)
            assert list(mean.error_y.array) == pytest.approx((1.96 * of.sem()).tolist(), abs=2e-3)


def test_heads_that_matter_are_apart_and_the_front_is_what_none_beats_in_both():
    table = MODEL["looks-back"].query("task == 'plural'")
    for trace in icl_evidence.looks_back_figure(table).data:
        rows = table[table["important"] == (trace.name == "heads that matter")]
        assert list(trace.y) == pytest.approx((rows["to_y"] - rows["even"]).tolist(), abs=6e-4)
    tried = MODEL["edit-tried"]
    front = editing_figures.pareto(tried)
    for row in tried.itertuples():
        beaten = ((tried["gain"] >= row.gain) & (tried["text_loss"] <= row.text_loss)).sum() > 1
        assert (row.edit in set(front["edit"])) != beaten


def test_every_confirmed_role_stands_at_its_head_and_in_the_sketch():
    found = roles.Roles.of_frame(MODEL["roles"])
    figure = role_figures.roles_figure(found.shown(), 30, 9)
    marks = {t.name: {Head(y, x) for x, y in zip(t.x, t.y)} for t in figure.data if t.mode == "markers" and t.name}
    assert marks == {name: set(found.heads(name)) for name in marks} and roles.NAME_MOVER in marks
    sketch = circuit.sketch(MODEL["roles"], {"S2": "John", "end": "to"}, "Mary")
    told = " ".join(note.text for note in sketch.layout.annotations if note.text)
    assert all(str(head) in told for head in found.heads(roles.S_INHIBITION)) and "next token: <b>Mary</b>" in told


def test_attention_of_two_states_is_the_mean_over_heads_token_by_token():
    before = pd.DataFrame({"token": ["0 a", "1 b"], "L1H0": [0.2, 0.8], "L1H1": [0.4, 0.6]})
    first, second = inhibition.attention_figure({"as it is": before, "without": before.assign(L1H0=[0.6, 0.4])}).data
    assert list(first.y) == pytest.approx([0.3, 0.7]) and list(second.y) == pytest.approx([0.5, 0.5])


# --- sentences ---

MANY = {  # what takes several models' tables, or more than one
    inhibition_said.listeners: lambda: [{"a": MODEL["listeners"]}],
    inhibition_said.basis: lambda: [{"a": MODEL["basis"]}],
    inhibition_said.rivals: lambda: [{"a": MODEL["rivals"]}],
    positional.points: lambda: [MODEL["points"], THREE],
    positional.traversal: lambda: [MODEL["map"], MODEL["reach"]],
    positional.known: lambda: [{"a": (MODEL["interchange"], MODEL["decoding"])}],
    editing.beside_steering: lambda: [MODEL["edit-gains"], MODEL["steering-gains"]],
    inhibition_said.finding: lambda: [MODEL["exchange"], "X"], positional.finding: lambda: [MODEL["interchange"], "X"],
    editing.finding: lambda: [MODEL["edit-gains"], "X"], icl_said.finding: lambda: [MODEL["sets"], "X"],
    icl_said.post_here: lambda: [pd.DataFrame(dict(out="", a_top_five="87 85", layer=[0, 1], b_patched=[30, 21]))],
    inhibition_said.links: lambda: [PUBLISHED["links"]],
}  # fmt: skip
OF_TABLE = {
    inhibition_said: dict(exchange="exchange", known="exchange", outcomes="exchange", hits="hits", effects="effects",
                          says="says", lists="says", moved="slider", attends="attends"),
    positional: dict(components="components", decoding="decoding", interchange="interchange", line="line",
                     margins="margins", scales="scales", order="order", gains="steering-gains"),
    editing: dict(removal="removal", gains="edit-gains", families="edit-gains", elsewhere="edit-gains",
                  costs="edit-costs", tried="edit-tried", baked="edit-baked", known="edit-gains"),
    icl_said: dict(tasks="tasks", functions="functions", patches="patches", layers_out="layers-out",
                   first="first-layer", heads="heads", sets="sets", pairs="pairs", backups="backups",
                   sufficient="sufficient", labels="labels", slopes="slopes", readers="readers", sums="sums",
                   looks_back="looks-back", parts="parts"),
}  # fmt: skip
SAID = MANY | {getattr(module, say): lambda table=table: [MODEL[table]]
               for module, names in OF_TABLE.items() for say, table in names.items()}  # fmt: skip
INTERVAL = re.compile(r"([+-]?\d[\d.]*)(%?) \[([+-]?[\d.]+)%?, ([+-]?[\d.]+)%?\]")


def numbers_of(tables) -> np.ndarray:
    """Each row's numbers, padded."""
    frames = [table for one in tables for table in (one.values() if isinstance(one, dict) else [one])]
    frames = [part for table in frames for part in (table if isinstance(table, tuple) else (table,))]
    rows = [f.select_dtypes("number").astype(float).to_numpy(na_value=np.nan) for f in frames if hasattr(f, "columns")]
    return np.concatenate([np.pad(r, ((0, 0), (0, 30 - r.shape[1])), constant_values=np.nan) for r in rows])


@pytest.mark.parametrize("say", SAID, ids=lambda say: f"{say.__module__.rpartition('.')[2]}.{say.__name__}")
def test_every_interval_in_a_sentence_is_one_of_a_row(say):
    given = SAID[say]()
    told = say(*given).data
    rows = numbers_of(given) if INTERVAL.search(told) else None
    for mean, percent, low, high in INTERVAL.findall(told):
        off = 0.51 * 10.0 ** -len(mean.partition(".")[2]) * (0.01 if percent else 1)
        wanted = np.array([float(value) for value in (mean, low, high)]) * (0.01 if percent else 1)
        assert (np.abs(rows[:, :, None] - wanted) <= off).any(1).all(1).any(), (mean, low, high)
    assert "nan" not in told and say(given[0][:0] if hasattr(given[0], "columns") else {}, *given[1:]) is None


def told(say, name: str, **changes) -> str:
    """What is said where some columns hold something else."""
    return say((PUBLISHED if name == "links" else MODEL)[name].assign(**changes)).data


@pytest.mark.parametrize("say, name, changes, words", [
    (inhibition_said.links, "links", dict(p=0.001, p_holm=0.03), "stand out (p = 0.001). Taken one by one, 4 of 4"),
    (inhibition_said.links, "links", dict(p=0.4, p_holm=0.9), "do not stand out (p = 0.4). Taken one by one, 0 of 4"),
    (inhibition_said.exchange, "exchange", dict(share_low=0.6), "at least half"),
    (inhibition_said.exchange, "exchange", dict(share_low=0.1, share_high=0.3), "less than half"),
    (inhibition_said.exchange, "exchange", dict(share=0.2, matched_share=0.4), "no more than 95%"),
    (inhibition_said.hits, "hits", dict(hit_at_1=True), "Neither plain rule finds more."),
    (inhibition_said.hits, "hits", dict(hit_at_1=lambda rows: rows["predictor"] == "largest_variance"),
     "By largest variance more are found."),
    (positional.interchange, "interchange", dict(low=lambda t: t["low"].where(t["subspace"] != "whole_heads", 9.0)),
     "Something else in it works against the heads"),
    (positional.decoding, "decoding", dict(p=0.01), "that is more than"),
    (positional.decoding, "decoding", dict(p=0.3), "that is no clearly more than"),
    (positional.margins, "margins", dict(p=0.01, low=0.1), "than by chance in lists of 4, 6 and 8"),
    (positional.margins, "margins", dict(p=0.2), "than by chance at no length"),
    (positional.scales, "scales", dict(p=0.01, change_low=0.1), "answered better in lists of 4, 6 and 8"),
    (positional.scales, "scales", dict(p=0.2), "answered better at no length"),
    (positional.gains, "steering-gains", dict(beyond_low=-1.0), "neither way to steer gains more than the correction"),
    (positional.gains, "steering-gains", dict(beyond_low=1.0), "more than by the correction is gained by one setting"),
    (editing.removal, "removal", dict(share_low=0.3), "at least a quarter"),
    (editing.removal, "removal", dict(share_low=0.1, share_high=0.2), "less than a quarter"),
    (editing.removal, "removal", dict(share_low=0.1, share_high=0.3), "about a quarter"),
    (editing.gains, "edit-gains", dict(low=99.0, beyond_low=1.0, gain=25.0, relative=60.0), "is more than the best"),
    (editing.gains, "edit-gains", dict(low=-1.0, beyond_low=-1.0, beyond_high=1.0), "is not clearly beyond what"),
    (editing.gains, "edit-gains", dict(beyond_low=-2.0, beyond_high=-1.0, gain=2.0, relative=9.0), "is less than what"),
    (editing.gains, "edit-gains", dict(gain=25.0, relative=60.0), "reached in points and percent"),
    (editing.gains, "edit-gains", dict(gain=2.0, relative=9.0), "reached neither in points nor in percent"),
    (editing.families, "edit-gains", dict(low=-1.0), "In no family does a gain clearly need the whole head"),
    (editing.families, "edit-gains", dict(low=1.0, high=0.0, gain=2.0), "a gain needs the whole head"),
    (icl_said.tasks, "tasks", dict(low=0.0, high=1.0), "control: none."),
    (icl_said.pairs, "pairs", dict(low=0.1, high=0.2), "100% clearly cost more"),
    (icl_said.pairs, "pairs", dict(low=-0.2, high=-0.1), "0% clearly cost more"),
    (icl_said.sufficient, "sufficient", dict(suffices=False), "are needed in plural"),
    (icl_said.backups, "backups", dict(share=-0.1), "Below 0: they, too, write less"),
])  # fmt: skip
def test_verbs_follow_the_numbers(say, name, changes, words):
    assert words in told(say, name, **changes)


def test_findings_and_rivals_follow_the_numbers():
    ahead = MODEL["rivals"].assign(ahead_low=0.1, ahead_high=0.2)
    assert inhibition_said.rivals({"a": ahead}).data.count("the component is better") == 3
    behind = ahead.assign(ahead_low=-0.2, ahead_high=-0.1)
    assert inhibition_said.rivals({"a": behind}).data.count("better than the component") == 3
    assert "does not clearly carry" in positional.finding(MODEL["interchange"].assign(low=-1.0), "X").data
    for low, high, verb in ((1.0, 2.0, "raises"), (-2.0, -1.0, "lowers"), (-1.0, 1.0, "does not clearly change")):
        assert verb in editing.finding(MODEL["edit-gains"].assign(low=low, high=high), "X").data
    assert "no clearly more attention" in positional.traversal(MODEL["map"], MODEL["reach"].assign(mean_p=0.5)).data
    assert inhibition_said.strongest(MODEL["effects"]) == ["L20H0.0"] != inhibition_said.strongest(pd.DataFrame())


def test_a_verdict_is_that_of_the_rule():
    table, claim = MODEL["sets"], BY_ID[ClaimId.REDUNDANT]
    tables = type("Made", (dict,), {"done": {}})(sets=table)
    said = sentences.verdict(tables, ClaimId.REDUNDANT).data
    assert f"**{claim.verdict(claim.measure(table))}**" in said and SENTENCES[ClaimId.REDUNDANT] in said
    tables.done = {"sets": Finished({"not_possible": None}, table, ("source",))}
    assert "to be run again" in sentences.verdict(tables, ClaimId.REDUNDANT).data
    assert sentences.verdict(type("None", (dict,), {"done": {}})(sets=table.iloc[:0]), ClaimId.REDUNDANT) is None


# --- what a notebook asks for ---


def test_a_table_that_is_not_there_is_empty_and_says_why(monkeypatch):
    monkeypatch.setattr(notebook, "finished", lambda model: {})
    table = notebook.Tables("planted", live=False)["links"]
    assert table.empty and "link" in table and "reproduce --model planted" in table.attrs["missing"]
    assert roles.Roles.of_frame(notebook.Tables("planted", live=False)["roles"]).heads(roles.NAME_MOVER) == []
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
    c, table = Context(PLANTED), notebook.Tables(PLANTED, live=False)["slider"]
    mine = table[table["prompt"] == 0]
    first, second = mine["word"].drop_duplicates()
    answer, other = (first, second) if mine["order"].iloc[0] == IO_FIRST else (second, first)
    again = frame(slider.text_rows(c, table, mine["text"].iloc[0], answer.strip(), other.strip()))
    assert again["word"].tolist() == mine["word"].tolist() and again["setting"].tolist() == mine["setting"].tolist()
    for what in ("attention", "probability", "coefficient", "plain"):
        assert again[what].tolist() == pytest.approx(mine[what].tolist(), abs=1e-3), what


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
