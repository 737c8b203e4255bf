"""Training: steps, a curriculum (lists of two, then of every length), checkpoints that a stopped run goes on from.

The data of a step depend on the seed and the step alone and schedules count steps, so a run that was stopped and
resumed ends where an unbroken one does, on the same machine and number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from talking_heads_utils.device import check_device
from talking_heads_utils.errors import CheckpointError, OptionError
from talking_heads_utils.files import check_folder, written_whole
from talking_heads_utils.settings import EARLY, FINAL
from talking_heads_utils.training.card import write_card
from talking_heads_utils.training.functions import FunctionsJob
from talking_heads_utils.training.lists import ListsJob
from talking_heads_utils.training.spec import FunctionsSpec, MiniSpec, Round

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

STATE = "training.safetensors"
N_EVAL = 200
EVERY = 200


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


class Run:
    """One training run: model, optimiser and progress, in a folder."""

    def __init__(self, spec: MiniSpec | FunctionsSpec, seed: int, folder: Path, device: str = "cpu"):
        self.spec, self.seed, self.folder, self.device = spec, seed, check_folder(folder), check_device(device)
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
        """One step on fresh prompts; its loss."""
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
        """The model as a plain Hugging Face checkpoint with its tokenizer, in a folder of its own."""
        target = self.folder / stage
        part = self.folder / f".{stage}.part"
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
        """All that is needed to go on, in one safetensors file that is written whole."""
        tensors = {f"model.{name}": p.detach().cpu() for name, p in self.model.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{key}": value.detach().cpu() for key, value in state.items()}
        about = dict(spec=asdict(self.spec), seed=self.seed, progress=asdict(self.progress))
        with written_whole(self.folder / STATE) as part:
            save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata={"run": json.dumps(about)})

    def load_state(self) -> None:
        """Go on from the folder's last state. Raises :class:`CheckpointError` if it is of another run or damaged."""
        try:
            with safe_open(self.folder / STATE, "pt") as file:
                about = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            spec, seed, progress = about["spec"], about["seed"], Progress(**about["progress"])
            if progress.rounds not in range(self.spec.rounds + 1):
                raise ValueError(f"no round {progress.rounds!r}")
            if not (isinstance(progress.step, int) and 0 <= progress.step <= self.spec.round(progress.rounds).end):
                raise ValueError(f"no step {progress.step!r}")
            if not (isinstance(progress.checks, list) and all(map(self._is_check, progress.checks, count()))):
                raise ValueError(f"no checks {progress.checks!r}")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._unreadable(error) from error
        if spec != asdict(self.spec) or seed != self.seed:
            raise CheckpointError(
                f"{self.folder} holds another run. Choose another folder, or resume with its options."
            )
        try:
            self._restore(tensors, progress.step == self.spec.round(progress.rounds).start)
        except (RuntimeError, ValueError, KeyError) as error:
            raise self._unreadable(error) from error
        self.progress = progress

    def _is_check(self, check: dict[str, Any], i: int) -> bool:
        """Whether this can be what stood at the end of round i."""
        return check["step"] == self.spec.round(i).end and isinstance(check["loss"], float) and bool(check["accuracy"])

    def _restore(self, tensors: dict[str, torch.Tensor], new_round: bool) -> None:
        """Model and optimiser, of which a new round has nothing yet, out of a state's tensors; raises errors of several
        kinds where they do not fit."""
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, i, key = name.split(".", 2)
                state.setdefault(int(i), {})[key] = tensor
        trained = self.optimiser.param_groups[0]["params"]
        if bool(state) == new_round or any(
            i >= len(trained) or s["exp_avg"].shape != trained[i].shape for i, s in state.items()
        ):
            raise ValueError("the optimiser's state does not fit the model")
        if state:
            self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})

    def _unreadable(self, error: Exception) -> CheckpointError:
        reason = str(error).splitlines()[0]
        return CheckpointError(f"{self.folder / STATE} cannot be read ({reason}). Delete it and start the run again.")


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
    none if it is, and for minutes that are no time.
    """
    if minutes is not None and not minutes >= 0:
        raise OptionError(f"--minutes is a time from 0 on, not {minutes}.")
    if (run.folder / STATE).exists() != resume:
        raise OptionError(
            f"{run.folder} holds no run that could go on. Leave --resume out to start one."
            if resume
            else f"{run.folder} already holds a run. Add --resume to go on, or choose another folder."
        )
    if resume:
        run.load_state()
    with _no_denormals():
        at = _steps(run, minutes, every, say)
        if at.step < run.round.end:
            return at
        run.save_model(FINAL)
    if remark := run.job.at_the_end(at):
        say(remark)
    return at


def _steps(run: Run, minutes: float | None, every: int, say: Callable[[str], None]) -> Progress:
    """The steps of :func:`train`, up to the last or as far as the minutes go; the state is saved."""
    start, at = time.monotonic(), run.progress
    before = at.minutes
    while at.step < run.round.end:
        run.step()
        at.minutes = round(before + (time.monotonic() - start) / 60, 1)
        if at.step % every == 0 or at.step == run.round.end:
            loss = round(at.running_loss, 4)
            at.log.append(dict(step=at.step, longest=at.longest, loss=loss, accuracy=run.accuracy()))
            if run.job.is_early(at):
                at.early_at = at.step
                run.save_model(EARLY)
            say(_line(run, (time.monotonic() - start) / 60))
            if at.step == run.round.end:
                run.end_round()
            run.save_state()
        if minutes is not None and at.step < run.round.end and time.monotonic() - start > 60 * minutes:
            run.save_state()
            break
    return at


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are zero meanwhile: where attention is settled they make a step three times as long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _line(run: Run, minutes: float) -> str:
    at = run.progress
    accuracy = " ".join(f"{name} {value:.0%}" for name, value in at.log[-1]["accuracy"].items())
    where = f"step {at.step}/{run.round.end} ({minutes:.1f} min)"
    return f"{where}{run.job.where(at)}, loss {at.running_loss:.3f}: {accuracy}"
