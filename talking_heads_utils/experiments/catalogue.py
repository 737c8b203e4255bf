"""The experiments that one model goes through, each with one table as its result."""

from __future__ import annotations

from talking_heads_utils.experiments.context import is_own
from talking_heads_utils.experiments.editing.experiments import EXPERIMENTS as EDITING
from talking_heads_utils.experiments.icl.experiments import EXPERIMENTS as ICL
from talking_heads_utils.experiments.inhibition.experiments import EXPERIMENTS as INHIBITION
from talking_heads_utils.experiments.positional.experiments import EXPERIMENTS as POSITIONAL
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, known_models, learners

EXPERIMENTS = (*INHIBITION, *POSITIONAL, *EDITING, *ICL)


def chapters_of(model: str) -> tuple[int, ...]:
    """The chapters whose experiments suit a model: known ones by their table, the book's own by what is known of them,
    weights alone and the control without a channel the first."""
    known = known_models().get(model)
    if known is not None:
        return known.chapters
    if model in (GPT2_WEIGHTS, CONTROL):
        return (1,)
    if is_own(model):
        return (4,) if model in learners() else (1, 2, 3) if model == PLANTED else (2, 3)
    return (1, 2, 3, 4)
