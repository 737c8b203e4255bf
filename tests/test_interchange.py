"""Lists from the movers' layer on, and a donor's coordinates put into a recipient: by plain hooked runs and by
TransformerLens' own interchange. What was planted carries the answer's index, and what is learned finds it."""

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts, run_with
from transformer_lens.tools.analysis.interchange import SubspaceInterchange, fit_das, intervened_logits

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part, build
from talking_heads_utils.experiments.positional import ends as module
from talking_heads_utils.experiments.positional import interchange, pairs
from talking_heads_utils.experiments.positional.ends import ends, make_ends
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.interchange import LOGIT_DIFFERENCE, MEASURES, MOVED, Sums
from talking_heads_utils.experiments.positional.pairs import Donor, donor_rows, make_pairs, other_index, same_items
from talking_heads_utils.experiments.positional.subspace import Subspace, basis, chosen
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import CONTROL, PLANTED
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import MOVER, plant
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.encoding import encode
from talking_heads_utils.prompts.sets import item_positions

N = 96  # lists: two of each index, order and wording at least
N_LEARNED = 8  # items of a list: so many that their codes fill three dimensions


@pytest.fixture(scope="module")
def lists(planted):
    """Lists of four run up to the planted model's movers."""
    return planted.kept(ends, Lists(Part.SELECTION, 4, N))


@pytest.fixture(params=["planted", "llama"])
def made(request, checkpoints):
    """A model and the ends of lists; movers on two layers."""
    if request.param == "planted":  # a weak channel: 1e-4 means little where scores are in the hundreds
        truth = plant(strength=20.0)
        prompts = laundry.build_laundry(truth.tokenizer, 4, 8)
        return truth.bridge, make_ends(truth.bridge, prompts, (Head(2, 0), Head(1, 2), Head(2, 1)))
    bridge, prompts = load_model(checkpoints["llama"]), random_prompts()
    places = {"end": prompts.positions["end"]} | {f"item_{k} first": torch.full((6,), k + 1) for k in range(4)}
    info, recipe = {"index": [i % 4 for i in range(6)]}, replace(prompts.recipe, task="laundry", n_items=4)
    prompts = replace(prompts, positions=places, info=info, recipe=recipe)
    return bridge, make_ends(bridge, prompts, (Head(2, 3), Head(1, 0)))


def hooked(bridge, made, stream):
    """Candidates' logits and the movers' attention among the items, of a plain run of the whole model with another
    stream at ``end``."""
    rows, end = torch.arange(len(made)), made.prompts.positions["end"]
    items, candidates = item_positions(made.prompts)
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]

    def put(value):
        value[rows, end] = stream.to(value)

    logits, seen = run_with(bridge, made.prompts, [(f"blocks.{made.layer}.hook_resid_pre", put)], patterns)
    looks = [seen[patterns[mover.layer]][rows, mover.head, end].gather(1, items) for mover in made.movers]
    return logits.gather(1, candidates), torch.stack([look / look.sum(-1, keepdim=True) for look in looks], 1)


