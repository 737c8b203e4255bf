"""Circuit links: found where planted, absent where not, and the shares are exact."""

import itertools

import pytest
import torch

from talking_heads_utils.errors import LabelError, OptionError
from talking_heads_utils.experiments.inhibition import published as links
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.planted.pair import PLANTED_READER, PLANTED_WRITER, planted_pair
from talking_heads_utils.scores.scores import compute_scores


@pytest.fixture(scope="module")
def scores():
    return compute_scores(planted_pair(1.0))


@pytest.mark.parametrize("measure", links.MEASURES)
def test_the_planted_writer_comes_first_by_either_measure(scores, measure):
    (head, component, value), *_ = links.strongest_writers(scores, PLANTED_READER, "Q", 2, measure)
    assert head == PLANTED_WRITER.of_head and component == PLANTED_WRITER and value > 0.3


def test_best_components_name_the_planted_one_and_its_rank(scores):
    row = links.best_components(scores, [Head(0, 0)], [PLANTED_READER], "Q").iloc[0]
    assert row["component"] == str(PLANTED_WRITER) and row["rank"] == 1 and row["of"] == 16


def test_the_table_of_shares_has_a_row_for_every_writer_and_reader(scores):
    table = links.share_table(scores, [Head(0, 0), Head(0, 1)], [PLANTED_READER, Head(1, 1)], "Q")
    assert table[["writer", "reader"]].agg(" ".join, axis=1).tolist() == [
        "L0H0 L1H0", "L0H0 L1H1", "L0H1 L1H0", "L0H1 L1H1",
    ]  # fmt: skip
    first = table.iloc[0]
    assert first["component"] == str(PLANTED_WRITER) and first["share"] == pytest.approx(1.0, abs=1e-5)
    assert first["head_level"] == pytest.approx(scores.head_level("Q")[0, 0, 1, 0].item())
    terms = (scores.singular_values[0, 1] * scores.pair("L0H1", "L1H1", "Q")).square()
    assert table.iloc[3]["share"] == pytest.approx((terms.max() / terms.sum()).item())


def test_published_edges_are_counted_by_measure_and_k(scores):
    roles = {"a": [PLANTED_WRITER.of_head], "b": [PLANTED_READER, Head(1, 1)]}
    counts = links.published_counts(scores, roles, [("a", "b", "Q")], (1, 2))
    assert list(counts.index) == list(links.MEASURES) and list(counts.columns) == [1, 2]
    assert (counts[1] >= 1).all() and (counts[2] == 2).all(), "with both heads shown, both edges are there"


def test_the_table_has_published_pairs_and_their_controls(small):
    scores = compute_scores(small)
    roles = {"a": [Head(0, 1), Head(1, 2)], "b": [Head(1, 0), Head(2, 3)]}
    table = links.link_table(scores, roles, [("a", "b", "Q")])
    part = table[(table["measure"] == links.ONE_COMPONENT) & (table["reader"] == "L2H3")]
    assert len(part) == 8 and part["published"].sum() == 2
    assert sorted(part["percentile"]) == pytest.approx([100 * i / 7 for i in range(8)])
    first = table[(table["reader"] == "L1H0") & table["published"]]
    assert set(first["writer"]) == {"L0H1"}, "a writer of the reader's own layer is no pair"
    values = scores.best_component("Q")[0, :, 1, 0]
    stronger = table[(table["measure"] == links.ONE_COMPONENT) & (table["reader"] == "L1H0")].set_index("writer")[
        "percentile"
    ]
    assert stronger.idxmax() == f"L0H{values.argmax().item()}"


def test_edges_by_chance_are_the_mean_over_all_choices_of_writers(small):
    scores = compute_scores(small)
    roles = {"a": [Head(0, 1), Head(1, 2)], "b": [Head(1, 0), Head(2, 3)], "c": [Head(0, 0)]}
    of = [("a", "b", "Q"), ("c", "b", "Q"), ("c", "b", "K")]
    known = {("Q", 1): 2, ("Q", 2): 3, ("K", 1): 1, ("K", 2): 1}  # of 4 heads below layer 1, of 8 below layer 2
    for k in (1, 3, 6):
        drawn = {key: list(itertools.combinations(range(4 * key[1]), min(k, 4 * key[1]))) for key in known}
        means = [sum(i < known[key] for choice in of for i in choice) / len(of) for key, of in drawn.items()]
        assert links.edges_by_chance(scores, roles, of, k) == pytest.approx(sum(means))
    every = links.published_edges(scores, roles, of, 8, links.ONE_COMPONENT)
    assert sum(published for *_, published in every) == links.edges_by_chance(scores, roles, of, 8) == 7


