"""A small model of IOI and Laundry Lists: its prompts, its curriculum, its constrained loss.

Prompts are drawn on the fly, straight as token ids: the tasks and wordings of :mod:`talking_heads_utils.prompts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.prompts.toy import word_tokenizer
from talking_heads_utils.prompts.words import WORD_LISTS, load_templates, load_words
from talking_heads_utils.training.loop import N_EVAL, Run
from talking_heads_utils.training.model import build_model, constrain, logits_and_spread
from talking_heads_utils.training.spec import CHECKED, FREE, N_CHECK, N_LAST, MiniSpec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

SETTLED = 300  # steps with every length in training before the early checkpoint may be taken
SHORT, SOLVED = ("ioi", "n=2", "n=3", "n=4"), 0.95  # what it must answer, and how well, to be taken
AT_ONCE = 500  # prompts that are answered in one run
LOGGED, CHECK, LAST = 9, 11, 17  # which fixed prompts: along the way; to decide on a further round; at the end, once


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right: token ids, the index of the last token, and the answer's id."""

    tokens: Int[Tensor, "n n_pos"]
    end: Int[Tensor, "n"]
    answers: Int[Tensor, "n"]


class Prompts:
    """Draws prompts as ids. Everything comes out of the generator that is passed in."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.bos = tokenizer.bos_token_id
        self.comma = tokenizer.convert_tokens_to_ids(",")
        self.ids = {
            kind: np.array(tokenizer.convert_tokens_to_ids(list(load_words(kind, tokenizer, 1)))) for kind in WORD_LISTS
        }
        self.ioi = [self._pieces(t, tokenizer) for t in load_templates("ioi")["templates"].values()]
        self.laundry = [self._pieces(t, tokenizer) for t in load_templates("laundry")["wordings"].values()]

    @staticmethod
    def _pieces(template: str, tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], str | None]]:
        """``(ids of the words before, placeholder)`` of each part of a template."""
        parts = Formatter().parse(template)
        return [(tokenizer(literal, add_special_tokens=False)["input_ids"], name) for literal, name, *_ in parts]

    def _fill(self, pieces: list[tuple[list[int], str | None]], fields: Mapping[str, Iterable[int]]) -> list[int]:
        row = [self.bos]
        for words, name in pieces:
            row += words
            for i, token in enumerate(fields[name] if name else ()):
                row += [self.comma, int(token)] if i else [int(token)]
        return row

    def draw_ioi(self, rng: np.random.Generator) -> tuple[list[int], int]:
        """One IOI prompt and its answer, either name first."""
        a, b = rng.choice(self.ids["names"], 2, replace=False)
        s, io = (a, b) if rng.random() < 0.5 else (b, a)
        place, thing = rng.choice(self.ids["places"]), rng.choice(self.ids["objects"])
        fields: dict[str, Iterable[int]] = {"A": [a], "B": [b], "S": [s], "PLACE": [place], "OBJECT": [thing]}
        return self._fill(self.ioi[rng.integers(len(self.ioi))], fields), int(io)

    def draw_laundry(self, rng: np.random.Generator, n_items: int) -> tuple[list[int], int]:
        """One list of ``n_items``, all but one named again, in the same order or shuffled."""
        items = rng.choice(self.ids["objects"], n_items, replace=False)
        left = rng.integers(n_items)
        rest = np.delete(items, left)
        if rng.random() < 0.5:
            rng.shuffle(rest)
        wording = self.laundry[rng.integers(len(self.laundry))]
        return self._fill(wording, {"ITEMS": items, "REST": rest}), int(items[left])

    def batches(self, rng: np.random.Generator, spec: MiniSpec, longest: int) -> list[Batch]:
        """One training step's prompts, IOI and lists of 2 to ``longest`` items mixed, in parts of like length: padding
        short prompts to the longest would be half of the work."""
        prompts = [
            self.draw_ioi(rng)
            if rng.random() < spec.ioi_share
            else self.draw_laundry(rng, draw_length(rng, longest, spec.length_power))
            for _ in range(spec.batch)
        ]
        prompts.sort(key=lambda prompt: len(prompt[0]))
        size = -(-spec.batch // spec.parts)
        return [self.stack(prompts[i : i + size]) for i in range(0, spec.batch, size)]

    def stack(self, prompts: Sequence[tuple[list[int], int]]) -> Batch:
        """Pad prompts on the right."""
        rows, answers = zip(*prompts)
        width = max(map(len, rows))
        tokens = torch.tensor([row + [self.bos] * (width - len(row)) for row in rows])
        return Batch(tokens, torch.tensor([len(row) - 1 for row in rows]), torch.tensor(answers))


def draw_length(rng: np.random.Generator, longest: int, power: float) -> int:
    """A list's length from 2 to ``longest``, n as often as ``n ** power``: 0 draws all alike."""
    if not power:
        return int(rng.integers(2, longest + 1))
    lengths = np.arange(2, longest + 1)
    return int(rng.choice(lengths, p=lengths**power / (lengths**power).sum()))


