"""What a training run needs to know of a kind of small model, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass
class Progress:
    """Where a run stands.

    longest: items of the longest list in training. complete_at: the step from which every length was. early_at: the
    step of the early checkpoint. rounds: begun beyond the first. checks: loss and accuracy at the end of each, by which
    it goes on. minutes: of training so far, on whatever machine. log: one entry per evaluation.
    """

    step: int = 0
    longest: int = 2
    running_loss: float = 3.0
    complete_at: int | None = None
    early_at: int | None = None
    rounds: int = 0
    checks: list[dict[str, Any]] = field(default_factory=list)
    minutes: float = field(default=0.0, compare=False)
    log: list[dict[str, Any]] = field(default_factory=list)


class Job:
    """What a kind of small model without constraint, curriculum or rounds answers a run that asks for them."""

    def after_step(self, model: GPT2LMHeadModel, progress: Progress) -> None:
        """Puts the constraint back and moves the curriculum on."""

    def where(self, progress: Progress) -> str:
        """What the line of progress says beyond steps and loss."""
        return ""

    def is_early(self, progress: Progress) -> bool:
        """Whether the early checkpoint is to be taken at this evaluation."""
        return False

    def goes_on(self, model: GPT2LMHeadModel, progress: Progress, device: str) -> bool:
        """Whether another round follows the one that ends."""
        return False

    def at_the_end(self, progress: Progress) -> str | None:
        """What there is to say when the last step is done."""
        return None
