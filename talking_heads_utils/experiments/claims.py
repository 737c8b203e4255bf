"""Every claim of both sources: the experiment that bears on it, what is measured, and the rule that judges.

A rule sees what was measured and no model's name. A claim whose rule is not sound has none: its numbers are shown, and
why it is not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from talking_heads_utils.experiments import rules
from talking_heads_utils.experiments.editing import measures as editing
from talking_heads_utils.experiments.icl import measures as icl
from talking_heads_utils.experiments.inhibition import measures as inhibition
from talking_heads_utils.experiments.positional import measures as positional
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict

if TYPE_CHECKING:
    import pandas as pd


class Source(StrEnum):
    PAPER = "paper"
    POST = "post"


class ClaimId(StrEnum):
    """Names of claims, for code, files and addresses."""

    STAND_OUT = "stand-out"
    LISTENERS = "listeners"
    PRIVILEGED = "privileged"
    PREDICTED = "predicted"
    CONCENTRATED = "concentrated"
    IN_LISTS = "in-lists"
    INDEXES = "indexes"
    THREE_DIMENSIONS = "three-dimensions"
    TRAVERSED = "traversed"
    ERRORS_NEAR = "errors-near"
    CROWDS = "crowds"
    ORDER = "order"
    STEERING_GAINS = "steering-gains"
    LOWERS = "lowers"
    EDIT_GAINS = "edit-gains"
    REDUNDANT = "redundant"
    SURVIVES = "survives"
    MOVES_UP = "moves-up"
    BACKUPS = "backups"
    EVIDENCE = "evidence"
    ADDS = "adds"
    LOOKS_BACK = "looks-back"
    IN_PARTS = "in-parts"


@dataclass(frozen=True)
class Claim:
    """One claim of a source, and how it is tested.

    chapter, where: the page and the figure that show it. experiment: whose table ``measure`` takes. rule: turns what
    was measured into a verdict; None where no sound one is known, and ``unsound`` says why.
    """

    id: ClaimId
    source: Source
    chapter: int
    where: str
    experiment: str
    measure: Callable[[pd.DataFrame], Measured]
    unsound: str = ""
    rule: Rule | None = None

    def verdict(self, found: Measured) -> Verdict:
        return Verdict.NOT_JUDGED if self.rule is None else self.rule(found)


PAPER, POST = Source
CLAIMS = (
    Claim(ClaimId.STAND_OUT, PAPER, 1, "fig-links", "links", inhibition.stand_out, rule=rules.STAND_OUT),
    Claim(ClaimId.LISTENERS, PAPER, 1, "fig-listeners", "listeners", inhibition.listeners, rule=rules.LISTENERS),
    Claim(ClaimId.PRIVILEGED, PAPER, 1, "fig-basis", "basis", inhibition.privileged, rule=rules.PRIVILEGED),
    Claim(ClaimId.PREDICTED, PAPER, 1, "fig-exchange", "hits", inhibition.predicted, rule=rules.PREDICTED),
    Claim(ClaimId.CONCENTRATED, PAPER, 1, "fig-exchange", "exchange", inhibition.concentrated,
          rule=rules.CONCENTRATED),
    Claim(ClaimId.IN_LISTS, PAPER, 1, "fig-attends", "attends", inhibition.in_lists, rule=rules.IN_LISTS),
    Claim(ClaimId.INDEXES, PAPER, 2, "fig-decoding", "decoding", positional.indexes, rule=rules.INDEXES),
    Claim(ClaimId.THREE_DIMENSIONS, PAPER, 2, "fig-dimensions", "interchange", positional.three_dimensions,
          rule=rules.THREE_DIMENSIONS),
    Claim(ClaimId.TRAVERSED, PAPER, 2, "fig-traversal", "reach", positional.traversed, rule=rules.TRAVERSED),
    Claim(ClaimId.ERRORS_NEAR, PAPER, 2, "fig-crowding", "margins", positional.errors_near, rule=rules.ERRORS_NEAR),
    Claim(ClaimId.CROWDS, PAPER, 2, "fig-scales", "scales", positional.crowds, rule=rules.CROWDS),
    Claim(ClaimId.ORDER, PAPER, 2, "fig-order", "order", positional.order_matters, rule=rules.ORDER),
    Claim(ClaimId.STEERING_GAINS, PAPER, 2, "fig-gains", "steering-gains", positional.steering_gains,
          rule=rules.STEERING_GAINS),
    Claim(ClaimId.LOWERS, PAPER, 3, "fig-removal", "removal", editing.lowers, rule=rules.LOWERS),
    Claim(ClaimId.EDIT_GAINS, PAPER, 3, "fig-edit-gains", "edit-gains", editing.edit_gains, rule=rules.EDIT_GAINS),
    Claim(ClaimId.REDUNDANT, POST, 4, "fig-redundancy", "sets", icl.redundant, rule=rules.REDUNDANT),
    Claim(ClaimId.SURVIVES, POST, 4, "fig-layers-out", "layers-out", icl.survives, rule=rules.SURVIVES),
    Claim(ClaimId.MOVES_UP, POST, 4, "fig-first-layer", "first-layer", icl.moves_up, rule=rules.MOVES_UP),
    Claim(ClaimId.BACKUPS, POST, 4, "fig-backups", "backups", icl.backups, rule=rules.BACKUPS),
    Claim(ClaimId.EVIDENCE, POST, 4, "fig-evidence", "slopes", icl.evidence, rule=rules.EVIDENCE),
    Claim(ClaimId.ADDS, POST, 4, "fig-sums", "sums", icl.adds, rule=rules.ADDS),
    Claim(ClaimId.LOOKS_BACK, POST, 4, "fig-looks-back", "looks-back", icl.looks_back, rule=rules.LOOKS_BACK),
    Claim(ClaimId.IN_PARTS, POST, 4, "fig-parts", "parts", icl.in_parts, rule=rules.IN_PARTS),
)  # fmt: skip
BY_ID = {claim.id: claim for claim in CLAIMS}