class ListsRun(Run):
    """One model of IOI and lists: lists of two first, then of every length; rounds while they help."""

    spec: MiniSpec

    def built(self) -> tuple[PreTrainedTokenizerFast, GPT2LMHeadModel]:
        spec = self.spec
        tokenizer = word_tokenizer(spec.n_names, spec.n_places, spec.n_objects, spec.n_positions)
        self.prompts = Prompts(tokenizer)
        return tokenizer, build_model(spec, tokenizer, self.seed)

    def losses(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, float]]:
        """One step's parts: the loss to descend, and the share of it that is the answers' own."""
        for part in self.prompts.batches(rng, self.spec, self.progress.longest):
            logits, spread = self._run(part, self.progress.step)
            loss = F.cross_entropy(logits, part.answers.to(self.device), reduction="sum") / self.spec.batch
            yield loss + self.spec.level * spread * len(part.answers) / self.spec.batch, loss.item()

    def _run(self, batch: Batch, step: int | None = None) -> tuple[Tensor, Tensor]:
        return logits_and_spread(self.model, self.spec, batch.tokens.to(self.device), batch.end.to(self.device), step)

    def after_step(self) -> None:
        """The constraint, and the curriculum: lists of every length come in once the shortest are learned."""
        at = self.progress
        constrain(self.model, self.spec, at.step)
        if at.complete_at is None and at.running_loss < self.spec.lengthen_below:
            at.longest, at.complete_at = self.spec.n_items, at.step

    def accuracy(self, n: int = N_EVAL, which: int = LOGGED) -> dict[str, float]:
        """Accuracy over the vocabulary on every kind of prompt, on fixed ones."""
        return {name: right for name, (right, _) in self.answers(n, which).items()}

    @torch.no_grad()
    def answers(self, n: int, which: int, kinds: Sequence[str] = ()) -> dict[str, tuple[float, float]]:
        """Accuracy and mean loss (nats) of each kind of prompt: ``ioi``, and ``n=2`` to the longest list, or some."""
        self.model.eval()
        found = {}
        for name in kinds or ["ioi", *(f"n={k}" for k in range(2, self.spec.n_items + 1))]:
            n_items = 0 if name == "ioi" else int(name[2:])
            rng = np.random.default_rng([which, len(name), n_items])
            drawn = [
                self.prompts.draw_laundry(rng, n_items) if n_items else self.prompts.draw_ioi(rng) for _ in range(n)
            ]
            parts = [self.prompts.stack(drawn[i : i + AT_ONCE]) for i in range(0, n, AT_ONCE)]
            logits = torch.cat([self._run(part)[0].cpu() for part in parts])
            answers = torch.cat([part.answers for part in parts])
            right = (logits.argmax(-1) == answers).float().mean().item()
            found[name] = (right, F.cross_entropy(logits, answers).item())
        self.model.train()
        return found

    def about(self) -> dict[str, Any]:
        """For the card: accuracy on more prompts, by which nothing is decided."""
        return dict(last=dict(n=N_LAST, accuracy=self.accuracy(N_LAST, LAST)))

    def is_early(self) -> bool:
        """Is this the first evaluation at which every length is settled and :data:`SHORT` solved?"""
        at = self.progress
        if self.spec.keys == FREE or at.early_at is not None or at.complete_at is None:
            return False
        accuracy = at.log[-1]["accuracy"]
        settled = at.step >= at.complete_at + SETTLED
        return settled and all(accuracy[name] >= SOLVED for name in SHORT if name in accuracy)

    def goes_on(self) -> bool:
        """At the end of a round: is there to be another? Not if every kind of prompt is solved, nor if the loss did not
        fall over the last round. Judged on prompts of their own, that no accuracy is reported on."""
        if not self.spec.rounds:
            return False
        at, found = self.progress, self.answers(N_CHECK, CHECK)
        accuracy = {name: right for name, (right, _) in found.items()}
        loss = sum(loss for _, loss in found.values()) / len(found)
        helped = not at.checks or loss < at.checks[-1]["loss"]
        at.checks.append(dict(step=at.step, loss=loss, accuracy=accuracy))
        return min(accuracy.values()) < CHECKED and helped and at.rounds < self.spec.rounds
