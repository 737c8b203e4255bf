"""Training: steps, evaluations, checkpoints, and a state from which a stopped run goes on.

The data of a step depend on the seed and the step alone and schedules count steps, so a run that was stopped and
resumed ends where an unbroken one does, on the same machine and number of threads.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from talking_heads_utils.device import check_device
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import check_folder
from talking_heads_utils.resume import NOTE, Store
from talking_heads_utils.settings import EARLY, FINAL
from talking_heads_utils.training.card import card_text
from talking_heads_utils.training.spec import Round, Spec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

N_EVAL = 200  # prompts of each kind at an evaluation
EVERY = 200  # steps between evaluations


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


class Run(ABC):
    """One training run: model, optimiser and progress, in a folder whose states are parts of a :class:`Store`. What it
    trains on, and when it goes on, is said by a subclass: :class:`~talking_heads_utils.training.lists.ListsRun`,
    :class:`~talking_heads_utils.training.functions.FunctionsRun`."""

    def __init__(self, spec: Spec, seed: int, folder: Path, device: str = "cpu"):
        self.spec, self.seed, self.folder, self.device = spec, seed, check_folder(folder), check_device(device)
        self.store = Store(self.folder, {**asdict(spec), "seed": seed}, ".pt")
        self.tokenizer, model = self.built()
        self.model = model.to(device)
        self.optimiser = self._fresh_optimiser()
        self.progress = Progress()

    @abstractmethod
    def built(self) -> tuple[PreTrainedTokenizerFast, GPT2LMHeadModel]:
        """A tokenizer, and a model of its words with the seed's first weights."""

    @abstractmethod
    def losses(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, float]]:
        """One step's parts: the loss to descend, and the share of it that is the answers' own, in nats."""

    @abstractmethod
    def accuracy(self, n: int = N_EVAL) -> dict[str, float]:
        """Accuracy by kind of prompt, on n fixed prompts each."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the card says beside that accuracy."""

    def after_step(self) -> None:  # noqa: B027
        """A constraint that is put back, a curriculum; none here."""

    def is_early(self) -> bool:
        """Whether the early checkpoint is to be taken now."""
        return False

    def goes_on(self) -> bool:
        """Whether there is to be another round, at the end of one."""
        return False

    def _fresh_optimiser(self) -> torch.optim.AdamW:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)

    @property
    def round(self) -> Round:
        """The round that it is in."""
        return self.spec.round(self.progress.rounds)

    def learning_rate(self) -> float:
        """Linear warm-up, then a linear fall to 1e-5 at the round's last step."""
        now = self.round
        step = self.progress.step - now.start
        return now.learning_rate * min(1.0, (step + 1) / self.spec.warmup) * (1 - step / now.n_steps) + 1e-5

    def step(self) -> float:
        """One step on fresh prompts; its loss in nats."""
        at = self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad()
        total = 0.0
        for loss, shown in self.losses(np.random.default_rng([self.seed, at.step])):
            loss.backward()
            total += shown
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        at.step += 1
        at.running_loss = 0.98 * at.running_loss + 0.02 * total
        self.after_step()
        return total

    def evaluate(self, minutes: float, say: Callable[[str], None]) -> None:
        """Log the accuracy, take the early checkpoint, begin another round with a fresh optimiser where it is time,
        and save the state."""
        at, end = self.progress, self.round.end
        at.log.append(dict(step=at.step, longest=at.longest, loss=round(at.running_loss, 4), accuracy=self.accuracy()))
        if self.is_early():
            at.early_at = at.step
            self.save_model(EARLY)
        accuracy = " ".join(f"{name} {value:.0%}" for name, value in at.log[-1]["accuracy"].items())
        say(f"step {at.step}/{end} ({minutes:.1f} min), loss {at.running_loss:.3f}: {accuracy}")
        if at.step == end and self.goes_on():
            at.rounds += 1
            self.optimiser = self._fresh_optimiser()
        self.save_state()

    def save_model(self, stage: str) -> Path:
        """The model as a plain Hugging Face checkpoint with its tokenizer and card, in a folder of its own."""
        target, part = self.folder / stage, self.folder / f".{stage}.part"
        self.model.save_pretrained(part, safe_serialization=True)
        self.tokenizer.save_pretrained(part)
        card = dict(
            spec=asdict(self.spec), seed=self.seed, stage=stage, accuracy=self.accuracy(),
            **self.about(), **asdict(self.progress),
        )  # fmt: skip
        (part / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (part / "README.md").write_text(card_text(card), encoding="utf-8")
        target.mkdir(parents=True, exist_ok=True)
        for file in part.iterdir():
            file.replace(target / file.name)
        part.rmdir()
        return target

    def save_state(self) -> None:
        """All that is needed to go on; earlier states go once it is there."""
        before = self.store.names()
        with self.store.part(f"step-{self.progress.step:07d}", self.device) as part:
            torch.save(dict(model=self.model.state_dict(), optimiser=self.optimiser.state_dict()), part.file)
            part.note["progress"] = asdict(self.progress)
        for old in before:
            for suffix in (NOTE, self.store.suffix):
                self.store.path(old).with_suffix(suffix).unlink(missing_ok=True)

    def load_state(self) -> None:
        """Go on from the last state. Raises :class:`OptionError` if it is of another run, naming what differs, and
        :class:`ResultError` if it is damaged."""
        self.store.check()
        name = self.store.names()[-1]
        self.progress = Progress(**self.store.note(name)["progress"])
        state = torch.load(self.store.path(name), map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


def train(
    run: Run, *, resume: bool = False, every: int = EVERY, say: Callable[[str], None] = print
) -> Progress:  # fmt: skip
    """Train until the last step; the state is saved every so many steps, and a later call goes on from there.

    The early checkpoint is taken at the first evaluation at which the run calls for it, the final one at the end.
    Raises :class:`OptionError` for a folder that already holds a run, unless it is to be resumed, and for one that
    holds none or another if it is.
    """
    if bool(run.store.names()) != resume:
        raise OptionError(
            f"{run.folder} holds no run that could go on. Leave --resume out to start one."
            if resume
            else f"{run.folder} already holds a run. Add --resume to go on, or choose another folder."
        )
    if resume:
        run.load_state()
    start, at = time.monotonic(), run.progress
    before = at.minutes
    torch.set_flush_denormal(True)  # below 1e-38: where attention is settled they make a step three times as long
    try:
        while at.step < run.round.end:
            run.step()
            spent = (time.monotonic() - start) / 60
            at.minutes = round(before + spent, 1)
            if at.step % every == 0 or at.step == run.round.end:
                run.evaluate(spent, say)
        run.save_model(FINAL)
    finally:
        torch.set_flush_denormal(False)
    return at
