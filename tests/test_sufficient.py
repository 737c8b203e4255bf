"""How few heads suffice, where it is known: copies, parts, one alone; and the accuracy against runs with hooks."""

from __future__ import annotations

import pytest
import torch
from conftest import run_with

from talking_heads_utils.experiments.icl import sufficient
from talking_heads_utils.experiments.icl.known import FILLERS, N_HEADS, N_WORDS, Kind, Plan, empty, planted
from talking_heads_utils.experiments.icl.sufficient import disjoint, grow, kept, random_sets, rows_of
from talking_heads_utils.experiments.icl.swaps import Ready, Where
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in

A, B, C, D = Head(0, 0), Head(0, 5), Head(1, 1), Head(1, 7)


def ready(written: dict[Head, float], kind: Kind = Kind.PARTS, key=(), threshold: float = 1.5, n: int = 40):
    """A planted transformer that says a filler unless the answer is written more than ``threshold``."""
    bridge = empty()
    select, held = planted(Plan(kind, written, key, room=1.0), n, bridge=bridge)
    with torch.no_grad():
        bridge.embed.original_component.weight[0, N_WORDS + FILLERS.start] = threshold
    return [Ready(r.asked, *(prepare(bridge, p) for p in (r.asked.prompts, r.asked.twins))) for r in (select, held)]


def test_of_two_copies_each_suffices_by_itself():
    """Each writes 2; together no more than 3 is let through."""
    select, held = ready({A: 2.0, C: 2.0}, Kind.COPIES, [A, C])
    found = disjoint(select)
    assert [grown.heads for grown in found[:2]] in ([[A], [C]], [[C], [A]])
    assert [grown.suffices for grown in found] == [True, True, False]
    assert found[0].selected == [0.0, 1.0]
    rows = list(rows_of(select, held, model="m", n_everywhere=20))
    first = next(row for row in rows if row.suffices)
    assert (first.which, first.n_heads, first.kept, first.everywhere, first.without) == (1, 1, 1.0, 1.0, 1.0)


def test_of_two_parts_only_both_suffice():
    select, held = ready({A: 1.0, C: 1.0})
    found = disjoint(select)
    assert [grown.suffices for grown in found] == [True, False] and set(found[0].heads) == {A, C}
    rows = list(rows_of(select, held, model="m", n_everywhere=20))
    first = [row for row in rows if row.which == 1]
    assert [(row.n_heads, row.suffices, row.kept) for row in first] == [(0, False, 0), (1, False, 0), (2, True, 1)]
    assert first[-1].without == 0 and first[-1].everywhere == 1  # nothing is left without them
    assert (first[0].everywhere, first[1].without) == (None, None)
    second = [row for row in rows if row.which == 2]
    assert len(second) == 1 + sufficient.MOST_HEADS and not any(row.suffices for row in second)
    drawn = [row for row in rows if row.which == 0]
    assert [row.draw for row in drawn] == list(range(1, 11)) and {row.n_heads for row in drawn} == {2}
    assert all(row.kept == row.selected == 0 and not row.suffices for row in drawn)


def test_four_parts_of_which_two_suffice_make_two_sets():
    select, _ = ready({A: 1.1, B: 1.0, C: 0.9, D: 0.8})
    assert [grown.heads for grown in disjoint(select)][:2] == [[A, B], [C, D]]


def test_a_task_that_many_heads_are_needed_for_says_so():
    select, held = ready({head: 0.1 for head in heads_in(range(2), N_HEADS)})
    rows = list(rows_of(select, held, model="m", n_everywhere=20))
    assert not any(row.suffices for row in rows) and {row.which for row in rows} == {0, 1}
    assert max(row.n_heads for row in rows) == sufficient.MOST_HEADS
    assert all(row.everywhere is None and row.without is None for row in rows)


def test_only_heads_that_were_tried_are_added(monkeypatch):
    monkeypatch.setattr(sufficient, "N_TRIED", 2)
    select, _ = ready({A: 1.0, B: 1.0, C: 1.0})
    assert set(grow(select, [D, A, B, C]).heads) == {D, A}


def test_random_heads_are_others_and_the_same_by_seed():
    select, _ = ready({A: 2.0})
    sets = random_sets(select, 3, [A, B], seed=1)
    assert len(sets) == 10 and all(len(set(heads)) == 3 and not {A, B} & set(heads) for heads in sets)
    assert sets == random_sets(select, 3, [A, B], seed=1) != random_sets(select, 3, [A, B], seed=2)


@pytest.mark.parametrize("where", [Where.END, Where.ALL])
def test_all_others_are_at_the_twins_values(where):
    """Against whole runs with hooks, of heads of random strength."""
    drawn = torch.Generator().manual_seed(0)
    written = {h: s for h, s in zip(heads_in(range(2), N_HEADS), torch.rand(24, generator=drawn).tolist())}
    bridge = empty()
    plan = Plan(Kind.BACKUP, written, [A, C], steep=1.0)
    _, held = planted(plan, 40, noise=0.5, bridge=bridge)
    heads = [A, C, D]
    at = slice(None) if where == Where.ALL else slice(-1, None)
    with torch.no_grad():
        _, twin = bridge.run_with_cache(held.asked.twins.tokens)

    def put(layer):
        name, out = f"blocks.{layer}.attn.hook_z", [h for h in range(N_HEADS) if Head(layer, h) not in heads]

        def change(z):
            z[:, at, out] = twin[name][:, at, out]

        return name, change

    plain, right = (
        run_with(bridge, held.asked.prompts, changes)[0].argmax(-1) == held.asked.right
        for changes in ([], [put(0), put(1)])
    )
    found = kept(held, [heads], where=where)
    assert 0 < float(right.double().mean()) < 1
    assert found.accuracy.item() == pytest.approx(float(right.double().mean()))
    assert found.share.item() == pytest.approx(float(right.double().mean() / plain.double().mean()))
    assert found.low <= found.share <= found.high
