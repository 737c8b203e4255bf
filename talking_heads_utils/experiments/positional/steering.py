"""Steering that is told nothing, against a correction of the logits by index."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


class Method(StrEnum):
    """What is changed, by choices on the selection half alone: nothing; one setting for all lists; the cloud scaled
    about its mean; a constant added to each index's logit; setting and constants. The last two are told the answers:
    bounds."""

    NONE = "none"
    ONE_SETTING = "one_setting"
    SCALING = "scaling"
    CORRECTION = "correction"
    BOTH = "setting_and_correction"
    TOLD_INDEX = "told_the_answers_index"
    ORACLE = "oracle"


@dataclass(frozen=True)
class GainRow(Row):
    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    part: str = column("", "of what lists: held_out, new_wording, new_objects")
    method: str = column("", "how a list's setting is chosen")
    subspace: str = column(
        "", "chosen; matched: mean over draws of the same search, and the draws' 2.5% and 97.5% points"
    )
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    gain: float = column("points", "of accuracy, paired")
    gain_low: float = column("points", "95% interval, lower end")
    gain_high: float = column("points", "upper end")
    beyond: float = column("points", "accuracy less that of the correction by index, paired")
    beyond_low: float = column("points", "95% interval, lower end")
    beyond_high: float = column("points", "upper end")
    where_chosen: float = column("points", "gain on the lists that chose")
    p: float | None = column("", "share of matched triples, this one included, with as large a gain; of chosen alone")
    n_draws: int | None = column("triples", "matched ones")
    n: int = column("prompts", "lists")


def run(c: Context) -> list[GainRow]:
    raise NotImplementedError
