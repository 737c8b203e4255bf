"""Chapter 4's figures, and what its page says: every value out of its own row, every verb by its number."""

import made_icl as made
import pandas as pd
import pytest
from made_icl import OVER_TASKS, POSTS, TASKS
from test_figure_values import after, by_name, column, hover, where, xy

from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.store import Finished
from talking_heads_utils.figures import icl, icl_evidence, icl_redundancy
from talking_heads_utils.site import icl as said
from talking_heads_utils.site import sentences
from talking_heads_utils.site.claim_words import SENTENCES


def shown(figure, entry):
    return by_name(after(figure, entry))


def test_tasks_are_shown_with_most_examples_of_the_held_out_half():
    table = made.task_rows()
    figure = icl.tasks_figure(table)
    tasks = [t.replace(" ", "_") for t in figure.layout.xaxis.ticktext]
    for kind, (name, _) in icl.ASKED.items():
        rows = where(table, half="held-out", examples=kind, n_examples=10)
        trace = by_name(figure.data)[f"examples: {name}"]
        assert {tasks[round(x)]: y for x, y in xy(trace).items()} == pytest.approx(column(rows, "task", "accuracy"))


@pytest.mark.parametrize("b_sees, entry", [("none", "B sees none"), ("shuffled", "B sees labels shuffled")])
def test_patches_are_those_of_their_own_layers_out_and_way(b_sees, entry):
    table = made.patch_rows()
    traces = shown(icl.patches_figure(table), f"past tense, {entry}")
    rows = where(table, task="past_tense", b_sees=b_sees)
    names = {("", ""): "nothing out of A", ("2,3", "zero"): "layers 2, 3: zeros",
             ("2,3", "exchange"): "layers 2, 3: the twin's values"}  # fmt: skip
    for (out, how), name in names.items():
        own = where(rows, out=out, how=how, run="patched")
        assert xy(traces[name]) == pytest.approx(column(own, "layer", "accuracy"), abs=1e-4)
    for run, name in (("a", "A itself"), ("b", "B, nothing patched")):
        assert traces[name].y[0] == pytest.approx(where(rows, run=run, out="")["accuracy"].iloc[0], abs=1e-4)
    copied = column(where(rows, out="", run="patched"), "layer", "copied")
    assert xy(traces["A's own answer copied"]) == pytest.approx(copied, abs=1e-4)


def test_about_right_answers_of_numbers_have_entries_of_their_own():
    table = made.patch_rows()
    here = table["task"] == "plural"
    table.loc[here, ["about", "about_low", "about_high"]] = [[0.25, 0.2, 0.3]]
    figure = icl.patches_figure(table)
    entries = [b.label for b in figure.layout.updatemenus[0].buttons]
    assert [e for e in entries if "about" in e] == ["plural, B sees none: about a x",
                                                    "plural, B sees labels shuffled: about a x"]  # fmt: skip
    assert set(shown(figure, entries[-1])["nothing out of A"].y) == {0.25}


def test_two_layers_out_stand_in_their_own_cell_and_the_post_s_in_a_frame():
    table = made.out_rows()
    figure = icl.layers_out_figure(table)
    assert figure.layout.updatemenus[0].buttons[0].label == "mean over tasks, zeros"
    cells, frame = after(figure, "plural, the twin's values")
    for row in where(table, task="plural", how="exchange").to_dict("records"):
        i, j = list(cells.y).index(row["a"]), list(cells.x).index(row["b"])
        assert cells.z[i][j] == pytest.approx(row["change"], abs=6e-4) and cells.z[j][i] is None
    assert (frame.y[0], frame.x[0]) == POSTS


def test_what_the_first_working_layer_moves_by_is_that_over_tasks():
    table = made.first_rows()
    traces = shown(icl.first_figure(table), "mean over tasks, B sees labels shuffled, zeros")
    rows = where(table, task=OVER_TASKS, b_sees="shuffled", how="zero")
    own = {
        name: where(rows, posts=posts) for name, posts in (("the post's", True), ("other neighbouring layers", False))
    }
    for name, of in own.items():
        assert xy(traces[name]) == pytest.approx(column(of, "a", "moved"))
    assert icl.first_figure(where(table, task="plural")).layout.updatemenus[0].buttons[0].label.startswith("plural")


def test_chosen_sets_stand_beside_matched_ones_of_their_task():
    table = made.set_rows()
    figure = icl_redundancy.redundancy_figure(table)
    assert figure.layout.updatemenus[0].buttons[0].label == "5 heads, at the last token"
    assert list(figure.layout.xaxis.ticktext)[0] == "mean over tasks"
    tasks = (OVER_TASKS, *TASKS)
    for where_, at in (("end", "at the last token"), ("all", "at all tokens")):
        traces = shown(figure, f"5 heads, {at}")
        rows = where(table, where=where_)
        chosen = column(where(rows, heads_are="chosen", n_heads=5), "task", "ratio")
        assert {tasks[round(x)]: y for x, y in xy(traces["chosen heads"]).items()} == pytest.approx(chosen)
        for i, task in enumerate(tasks):
            drawn = [y for x, y in xy(traces["matched sets"]).items() if round(x) == i]
            assert drawn == pytest.approx(where(rows, heads_are="matched", task=task)["ratio"].tolist())
        two = shown(figure, f"2 heads, {at}")
        assert not two["matched sets"].x and len(two["chosen heads"].x) == len(tasks)