def test_the_summary_agrees_with_the_table(small):
    scores = compute_scores(small)
    roles = {"a": [Head(0, 1), Head(0, 2)], "b": [Head(2, 0), Head(2, 3)]}
    summary = links.link_summary(scores, roles, [("a", "b", "V")])
    table = links.link_table(scores, roles, [("a", "b", "V")])
    for _, row in summary.iterrows():
        part = table[(table["measure"] == row["measure"]) & table["published"]]["percentile"]
        assert row["percentile"] == pytest.approx(part.mean()) and row["pairs"] == 4
        assert row["choices"] == 6 and 1 / 6 <= row["p"] <= 1


def test_an_unknown_measure_is_one_clear_error(scores):
    with pytest.raises(OptionError, match="one component"):
        scores.pairs("Q", "heads")
    assert torch.isfinite(scores.pairs("Q", links.WHOLE_HEAD)[0, :, 1]).all()


def test_a_best_component_that_is_the_same_for_all_readers(scores):
    assert links.constant_best(scores, Head(0, 0), [PLANTED_READER], "Q") == PLANTED_WRITER
    best = [int(scores.pair("L0H0", reader, "Q").argmax()) for reader in ("L1H0", "L1H1")]
    found = links.constant_best(scores, Head(0, 0), [Head(1, 0), Head(1, 1)], "Q")
    assert (found is None) == (best[0] != best[1])


def test_the_test_of_best_z_is_exact(small):
    scores = compute_scores(small)
    writers, readers = [Head(0, 1), Head(1, 2)], [Head(2, 0), Head(2, 3)]
    z = scores.best_z("Q")[:, :, 2, [0, 3]].mean(-1)
    test = links.best_z_test(scores, writers, readers, "Q")
    assert test.n == 16 and test.observed == pytest.approx((z[0, 1] + z[1, 2]).item() / 2)
    means = [(z[0, a] + z[1, b]).item() / 2 for a in range(4) for b in range(4)]
    assert test.p == pytest.approx(sum(m >= test.observed - 1e-6 for m in means) / 16)


def test_a_writer_that_comes_too_late_is_one_clear_error(small):
    scores = compute_scores(small)
    with pytest.raises(LabelError, match="not in an earlier layer"):
        links.best_components(scores, [Head(2, 0)], [Head(1, 0)], "Q")
    for writers in ([Head(2, 0)], [Head(0, 0), Head(1, 1)]):
        with pytest.raises(OptionError, match="earlier than what reads it"):
            links.best_z_test(scores, writers, [Head(1, 0), Head(2, 0)], "Q")
    assert links.constant_best(scores, Head(2, 0), [Head(1, 0), Head(1, 1)], "Q") is None
    assert links.led_by_one(scores, [Head(2, 0)], [Head(1, 0)], "Q")[0] == {Head(2, 0): None}


def test_edges_above_a_threshold_are_those_of_the_tables(small):
    """Pair by pair from the scores' own table; a threshold that nothing reaches leaves none."""
    scores = compute_scores(small)
    heads = {"a": [Head(0, 1), Head(1, 2)], "b": [Head(2, 0), Head(2, 3)]}
    expected = []
    for reader in heads["b"]:
        table = scores.table(reader, "Q").sort_values("z", ascending=False)
        for _, row in table[table["z"] >= 1].drop_duplicates(["writer_layer", "writer_head"]).iterrows():
            writer = Component.parse(row["writer"]).of_head
            text = f"{row['writer']} → {reader}<br>z = {row['z']:.1f}"
            expected.append((writer, reader, text, writer in heads["a"]))
    assert sorted(links.edges_above(scores, heads, ("a", "b", "Q"), 1)) == sorted(expected)
    assert 0 < len(expected) < 16 and links.edges_above(scores, heads, ("a", "b", "Q"), 100) == []
