"""The job of a small model that learns functions in context: its prompts, its loss on every y."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.experiments.icl.functions import Examples, Family, bayes_accuracy, trained_prior
from talking_heads_utils.prompts.toy import level_tokenizer
from talking_heads_utils.training.model import fresh_gpt2
from talking_heads_utils.training.spec import FunctionsSpec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from talking_heads_utils.training.loop import Progress

PER_PAIR = 3  # tokens: x , y


@dataclass(frozen=True)
class FunctionsJob:
    """One model of functions: attention dropout, label noise that grows, one schedule."""

    spec: FunctionsSpec
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, spec: FunctionsSpec) -> FunctionsJob:
        """With the numbers that the model of this recipe knows."""
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

    def after_step(self, model: GPT2LMHeadModel, progress: Progress) -> None:
        """There is no constraint to put back, and no curriculum."""

    def is_early(self, progress: Progress) -> bool:
        """No early checkpoint is taken."""
        return False

    def goes_on(self, model: GPT2LMHeadModel, progress: Progress, device: str) -> bool:
        """There are no further rounds."""
        return False

    def _draw(self, rng: np.random.Generator, family: Family, n: int, among: Tensor) -> Examples:
        return family.draw(n, self.spec.n_pairs + 1, torch.Generator().manual_seed(int(rng.integers(2**62))), among)

    def tokens(self, examples: Examples) -> Int[Tensor, "n n_pos"]:
        """``<bos> x , y x , y ...``"""
        zero, comma = self.tokenizer.convert_tokens_to_ids(["0", ","])
        pairs = torch.stack([examples.x + zero, torch.full_like(examples.x, comma), examples.y + zero], 2).flatten(1)
        return torch.cat([torch.full((len(pairs), 1), self.tokenizer.bos_token_id), pairs], 1)

    def answer_logits(
        self, model: GPT2LMHeadModel, examples: Examples, device: str
    ) -> Float[Tensor, "n n_pairs n_numbers"]:
        """Logits of the numbers at the comma of every pair, from which its y is answered."""
        hidden = model.transformer(self.tokens(examples).to(device)).last_hidden_state[:, 2::PER_PAIR]
        return model.lm_head(hidden)[..., self.tokenizer.convert_tokens_to_ids("0") :]

    @torch.no_grad()
    def _right(self, model: GPT2LMHeadModel, examples: Examples, device: str) -> Float[Tensor, "n_pairs"]:
        """Share of right answers by number of examples seen, without dropout."""
        model.eval()
        answers = self.answer_logits(model, examples, device).argmax(-1).cpu()
        model.train()
        return (answers == examples.clean).float().mean(0)

    def _fixed(self, family: Family, name: str, n: int) -> Examples:
        """The prompts that accuracies are taken on, of trained (empty name) or held-out functions."""
        among = family.held_out if name else ~family.held_out
        return self._draw(np.random.default_rng([9, len(name)]), family, n, among)

    def accuracy(self, model: GPT2LMHeadModel, n: int, device: str) -> dict[str, float]:
        """Accuracy after k examples on fixed prompts, of the functions that training shows and of those held out."""
        family = self.spec.family()
        found = {name: self._right(model, self._fixed(family, name, n), device) for name in ("", "held-out ")}
        return {f"{name}k={k}": value for name, right in found.items() for k, value in enumerate(right.tolist())}

    def about(self, model: GPT2LMHeadModel, n: int, device: str) -> dict[str, Any]:
        """For the card: the exact reader's accuracy on the prompts of :meth:`accuracy`."""
        family = self.spec.family()
        uniform = torch.full((len(family.functions),), 1 / len(family.functions))
        reader = {
            f"{name}k={k}": round(value, 4)
            for name, prior in (("", trained_prior(family)), ("held-out ", uniform))
            for k, value in enumerate(bayes_accuracy(family, self._fixed(family, name, n), prior).mean(0).tolist())
        }
        return dict(exact_reader=reader)


def number_tokenizer(n_numbers: int, n_positions: int) -> PreTrainedTokenizerFast:
    """One token per number, and the comma. Brackets and line ends, which prompts of functions have, are dropped."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = [",", *map(str, range(n_numbers))]
    brackets = normalizers.Replace(Regex("[()]"), " ")
    return level_tokenizer(words, pre_tokenizers.Whitespace(), n_positions, brackets)
