"""The job of a small model of IOI and Laundry Lists: its prompts, its curriculum, its constrained loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talking_heads_utils.prompts.toy import word_tokenizer
from talking_heads_utils.training.data import Batch, Prompts, check_fits
from talking_heads_utils.training.model import build_model, constrain, logits_and_spread
from talking_heads_utils.training.spec import CHECKED, FREE, N_CHECK, N_LAST, MiniSpec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from talking_heads_utils.training.loop import Progress

SETTLED = 300  # steps with every length in training before the early checkpoint may be taken
SHORT, SOLVED = ("ioi", "n=2", "n=3", "n=4"), 0.95  # what it must answer, and how well, to be taken
AT_ONCE = 500  # prompts that are answered in one run
LOGGED, CHECK, LAST = 9, 11, 17  # which fixed prompts: along the way; to decide on a further round; at the end, once


@dataclass(frozen=True)
class ListsJob:
    """What :class:`~talking_heads_utils.training.loop.Run` needs to know of this kind of model."""

    spec: MiniSpec
    tokenizer: PreTrainedTokenizerFast
    prompts: Prompts

    @classmethod
    def of(cls, spec: MiniSpec) -> ListsJob:
        """Raises :class:`TaskError` if the longest list does not fit the model's positions or words."""
        tokenizer = word_tokenizer(spec.n_names, spec.n_places, spec.n_objects, spec.n_positions)
        prompts = Prompts(tokenizer)
        check_fits(spec, prompts)
        return cls(spec, tokenizer, prompts)

    def build(self, seed: int) -> GPT2LMHeadModel:
        """A fresh model, its constraint in force."""
        return build_model(self.spec, len(self.tokenizer), self.tokenizer.bos_token_id, seed)

    def losses(
        self, model: GPT2LMHeadModel, rng: np.random.Generator, progress: Progress, device: str
    ) -> Iterator[tuple[Tensor, float]]:
        """One step's parts: the loss to descend, and the share of it that is the answers' own."""
        for part in self.prompts.batches(rng, self.spec, progress.longest):
            logits, spread = self._run(model, part, device, progress.step)
            loss = F.cross_entropy(logits, part.answers.to(device), reduction="sum") / self.spec.batch
            yield loss + self.spec.level * spread * len(part.answers) / self.spec.batch, loss.item()

    def _run(self, model: GPT2LMHeadModel, batch: Batch, device: str, step: int | None = None) -> tuple[Tensor, Tensor]:
        return logits_and_spread(model, self.spec, batch.tokens.to(device), batch.end.to(device), step)

    def after_step(self, model: GPT2LMHeadModel, progress: Progress) -> None:
        """The constraint, and the curriculum: lists of every length come in once the shortest are learned."""
        constrain(model, self.spec, progress.step)
        if progress.complete_at is None and progress.running_loss < self.spec.lengthen_below:
            progress.longest, progress.complete_at = self.spec.n_items, progress.step

    @property
    def kinds(self) -> list[str]:
        """IOI and every list length up to the longest of all."""
        return ["ioi", *(f"n={k}" for k in range(2, self.spec.n_items + 1))]

    def accuracy(self, model: GPT2LMHeadModel, n: int, device: str, which: int = LOGGED) -> dict[str, float]:
        """Accuracy over the vocabulary on every kind of prompt, on fixed ones."""
        return {name: right for name, (right, _) in self.answers(model, n, device, which).items()}

    @torch.no_grad()
    def answers(
        self, model: GPT2LMHeadModel, n: int, device: str, which: int, kinds: Sequence[str] = ()
    ) -> dict[str, tuple[float, float]]:
        """Accuracy and mean loss (nats) of each kind of prompt, or of some."""
        model.eval()
        found = {}
        for name in kinds or self.kinds:
            rng = np.random.default_rng([which, len(name), int(name[2:]) if name != "ioi" else 0])
            draw = (
                self.prompts.draw_ioi if name == "ioi" else lambda r, k=name: self.prompts.draw_laundry(r, int(k[2:]))
            )
            drawn = [draw(rng) for _ in range(n)]
            parts = [self.prompts.stack(drawn[i : i + AT_ONCE]) for i in range(0, n, AT_ONCE)]
            logits = torch.cat([self._run(model, part, device)[0].cpu() for part in parts])
            answers = torch.cat([part.answers for part in parts])
            right = (logits.argmax(-1) == answers).float().mean().item()
            found[name] = (right, F.cross_entropy(logits, answers).item())
        model.train()
        return found

    def about(self, model: GPT2LMHeadModel, n: int, device: str) -> dict[str, Any]:
        """For the card: accuracy on more prompts, by which nothing is decided."""
        return dict(last=dict(n=N_LAST, accuracy=self.accuracy(model, N_LAST, device, LAST)))

    def where(self, progress: Progress) -> str:
        """What the line of progress says beyond steps and loss."""
        return f" lists to {progress.longest}"

    def is_early(self, progress: Progress) -> bool:
        """Is this the first evaluation at which every length is settled and :data:`SHORT` solved?"""
        if self.spec.keys == FREE or progress.early_at is not None or progress.complete_at is None:
            return False
        accuracy = progress.log[-1]["accuracy"]
        return progress.step >= progress.complete_at + SETTLED and all(
            accuracy[name] >= SOLVED for name in SHORT if name in accuracy
        )

    def goes_on(self, model: GPT2LMHeadModel, progress: Progress, device: str) -> bool:
        """At the end of a round: is there to be another? Not if every kind of prompt is solved, nor if the loss did not
        fall over the last round. Judged on prompts of their own, that no accuracy is reported on."""
        if not self.spec.rounds:
            return False
        found = self.answers(model, N_CHECK, device, CHECK)
        accuracy = {name: right for name, (right, _) in found.items()}
        loss = sum(loss for _, loss in found.values()) / len(found)
        helped = not progress.checks or loss < progress.checks[-1]["loss"]
        progress.checks.append(dict(step=progress.step, loss=loss, accuracy=accuracy))
        return min(accuracy.values()) < CHECKED and helped and progress.rounds < self.spec.rounds

    def at_the_end(self, progress: Progress) -> str | None:
        """What there is to say when the last step is done."""
        if self.spec.keys == FREE or progress.early_at is not None:
            return None
        return f"No early checkpoint: {', '.join(SHORT)} were never all at {SOLVED:.0%} with every length in training."
