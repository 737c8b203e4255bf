"""Chapter 1's experiments, as the catalogue has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.context import GATE, ROLES, Context, Experiment
from talking_heads_utils.experiments.gate import Cell
from talking_heads_utils.experiments.inhibition import study as inhibition
from talking_heads_utils.experiments.inhibition.circuit import circuit_table
from talking_heads_utils.experiments.prefixes import PrefixRow, prefix_candidates, prefix_rows
from talking_heads_utils.roles.ioi import Pair, pairs_of_prompts

if TYPE_CHECKING:
    import pandas as pd


def _study(c: Context) -> inhibition.Study:
    c.mover  # noqa: B018  first: a model without any is not run
    return inhibition.Study(c.model, c.bridge, c.tokenizer, c.task_prompts, c.seed, None if c.is_own else c.roles)


def _prefix(c: Context) -> list[PrefixRow]:
    return prefix_rows(c.bridge, c.tokenizer, prefix_candidates(c.tokenizer), c.n(100), c.seed)


def _circuit(c: Context) -> pd.DataFrame:
    """Both tables in one: the logit difference in parts, then what exchanges change."""
    found = c.roles
    held_out = Pair.of(c.bridge, *pairs_of_prompts(c.tokenizer, c.n(400, 80), c.seed)[1])
    return circuit_table(c.bridge, held_out, found, seed=c.seed)


def _agreement(c: Context) -> pd.DataFrame:
    return inhibition.agreement_table([c.kept(_study)])


def _concentration(c: Context) -> pd.DataFrame:
    if not c.inhibition:
        raise NotApplicable(
            f"No head of {c.model} was found to inhibit the mover, so nothing can be concentrated in one."
        )
    return inhibition.ninety_table([c.kept(_study)])


def _activity(c: Context) -> pd.DataFrame:
    if c.text_source is None:
        texts, name = corpus.generated_texts(c.tokenizer, 400, c.seed)[: c.n(2000)], corpus.OWN_TEXTS
    else:
        texts, name = corpus.running_text(c.text_source, c.n(2000)), corpus.texts_shown_as(c.text_source)
    return inhibition.activity_table(c.kept(_study), texts)[0].assign(texts=name)


def _carries(c: Context) -> pd.DataFrame:
    """On lists, place or identity; on IOI, order or name."""
    s = c.kept(_study)
    return inhibition.carries_table([s]) if c.is_own else inhibition.factors_table([s], c.n(100))


EXPERIMENTS = (
    Experiment("prefix", 1, 3, PrefixRow, _prefix, "what stands in front of a prompt", of_own=False),
    Experiment(GATE, 1, 6, Cell, Context.run_gate, "which tasks the model can do", of_own=False),
    Experiment(ROLES, 1, 4, None, lambda c: c.run_roles().frame(), "who does what on IOI", of_own=False),
    Experiment("circuit", 1, 3, None, _circuit, "how much of IOI runs through these heads", of_own=False),
    Experiment("agreement", 1, 4, None, _agreement, "weights against effects"),
    Experiment("concentration", 1, 1, None, _concentration, "components for 90% of an effect"),
    Experiment("carries", 1, 1, None, _carries, "place or identity"),
    Experiment("activity", 1, 2, None, _activity, "where in running text components are active", reads_texts=True),
)
