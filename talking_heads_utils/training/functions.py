"""The job of a small model that learns functions in context: its words, its prompts, its loss on every y."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.functions import Examples, Family, bayes_accuracy, trained_prior
from talking_heads_utils.prompts.toy import number_tokenizer
from talking_heads_utils.training.model import fresh_gpt2
from talking_heads_utils.training.spec import FunctionsSpec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from talking_heads_utils.training.loop import Progress

COMMA = ","
PER_PAIR = 3  # tokens: x , y


@dataclass(frozen=True)
class FunctionsJob:
    """What :class:`~talking_heads_utils.training.loop.Run` needs to know of this kind of model."""

    spec: FunctionsSpec
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, spec: FunctionsSpec) -> FunctionsJob:
        """Raises :class:`TaskError` if a prompt does not fit the model's positions."""
        width = 1 + PER_PAIR * (spec.n_pairs + 1)
        if width > spec.n_positions:
            raise TaskError(f"{spec.n_pairs} pairs take {width} tokens; {spec.name} has {spec.n_positions} positions.")
        return cls(spec, number_tokenizer(spec.family().n_numbers, spec.n_positions))

    def build(self, seed: int) -> GPT2LMHeadModel:
        """A fresh GPT-2, with attention dropout."""
        spec = self.spec
        return fresh_gpt2(spec, len(self.tokenizer), self.tokenizer.bos_token_id, seed, dropout=spec.dropout)

    def losses(
        self, model: GPT2LMHeadModel, rng: np.random.Generator, progress: Progress, device: str
    ) -> Iterator[tuple[Tensor, float]]:
        """One step's loss, over the answers of all pairs, the first (a guess) too."""
        spec = self.spec
        torch.manual_seed(int(rng.integers(2**62)))  # of the attention dropout
        family = spec.family(spec.noise * min(1.0, progress.step / spec.ramp) if spec.ramp else spec.noise)
        examples = self._draw(rng, family, spec.batch, ~family.held_out)
        with torch.autocast(torch.device(device).type, torch.bfloat16):  # on a recent CPU too a third of a step's time
            logits = self.answer_logits(model, examples, device)
        loss = F.cross_entropy(logits.float().flatten(0, 1), examples.clean.flatten().to(device))
        yield loss, loss.item()

    def _draw(self, rng: np.random.Generator, family: Family, n: int, among: Tensor) -> Examples:
        return family.draw(n, self.spec.n_pairs + 1, torch.Generator().manual_seed(int(rng.integers(2**62))), among)

    def tokens(self, examples: Examples) -> Int[Tensor, "n n_pos"]:
        """``<bos> x , y x , y ...``"""
        zero = self.tokenizer.convert_tokens_to_ids("0")
        comma = torch.full_like(examples.x, self.tokenizer.convert_tokens_to_ids(COMMA))
        pairs = torch.stack([examples.x + zero, comma, examples.y + zero], 2).flatten(1)
        return torch.cat([torch.full((len(pairs), 1), self.tokenizer.bos_token_id), pairs], 1)

    def answer_logits(
        self, model: GPT2LMHeadModel, examples: Examples, device: str
    ) -> Float[Tensor, "n n_pairs n_numbers"]:
        """Logits of the numbers at the comma of every pair, from which its y is answered."""
        hidden = model.transformer(self.tokens(examples).to(device)).last_hidden_state[:, 2::PER_PAIR]
        zero = self.tokenizer.convert_tokens_to_ids("0")
        return model.lm_head(hidden)[..., zero:]

    def after_step(self, model: GPT2LMHeadModel, progress: Progress) -> None:
        """Nothing is constrained, and there is no curriculum but the noise."""

    @torch.no_grad()
    def accuracy(self, model: GPT2LMHeadModel, n: int, device: str) -> dict[str, float]:
        """Accuracy after k examples on fixed prompts, of the functions that training shows and of those held out."""
        model.eval()
        family = self.spec.family()
        found: dict[str, float] = {}
        for name in ("", "held-out "):
            examples = self._fixed(family, name, n)
            right = self.answer_logits(model, examples, device).argmax(-1).cpu() == examples.clean
            found |= {f"{name}k={k}": value for k, value in enumerate(right.float().mean(0).tolist())}
        model.train()
        return found

    def about(self, model: GPT2LMHeadModel, n: int, device: str) -> dict[str, Any]:
        """For the card: the exact reader's accuracy on the prompts of :meth:`accuracy`, and the model's after all
        examples function by function, on 20 prompts each."""
        family = self.spec.family()
        reader: dict[str, float] = {}
        uniform = torch.full((len(family.functions),), 1 / len(family.functions))
        for name, prior in (("", trained_prior(family)), ("held-out ", uniform)):
            found = bayes_accuracy(family, self._fixed(family, name, n), prior).mean(0)
            reader |= {f"{name}k={k}": round(value, 4) for k, value in enumerate(found.tolist())}
        return dict(exact_reader=reader, by_function=self._by_function(model, family, device))

    @torch.no_grad()
    def _by_function(self, model: GPT2LMHeadModel, family: Family, device: str) -> list[dict[str, Any]]:
        model.eval()
        rows = []
        for i, (a, b) in enumerate(family.functions.tolist()):
            among = torch.arange(len(family.functions)) == i
            examples = self._draw(np.random.default_rng([10, i]), family, 20, among)
            right = self.answer_logits(model, examples, device)[:, -1].argmax(-1).cpu() == examples.clean[:, -1]
            held_out = bool(family.held_out[i])
            rows.append(dict(a=a, b=b, held_out=held_out, accuracy=round(right.float().mean().item(), 2)))
        model.train()
        return rows

    def _fixed(self, family: Family, name: str, n: int) -> Examples:
        """The prompts that accuracies are taken on, of trained (empty name) or held-out functions."""
        among = family.held_out if name else ~family.held_out
        return self._draw(np.random.default_rng([9, len(name)]), family, n, among)

    def where(self, progress: Progress) -> str:
        """What the line of progress says beyond steps and loss."""
        return ""

    def goes_on(self, model: GPT2LMHeadModel, progress: Progress, device: str) -> bool:
        """One schedule and no more."""
        return False

    def at_the_end(self, progress: Progress) -> str | None:
        """What there is to say when the last step is done."""
        return None

    def is_early(self, progress: Progress) -> bool:
        """These models have no early checkpoint."""
        return False
