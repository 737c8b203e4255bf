"""The experiments that one model goes through, each with one table as its result."""

from __future__ import annotations

from talking_heads_utils.experiments.context import is_own
from talking_heads_utils.experiments.editing.experiments import EXPERIMENTS as EDITING
from talking_heads_utils.experiments.icl.experiments import EXPERIMENTS as ICL
from talking_heads_utils.experiments.inhibition.experiments import EXPERIMENTS as INHIBITION
from talking_heads_utils.experiments.positional.experiments import EXPERIMENTS as POSITIONAL
from talking_heads_utils.experiments.toys import learners
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, known_models

EXPERIMENTS = (*INHIBITION, *POSITIONAL, *EDITING, *ICL)
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


def chapters_of(model: str) -> tuple[int, ...]:
    """The chapters whose experiments suit a model: known ones by their table, weights alone the first; of the
    book's own the planted ones those on the channel, learners the fourth, and none what else was trained here."""
    known = known_models().get(model)
    if known is not None:
        return known.chapters
    if model == GPT2_WEIGHTS:
        return (1,)
    if is_own(model):
        return (1, 2, 3) if model in (PLANTED, CONTROL) else (4,) if model in learners() else ()
    return (1, 2, 3, 4)
