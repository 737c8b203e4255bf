"""Chapter 3's figures, and what its page says: every value out of its own row, every verb by its number."""

from itertools import count, product

import pandas as pd
import pytest
from made_rows import around, made

from talking_heads_utils.experiments.editing import baked, costs, gains, removal
from talking_heads_utils.experiments.editing.moves import Extent, Family
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import steering
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures import editing as figures
from talking_heads_utils.site import editing as said

FAMILIES, EXTENTS = (Family.INTO_QUERIES, Family.MOVERS, Family.DIRECT), (Extent.SINGLE, Extent.LEADING, Extent.HEAD)


def edit_rows(best: float = 8.0, draw: float = 2.0, beyond: float = 3.0) -> pd.DataFrame:
    """The best edit on lists of 3, 4 and 6, others and random draws on lists of 4 and 6."""
    rows, unlike = [], count(1)
    for n, part in [*product((3, 4, 6), (Part.HELD_OUT,)), (6, Part.NEW_WORDING), (6, Part.NEW_OBJECTS)]:
        gain = best + n / 100
        rows.append(made(gains.EditRow, edit="L1H3 x 0", family=Family.INTO_QUERIES, extent=Extent.HEAD, best=True,
                         draw=None, part=part, n_items=n, before=0.4, after=0.48, gain=gain, **around(gain),
                         relative=3 * gain, **around(3 * gain, "relative_"), beyond=beyond, **around(beyond, "beyond_"),
                         n_tried=500, n=1000))  # fmt: skip
    for n, family, extent in product((4, 6), FAMILIES, EXTENTS):
        gain = next(unlike) / 10
        rows.append(made(gains.EditRow, edit=f"{family} {extent}", family=family, extent=extent, draw=None, best=False,
                         part=Part.HELD_OUT, n_items=n, gain=gain, low=gain - 1, high=gain + 1, n=300))  # fmt: skip
    for n, i in product((4, 6), range(20)):
        rows.append(made(gains.EditRow, edit=f"draw {i}", family=Family.RANDOM, extent=Extent.HEAD, draw=i, best=True,
                         part=Part.HELD_OUT, n_items=n, gain=draw - i / 10, relative=draw, n=300))  # fmt: skip
    return frame(rows)


def tried_rows() -> pd.DataFrame:
    cells = [("a", 0.0, 1.0), ("b", 0.2, 3.0), ("c", 0.3, 2.0), ("d", -0.1, -1.0), ("e", 0.5, 4.0)]
    return frame([
        made(costs.TriedRow, edit=name, family=family, extent=Extent.SINGLE, draw=None, gain=gain, **around(gain),
             text_loss=loss, n=400, n_tokens=4000)
        for (name, loss, gain), family in zip(cells, (*FAMILIES, Family.RANDOM, Family.DIRECT))
    ])  # fmt: skip


def removal_rows(share: float = 0.4) -> pd.DataFrame:
    rows = []
    for task, head, (i, by) in product(("ioi", "lists"), ("L1H0", "L1H1"), enumerate(figures.CHOICES)):
        own = share + i / 10
        rows.append(made(removal.RemovalRow, task=task, head=head, component=f"{head}.{i}", chosen_by=by,
                         inhibition=0.5, share=own, **around(own, "share_"), p_holm=0.02,
                         matched=None if by == "whole_head" else -0.05, n=500))  # fmt: skip
    return frame(rows)


def trace(figure, name: str):
    return [t for t in figure.data if t.name == name]


def test_a_removal_stands_over_its_head_beside_its_matched_components():
    figure = figures.removal_figure(removal_rows())
    own, *_ = trace(figure, "strongest on other prompts")
    assert list(own.y) == pytest.approx([0.4, 0.4]) and list(own.x) == pytest.approx([-0.2, 0.8])
    matched, *_ = trace(figure, "95% of matched components lie below")
    assert list(matched.y) == pytest.approx([0.1, 0.1])  # -0.05 of an I(m) of 0.5
    assert len(figure.layout.updatemenus[0].buttons) == 2


