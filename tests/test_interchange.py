"""A donor's coordinates put into a recipient: what was planted carries the answer's index, and TransformerLens says the
same."""

from dataclasses import replace

import pytest
import torch
from test_list_ends import made  # noqa: F401  the fixture
from transformer_lens.tools.analysis.interchange import SubspaceInterchange, intervened_logits

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional import interchange, pairs
from talking_heads_utils.experiments.positional.ends import ends, make_ends
from talking_heads_utils.experiments.positional.interchange import MEASURES, MOVED, Sums
from talking_heads_utils.experiments.positional.pairs import Donor, donor_rows, other_index, same_items
from talking_heads_utils.experiments.positional.subspace import Subspace, basis
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import CONTROL, PLANTED

N = 96  # lists: two of each index, order and wording at least


@pytest.fixture(scope="module")
def planted():
    """The planted model, and lists of four run up to its movers."""
    c = Context(PLANTED, quick=True)
    return c, ends(c, Lists(Part.SELECTION, 4, N))


def table_of(c: Context):
    found = frame(interchange.rows_of(c, 6 if c.loaded else 4, with_learned=False))
    return found.set_index(["measure", "subspace", "donor", "k"]).sort_index()


# --- pairs ---


def test_every_pair_of_indices_comes_as_often_and_donors_are_alike_in_all_but_items(planted):
    _, lists = planted
    generator = torch.Generator().manual_seed(0)
    j = other_index(lists.index, 4, generator)
    times = torch.zeros(4, 4).index_put_((lists.index, j), torch.ones(N), accumulate=True)
    assert (times.diagonal() == 0).all() and (times + N / 12 * torch.eye(4) == N / 12).all()
    info = lists.prompts.info
    for wanted in (j, lists.index):
        rows = donor_rows(lists.prompts, lists.candidates, wanted, generator)
        assert (lists.index[rows] == wanted).all() and (rows != torch.arange(N)).all()
        assert all(info[name][row] == info[name][at] for name in ("wording", "order") for at, row in enumerate(rows))
    items = torch.tensor([[1, 2, 3], [1, 2, 3], [4, 5, 3], [4, 5, 6]])
    of = replace(lists.prompts.select(range(4)), info={"index": [0, 1, 1, 1], "wording": "aaab", "order": ["o"] * 4})
    assert donor_rows(of, items, torch.tensor([1, 0, 0, 0]), generator).tolist() == [2, 0, 0, 0]


def test_donors_of_the_same_items_name_them_in_the_same_order(planted, monkeypatch):
    c, lists = planted
    j, seen = (lists.index + 1) % 4, []
    monkeypatch.setattr(pairs, "entering", lambda bridge, prompts, layer: seen.append(prompts))
    same_items(lists, j, c.bridge, c.tokenizer)
    again = make_ends(c.bridge, seen[0], lists.movers)
    assert (again.candidates == lists.candidates).all() and (again.index == j).all()
    monkeypatch.undo()
    torch.testing.assert_close(pairs.entering(c.bridge, seen[0], lists.layer), again.stream)


# --- the interchange ---


def test_logits_are_those_of_transformer_lens(made):  # noqa: F811
    bridge, lists = made
    donor = lists.stream.roll(1, 0)
    directions = torch.randn(3, lists.stream.shape[1], generator=torch.Generator().manual_seed(2))
    shift = interchange.nested(Subspace.CHOSEN, directions, donor - lists.stream).shift
    rows, end = torch.arange(len(lists)), lists.prompts.positions["end"]

    def task_logits(tokens):
        return bridge(tokens)[rows, end].gather(1, lists.candidates)

    logits = lists.logits(lists.stream[:, None] + shift)
    for k in (1, 3):
        expected = intervened_logits(
            bridge, f"blocks.{lists.layer}.hook_resid_pre", SubspaceInterchange(basis(directions[:k]).T),
            lists.prompts.tokens, donor, task_logits, positions=end,
        )  # fmt: skip
        torch.testing.assert_close(logits[:, k - 1], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[:, 0], logits[:, 2], atol=1e-3)


def test_the_planted_channel_carries_the_index_and_nothing_else_does():
    table = table_of(Context(PLANTED, quick=True))
    for measure in MEASURES:
        of = table.loc[measure]
        three = of.loc[(Subspace.CHOSEN, Donor.OTHER_ITEMS, 3)]
        assert three["of_stream"] > 0.9 and three["of_ten"] > 0.9 and three["p"] == 0.01 and three["n_draws"] == 99
        assert three["low"] > three["matched"] and three["low"] <= three["effect"] <= three["high"]
        assert of.loc[(Subspace.CHOSEN, Donor.OTHER_ITEMS, 1), "of_stream"] < 0.7
        assert abs(of.loc[(Subspace.MATCHED, Donor.OTHER_ITEMS, 3), "of_stream"]) < 0.05
        assert of.loc[(Subspace.WHOLE_HEADS, Donor.OTHER_ITEMS, 0), "of_stream"] == pytest.approx(1, abs=0.2)
        same = of.loc[(Subspace.WHOLE_STREAM, Donor.SAME_INDEX, 0)]
        assert abs(same["of_stream"]) < 0.2 and same["low"] <= 0 <= same["high"]
        assert of.loc[(Subspace.CHOSEN, Donor.SAME_ITEMS, 3), "of_stream"] == pytest.approx(1, abs=0.2)
    assert table.loc[(MOVED, Subspace.CHOSEN, Donor.OTHER_ITEMS, 3), "effect"] > 0.8


def test_without_a_channel_nothing_moves_and_shares_are_empty():
    table = table_of(Context(CONTROL, quick=True))
    assert table.drop(MOVED)["effect"].abs().max() < 1e-3
    assert table.loc[MOVED, "effect"].abs().max() < 0.2, "who answers is a matter of rounding"
    assert table.drop(MOVED)[["of_stream", "of_stream_low", "of_ten", "of_ten_high"]].isna().all().all()


def test_matched_shifts_are_as_long_as_the_chosen_triples_unless_that_is_too_far(planted):
    c, lists = planted
    own = c.kept(interchange.chosen)
    own = replace(own, matched=torch.randn(2, 3, lists.stream.shape[1], generator=torch.Generator().manual_seed(0)))
    triple = basis(own.directions[:3])
    difference = torch.randn(N, lists.stream.shape[1], generator=torch.Generator().manual_seed(1)) + 9 * triple.sum(0)
    shift = interchange.matched(own, difference).square().sum(-1).mean(0).sqrt()
    wanted = (difference @ triple.T).square().sum(-1).mean().sqrt()
    plain = ((difference @ basis(own.matched).mT) ** 2).sum(-1).mean(1).sqrt()
    torch.testing.assert_close(shift, torch.minimum(wanted, 10 * plain))


def test_a_share_of_what_may_be_nothing_is_empty():
    unsure = Sums(torch.tensor([0.1]), torch.linspace(-0.1, 0.3, 100)[:, None])
    sure = Sums(torch.tensor([0.2]), torch.linspace(0.1, 0.3, 100)[:, None])
    assert all(value != value for value in sure.share(unsure))
    assert sure.share(sure) == pytest.approx((1, 1, 1))
    drawn = Sums(torch.tensor([0.1, 0.3]), torch.zeros(100, 2))
    assert drawn.share(sure) == pytest.approx((1.0, 0.525, 1.475))