@pytest.mark.parametrize("entry, n_heads", [("together", 2), ("one by one", 1)])
def test_what_is_recovered_stands_over_who_recovers_it(entry, n_heads):
    table, whos = made.backup_rows(), list(Who)
    figure = icl_redundancy.backups_figure(table)
    assert figure.layout.updatemenus[0].buttons[0].label == "mean over tasks, together"
    assert len(figure.layout.yaxis.ticktext) == len(whos)
    for kind in ("chosen", "matched"):
        trace = shown(figure, f"mean over tasks, {entry}")[f"{kind} heads"]
        rows = where(table, task=OVER_TASKS, heads_are=kind, n_heads=n_heads)
        for i, who in enumerate(whos):
            drawn = [x for x, y in zip(trace.x, trace.y) if round(y) == i]
            assert drawn == pytest.approx(where(rows, who=who)["share"].tolist())


def test_a_set_that_suffices_is_starred_and_random_heads_are_a_mean():
    table = made.sufficient_rows()
    traces = shown(icl_redundancy.sufficient_figure(table), "plural")
    rows = where(table, task="plural")
    for which in (1, 2):
        own = where(rows, which=which)
        assert xy(traces[f"set {which}"]) == pytest.approx(column(own, "n_heads", "kept"), abs=1e-4)
        assert [size > 0 for size in traces[f"set {which}"].marker.size] == own["suffices"].tolist()
    mean = where(rows, which=0).groupby("n_heads")["kept"].mean().to_dict()
    assert xy(traces["random heads, mean"]) == pytest.approx(mean, abs=1e-4)


def test_belief_is_that_of_its_rate_beside_an_exact_reader_as_strong():
    table, slopes = made.evidence_rows(), made.slope_rows()
    figure = icl_evidence.evidence_figure(table, slopes)
    traces = shown(figure, "yes and no, 32 examples")
    for flip in (0.1, 0.4):
        rows = where(table, labels="yes and no", n_examples=32, flip=flip)
        assert xy(traces[f"{flip:.0%} flipped"]) == pytest.approx(column(rows, "signed", "log_odds"), abs=1e-4)
    ends = [traces[f"{flip:.0%} flipped, exact reader"] for flip in (0.1, 0.4)]
    slopes = [(line.y[1] - line.y[0]) / (line.x[1] - line.x[0]) for line in ends]
    assert slopes[0] / slopes[1] == pytest.approx(2.197 / 0.405, rel=0.01)  # log(9) over log(1.5)
    assert not shown(figure, "yes and no, 16 examples")["10% flipped, exact reader"].x


def test_sums_stand_over_their_number_of_examples_by_rate():
    table = made.sum_rows()
    traces = shown(icl_evidence.sums_figure(table), "yes and no")
    for flip in table["flip"].unique():
        own, trace = where(table, labels="yes and no", flip=flip), traces[icl_evidence.flipped(flip)]
        assert list(trace.y) == pytest.approx(own["ratio"].tolist(), abs=1e-4)
        assert [x / n for x, n in zip(trace.x, own["n_changed"])] == pytest.approx([trace.x[0] / 2] * 3)


def test_heads_that_matter_are_apart_and_named():
    table = made.looks_back_rows()
    traces = shown(icl_evidence.looks_back_figure(table), "plural")
    for important, name in ((True, "heads that matter"), (False, "other heads")):
        rows = where(table, task="plural", important=important)
        assert list(traces[name].y) == pytest.approx((rows["to_y"] - rows["even"]).tolist())
        first = rows.iloc[0]
        told = f"{first['head']}: {first['to_y']:.2f} to earlier answers, {first['to_x']:.2f} to earlier x"
        assert hover(traces[name], 0) == told


@pytest.mark.parametrize("entry, kind", [("MLPs", "mlp"), ("heads of a layer", "heads")])
def test_attributes_are_drawn_for_each_layer_beside_the_twin(entry, kind):
    table = made.part_rows()
    traces = shown(icl_evidence.parts_figure(table), f"past tense, {entry}")
    for attribute in ("exact", "word", "form"):
        name, rows = icl_evidence.ATTRIBUTES[attribute][0], where(table, task="past_tense", attribute=attribute)
        assert xy(traces[name]) == pytest.approx(column(where(rows, part=kind), "layer", "change"), abs=1e-4)
        assert traces[f"{name}, twin"].y[0] == pytest.approx(where(rows, part="twin")["change"].iloc[0], abs=1e-4)