def test_logits_and_attention_are_those_of_hooked_runs(made, monkeypatch):
    bridge, made = made
    noise = torch.randn(len(made), 3, made.stream.shape[1], generator=torch.Generator().manual_seed(1))
    noise[:, 0] = 0
    stream = made.stream[:, None] + 0.5 * made.stream.std() * noise
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * made.forward.width * 2)  # two of the three variants at once
    logits, attention = made.both(stream)
    assert made.layer == 1
    for k in range(3):
        expected = hooked(bridge, made, stream[:, k])
        torch.testing.assert_close(logits[:, k], expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(attention[:, k].exp(), expected[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attention[:, 1], attention[:, 0], atol=1e-3)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(made.logits(stream[some], some), logits[some])
    torch.testing.assert_close(made.right(logits[some], some), made.right(logits)[some])
    with pytest.raises(OptionError, match="2 lists take"):
        made.logits(stream, slice(0, 2))
    with pytest.raises(OptionError, match="one mover"):
        make_ends(bridge, made.prompts, ())


def test_a_tie_is_no_answer():
    logits = torch.tensor([[[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [3.0, 2.0, 0.0]]])
    assert answer(logits).tolist() == [[1, -1, 0]]


# --- pairs ---


def test_every_pair_of_indices_comes_as_often_and_donors_are_alike_in_all_but_items(lists):
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


def test_donors_of_the_same_items_name_them_in_the_same_order(planted, lists, monkeypatch):
    j, seen = (lists.index + 1) % 4, []
    monkeypatch.setattr(pairs, "encode", lambda *given: seen.append(encode(*given)) or seen[0])
    stream = same_items(lists, j, planted.bridge, planted.tokenizer)
    again = make_ends(planted.bridge, seen[0], lists.movers)
    assert (again.candidates == lists.candidates).all() and (again.index == j).all()
    torch.testing.assert_close(stream, again.stream)


# --- the interchange ---


def table_of(c, n_items=4, **options):
    found = frame(interchange.rows_of(c, n_items, **options))
    return found.set_index(["measure", "subspace", "donor", "k"]).sort_index()


def test_logits_are_those_of_transformer_lens(made):
    bridge, lists = made
    donor = lists.stream.roll(1, 0)
    directions = torch.randn(3, lists.stream.shape[1], generator=torch.Generator().manual_seed(2))
    _, shift = interchange.nested(Subspace.CHOSEN, directions, donor - lists.stream, Donor.OTHER_ITEMS)
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


def test_the_planted_channel_carries_the_index_and_nothing_else_does(planted):
    table = table_of(planted, with_learned=False)
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
    table = table_of(Context(CONTROL, quick=True), with_learned=False)
    assert table.drop(MOVED)["effect"].abs().max() < 1e-3
    assert table.loc[MOVED, "effect"].abs().max() < 0.2, "who answers is a matter of rounding"
    assert table.drop(MOVED)[["of_stream", "of_stream_low", "of_ten", "of_ten_high"]].isna().all().all()


def test_matched_shifts_are_as_long_as_the_chosen_triples_unless_that_is_too_far(planted, lists):
    own = planted.kept(chosen)
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


# --- learned subspaces ---


@pytest.fixture(scope="module")
def weak():
    """A planted model whose channel is weak, so that attention has gradients, and the ends of its lists."""
    truth = plant(strength=20.0)
    prompts = build(truth.tokenizer, Lists(Part.SELECTION, N_LEARNED, 120))
    return truth, make_ends(truth.bridge, prompts, truth.roles[MOVER])


def cosines(B, truth):
    """Of the principal angles between a learned subspace and the planted channel."""
    return torch.linalg.svdvals(B @ truth.channel.T.to(B))


def test_three_learned_dimensions_are_the_planted_channel(weak):
    truth, lists = weak
    targets = interchange.true_targets(N_LEARNED)
    found = interchange.fit(lists, targets, (1, 3), steps=60)
    assert [len(B) for B in found] == [1, 3]
    for B in found:
        torch.testing.assert_close(B @ B.T, torch.eye(len(B)), atol=1e-5, rtol=0)
        assert cosines(B, truth).min() > 0.9
    assert all(p.grad is None for p in truth.bridge.parameters())
    again = interchange.fit(lists, targets, (1,), steps=60)[0]
    torch.testing.assert_close(again, found[0], msg="each is fitted by itself, by one seed")


def test_transformer_lens_finds_the_same(weak):
    truth, lists = weak
    pairs = make_pairs(lists)
    rows = (pairs.donors[Donor.OTHER_ITEMS][:, None] - lists.stream).square().sum(-1).argmin(1)
    tokens, end = lists.prompts.tokens, lists.prompts.positions["end"]
    width = tokens.shape[1]

    def task_logits(both):  # the place of the end and the candidates travel beside the tokens
        at = torch.arange(len(both))
        return truth.bridge(both[:, :width])[at, both[:, width]].gather(1, both[:, width + 1 :])

    inputs = torch.cat([tokens, end[:, None], lists.candidates], 1)
    found = fit_das(
        truth.bridge, "blocks.2.hook_resid_pre", inputs, inputs[rows], pairs.j, task_logits, rank=3,
        base_positions=end, source_positions=end[rows], epochs=2, batch_size=16,
    )  # fmt: skip
    assert cosines(found.basis.T, truth).min() > 0.8


def test_items_without_meaning_are_drawn_once_and_are_neither_index():
    table, again, other = (interchange.drawn_targets(5, seed) for seed in (0, 0, 1))
    assert (table == again).all() and (table != other).any()
    i, j = (~torch.eye(5).bool()).nonzero().T
    assert (table[i, j] != i).all() and (table[i, j] != j).all() and table.min() == 0 and table.max() == 4


def test_an_untrained_copy_has_other_weights_of_the_same_sizes(weak, checkpoints):
    for bridge in (weak[0].bridge, load_model(checkpoints["llama"])):
        before, c = bridge.W_U.detach().clone(), Context("any", loaded=(bridge, None))
        copy = interchange.untrained(c)
        assert copy.W_U.shape == before.shape and not torch.allclose(copy.W_U, before)
        torch.testing.assert_close(copy.W_U, interchange.untrained(c).W_U)
        torch.testing.assert_close(bridge.W_U, before)


def test_learned_rows_beat_their_controls():
    table = table_of(Context(PLANTED, quick=True), 6).xs(Donor.OTHER_ITEMS, level="donor")
    for k in (3, 10):
        own, *controls = (table.loc[(MOVED, kind, k)] for kind in interchange.LEARNED)
        assert own["low"] > max(of["effect"] for of in controls)  # by how much, rounding decides: the steps are few
    assert table.loc[(LOGIT_DIFFERENCE, Subspace.LEARNED, 10), "of_ten"] == 1
