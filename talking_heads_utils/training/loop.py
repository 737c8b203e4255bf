"""Training: steps, evaluations, checkpoints, and a state from which a stopped run goes on.

The data of a step depend on the seed and the step alone and schedules count steps, so a run that was stopped and
resumed ends where an unbroken one does, on the same machine and number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from talking_heads_utils.device import check_device
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import check_folder
from talking_heads_utils.resume import NOTE, Store
from talking_heads_utils.settings import EARLY, FINAL
from talking_heads_utils.training.card import write_card
from talking_heads_utils.training.functions import FunctionsJob
from talking_heads_utils.training.job import Progress
from talking_heads_utils.training.lists import ListsJob
from talking_heads_utils.training.spec import MiniSpec, Round, Spec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

N_EVAL = 200  # prompts of each kind at an evaluation
EVERY = 200  # steps between evaluations


class Run:
    """One training run: model, optimiser and progress, in a folder whose states are parts of a :class:`Store`."""

    def __init__(self, spec: Spec, seed: int, folder: Path, device: str = "cpu"):
        self.spec, self.seed, self.folder, self.device = spec, seed, check_folder(folder), check_device(device)
        self.store = Store(self.folder, {**asdict(spec), "seed": seed}, ".safetensors")
        self.job: ListsJob | FunctionsJob = ListsJob.of(spec) if isinstance(spec, MiniSpec) else FunctionsJob.of(spec)
        self.tokenizer = self.job.tokenizer
        self.model: GPT2LMHeadModel = self.job.build(seed).to(device)
        self.optimiser = self._fresh_optimiser()
        self.progress = Progress()

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

    def end_round(self) -> None:
        """After a round's last step: begin another, with a fresh optimiser, if the job asks for one."""
        if self.job.goes_on(self.model, self.progress, self.device):
            self.progress.rounds += 1
            self.optimiser = self._fresh_optimiser()

    def step(self) -> float:
        """One step on fresh prompts; its loss in nats."""
        at = self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad()
        total = 0.0
        for loss, shown in self.job.losses(self.model, np.random.default_rng([self.seed, at.step]), at, self.device):
            loss.backward()
            total += shown
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        at.step += 1
        at.running_loss = 0.98 * at.running_loss + 0.02 * total
        self.job.after_step(self.model, at)
        return total

    def accuracy(self, n: int = N_EVAL) -> dict[str, float]:
        """Accuracy by kind of prompt, on fixed prompts."""
        return self.job.accuracy(self.model, n, self.device)

    def save_model(self, stage: str) -> Path:
        """The model as a plain Hugging Face checkpoint with its tokenizer and card, in a folder of its own."""
        target, part = self.folder / stage, self.folder / f".{stage}.part"
        self.model.save_pretrained(part, safe_serialization=True)
        self.tokenizer.save_pretrained(part)
        card = dict(
            spec=asdict(self.spec), seed=self.seed, stage=stage, accuracy=self.accuracy(),
            **self.job.about(self.model, N_EVAL, self.device), **asdict(self.progress),
        )  # fmt: skip
        (part / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        write_card(part)
        target.mkdir(parents=True, exist_ok=True)
        for file in part.iterdir():
            file.replace(target / file.name)
        part.rmdir()
        return target

    def save_state(self) -> None:
        """All that is needed to go on; earlier states go once it is there."""
        before, name = self.store.names(), f"step-{self.progress.step:07d}"
        if name in before:
            return
        tensors = {f"model.{name}": p for name, p in self.model.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{key}": value for key, value in state.items()}
        with self.store.part(name, self.device) as part:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part.file)
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
        weights: dict[str, torch.Tensor] = {}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(self.store.path(name)).items():
            kind, rest = key.split(".", 1)
            if kind == "model":
                weights[rest] = tensor
            else:
                i, key = rest.split(".")
                state.setdefault(int(i), {})[key] = tensor
        self.model.load_state_dict(weights)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})


def train(
    run: Run,
    *,
    resume: bool = False,
    minutes: float | None = None,
    every: int = EVERY,
    say: Callable[[str], None] = print,
) -> Progress:
    """Train until the last step, or for so many minutes; then the state is saved and a later call goes on.

    The early checkpoint is taken at the first evaluation at which the run's job calls for it, the final one at the end.
    Raises :class:`OptionError` for a folder that already holds a run, unless it is to be resumed, for one that holds
    none or another if it is, and for minutes that are no time.
    """
    if minutes is not None and not minutes >= 0:
        raise OptionError(f"--minutes is a time from 0 on, not {minutes}.")
    if bool(run.store.names()) != resume:
        raise OptionError(
            f"{run.folder} holds no run that could go on. Leave --resume out to start one."
            if resume
            else f"{run.folder} already holds a run. Add --resume to go on, or choose another folder."
        )
    if resume:
        run.load_state()
    torch.set_flush_denormal(True)  # below 1e-38: where attention is settled they make a step three times as long
    try:
        if _steps(run, minutes, every, say).step < run.round.end:
            return run.progress
        run.save_model(FINAL)
    finally:
        torch.set_flush_denormal(False)
    if remark := run.job.at_the_end(run.progress):
        say(remark)
    return run.progress


def _steps(run: Run, minutes: float | None, every: int, say: Callable[[str], None]) -> Progress:
    """The steps of :func:`train`, up to the last or as far as the minutes go; the state is saved."""
    start, at = time.monotonic(), run.progress
    before = at.minutes
    while at.step < run.round.end:
        run.step()
        spent = (time.monotonic() - start) / 60
        at.minutes = round(before + spent, 1)
        is_last, is_over = at.step == run.round.end, minutes is not None and spent > minutes
        if at.step % every == 0 or is_last:
            loss = round(at.running_loss, 4)
            at.log.append(dict(step=at.step, longest=at.longest, loss=loss, accuracy=run.accuracy()))
            if run.job.is_early(at):
                at.early_at = at.step
                run.save_model(EARLY)
            say(_line(run, spent))
            if is_last:
                run.end_round()
            run.save_state()
        if is_over and at.step < run.round.end:
            run.save_state()
            break
    return at


def _line(run: Run, minutes: float) -> str:
    at = run.progress
    accuracy = " ".join(f"{name} {value:.0%}" for name, value in at.log[-1]["accuracy"].items())
    where = f"step {at.step}/{run.round.end} ({minutes:.1f} min)"
    return f"{where}{run.job.where(at)}, loss {at.running_loss:.3f}: {accuracy}"