def test_figures_take_tables_that_were_stored(tmp_path):
    """A stored table has missing values where a row has None."""
    for name, table in (("sets", made.set_rows()), ("first", made.first_rows()), ("backups", made.backup_rows())):
        table.to_parquet(tmp_path / name)
        table = pd.read_parquet(tmp_path / name)
        some = "moved" if name == "first" else "ratio" if name == "sets" else "share"
        table.loc[table.index[:3], [some, "low", "high"]] = float("nan")
        draw = {
            "sets": icl_redundancy.redundancy_figure,
            "first": icl.first_figure,
            "backups": icl_redundancy.backups_figure,
        }[name]
        assert "NaN" not in (draw or icl_redundancy.backups_figure)(table).to_json()


# --- sentences ---


@pytest.mark.parametrize("say, table, words", [
    (said.tasks, made.task_rows(), ("Of 2 tasks, 2 are", "With shuffled labels, 38%")),
    (said.tasks, made.task_rows(own=0.32), ("Of 2 tasks, 0 are", "control: none.")),
    (said.functions, made.function_rows(), ("y = 2x + 3: 4% [2%, 7%]", "shuffled labels 2%")),
    (said.patches, made.patch_rows(), ("B sees none: B alone is right in 10%, with A's stream of layer 5 in 59%",)),
    (said.post_here, made.post_rows(), ("nothing out: A's top five 87 85; B answers 30 (2x) at layers 2 and 3",)),
    (said.layers_out, made.out_rows(), ("layers, 2 and 3,", "zeros: -4% [-6%, -1%]", "5 of the 14 other pairs")),
    (said.first, made.first_rows(), ("B sees none, zeros: +0.8",)),
    (said.heads, made.head_rows(), ("15 heads clearly cost", "0.18 to 0.36 nats", "every task: L3H0, L4H1, L4H2 and")),
    (said.sets, made.set_rows(), ("5 heads: 1.50 [1.48, 1.53]", "one layer cost at most 40% of answers (L0)")),
    (said.pairs, made.pair_rows(), ("12 pairs of heads in 2 tasks: 100% clearly cost more", "0% clearly cost")),
    (said.pairs, made.pair_rows(-0.2), ("0% clearly cost more", "100% clearly cost less")),
    (said.backups, made.backup_rows(), ("2 heads go", "other heads and MLPs: 32%", "the post's yardstick: 62%")),
    (said.sufficient, made.sufficient_rows(), ("plural 8 (no second set)", "first sets keep 93%", "exchanged")),
    (said.labels, made.gate_rows(), ("after 32 examples (held-out half):\n\n- A and B: 10% flipped 82% [80%, 85%]",)),
    (said.slopes, made.slope_rows(), ("A and B: 0.100 [0.080, 0.130] nats a label",)),
    (said.readers, made.reader_rows(), ("reader 60% [58%, 63%], the best rival (saturating) 55%, a difference",)),
    (said.sums, made.sum_rows(), ("A and B: 0.88 [0.86, 0.91] for 2 examples, 0.86",)),
    (said.looks_back, made.looks_back_rows(), ("heads that matter: 52% (+37% from an even", "others: 22%")),
    (said.parts, made.part_rows(), ("plural: MLP 2, word -40%, form -1%",)),
])  # fmt: skip
def test_what_is_said_holds_its_rows_numbers(say, table, words):
    told = say(table).data
    assert all(word in told for word in words), told
    assert say(table.iloc[:0]) is None


def test_a_task_without_a_set_that_suffices_is_said_to_have_none():
    table = made.sufficient_rows()
    table.loc[table["task"] == "plural", "suffices"] = False
    assert "More than 12 are needed in plural" in said.sufficient(table).data


@pytest.mark.parametrize("ratio", [1.5, 0.7])
def test_the_finding_and_the_verdict_are_those_of_the_rule(ratio):
    table = made.set_rows(ratio, n_draws=19)
    claim = BY_ID[ClaimId.REDUNDANT]
    finding = said.finding(table, "X").data
    assert finding.startswith("In X, the 5 heads") and f"**{ratio:.2f}**" in finding
    tables = type("Made", (dict,), {"done": {}})(sets=table)
    told = sentences.verdict(tables, ClaimId.REDUNDANT).data
    assert f"**{claim.verdict(claim.measure(table))}**" in told and SENTENCES[ClaimId.REDUNDANT] in told
    tables.done = {"sets": Finished({"not_possible": None}, table, ("source",))}
    assert "to be run again" in sentences.verdict(tables, ClaimId.REDUNDANT).data
    assert sentences.verdict(type("None", (dict,), {"done": {}})(sets=table.iloc[:0]), ClaimId.REDUNDANT) is None
