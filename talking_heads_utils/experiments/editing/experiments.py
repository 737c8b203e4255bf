"""Chapter 3's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.editing.components import Components, Prompts, choose
from talking_heads_utils.experiments.editing.gains import EditGainRow, HarmRow, edit_gains, harm
from talking_heads_utils.experiments.editing.removal import RemovalRow, removal
from talking_heads_utils.experiments.editing.search import Candidate, search, winners
from talking_heads_utils.settings import N_ITEMS

CROWDED = 10  # items of the lists on which edits are chosen


def _chosen(run: Context) -> Components:
    size = dict(n_components=3, n_draws=1) if run.quick else dict(n_components=6, n_draws=2)
    return choose(run, run.n_items(N_ITEMS if run.quick else CROWDED), run.n(80), **size)


def _winners(run: Context) -> list[Candidate]:
    few = dict(sizes=(0.15,), values=(0.0, 2.0)) if run.quick else {}
    return winners(search(run, run.kept(_chosen), **few))


def _removal(run: Context) -> list[RemovalRow]:
    return removal(run, run.kept(_chosen))


def _edit_gains(run: Context) -> list[EditGainRow]:
    at = run.kept(_chosen)
    longer = run.n_items(at.n_items + 2)
    sets = [(Prompts.KNOWN, None), (Prompts.NEW, None), *([(Prompts.LISTS, longer)] if longer > at.n_items else [])]
    return edit_gains(run, at, run.kept(_winners), sets[:1] if run.quick else sets)


def _harm(run: Context) -> list[HarmRow]:
    return harm(run, run.kept(_chosen), [c for c in run.kept(_winners) if c.draw in (None, 0)])


EXPERIMENTS = (
    Experiment("removal", 3, 6, RemovalRow, _removal, "single components removed"),
    Experiment("edit-gains", 3, 14, EditGainRow, _edit_gains, "accuracy by edits of the weights"),
    Experiment("edit-harm", 3, 2, HarmRow, _harm, "what the edits cost elsewhere"),
)