def test_the_best_edit_and_every_draw_are_drawn_in_both_units():
    table = edit_rows()
    figure = figures.gains_figure(table)
    points, percent = trace(figure, "best edit")
    assert list(points.x) == [3, 4, 6] and list(points.y) == pytest.approx([8.03, 8.04, 8.06])
    assert list(percent.y) == pytest.approx([24.09, 24.12, 24.18])
    draws = trace(figure, "best edits of random heads")[0]
    assert sorted(draws.y) == pytest.approx(sorted(table.loc[table["draw"].notna(), "gain"]))


def test_every_family_stands_at_its_own_extent():
    table = edit_rows()
    figure = figures.families_figure(table)
    for family in FAMILIES:
        (first, _) = trace(figure, family.replace("_", " "))  # the longest lists first
        own = table[(table["family"] == family) & (table["n_items"] == 6) & ~table["best"]]
        assert {e.split()[-1]: y for e, y in zip(first.customdata, first.y)}.items() >= {
            row["extent"]: pytest.approx(row["gain"]) for _, row in own.iterrows() if row["extent"] != Extent.HEAD
        }.items()


def test_the_front_is_what_none_beats_in_both():
    assert figures.pareto(tried_rows())["edit"].tolist() == ["d", "a", "b", "e"]
    (front,) = trace(figures.tried_figure(tried_rows()), "beaten by none in both")
    assert list(front.y) == [-1.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("best, draw, beyond, words", [
    (25.0, 2.0, 3.0, ("more than the best", "is beyond what a constant", "points and percent")),
    (8.0, 9.0, -3.0, ("not clearly more than the best", "is less than what a constant", "reached in percent.")),
    (2.0, 0.0, 0.0, ("more than the best", "not clearly beyond", "neither in points nor in percent")),
])  # fmt: skip
def test_gains_are_told_as_they_are(best, draw, beyond, words):
    told = said.gains(edit_rows(best, draw, beyond)).data
    assert all(word in told for word in words), told


def test_what_needs_the_whole_head_is_named():
    table = edit_rows()
    assert (
        "In the family *into queries*, a gain needs the whole head" in said.families(table).data
    )  # its head is the best of all
    here = (table["family"] == Family.DIRECT) & (table["extent"] == Extent.HEAD)
    table.loc[here, ["gain", "low", "high"]] = [9.0, 7.0, 11.0]
    assert "In the family *into queries* and *direct*, a gain needs" in said.families(table).data


@pytest.mark.parametrize("share, word", [(0.4, "at least a quarter"), (0.1, "less than a quarter"), (0.26, "about a")])
def test_a_removal_counts_from_a_quarter_on(share, word):
    assert word in said.removal(removal_rows(share)).data


def test_other_sentences_hold_their_rows_numbers():
    assert "n = 1000" in said.elsewhere(edit_rows()).data and "+8.1" in said.elsewhere(edit_rows()).data
    assert "Of 5 edits, 4 are beaten by no other in both gain and cost; 2 of these" in said.tried(tried_rows()).data
    row = made(steering.GainRow, part="held_out", n_items=6, subspace="chosen", method="correction", gain=5.0,
               **around(5.0, "gain_"))  # fmt: skip
    assert "a constant for each index: +5.0" in said.beside_steering(edit_rows(), frame([row])).data
    both = [made(baked.BakedRow, n_items=4, by=by, before=0.5, after=0.6, apart=1e-5) for by in ("package", "other")]
    assert "Logits differ by 1.0e-05" in said.baked(frame(both)).data
    cost = made(costs.CostRow, edit="e", what="ioi", change=-2.0, **around(-2.0))
    assert "-2.0 [-2.0, -2.0] points on IOI" in said.costs(frame([cost])).data
    assert "40% to 48%" in said.known(edit_rows()).data
    assert said.finding(edit_rows(), "X").data.startswith("In X, the best of 500 edits of the weights raises accuracy")
    assert said.gains(edit_rows().iloc[:0]) is None
