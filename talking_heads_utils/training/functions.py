"""A small model that learns functions in context: its prompts, its loss on every y."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.experiments.icl.functions import Examples, Family, bayes_accuracy, trained_prior
from talking_heads_utils.prompts.toy import level_tokenizer
from talking_heads_utils.training.loop import N_EVAL, Run
from talking_heads_utils.training.model import fresh_gpt2
from talking_heads_utils.training.spec import FunctionsSpec

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

PER_PAIR = 3  # tokens: x , y
SEEN, HELD_OUT = "", "held-out "  # functions that training shows, and others: how names of accuracies begin


class FunctionsRun(Run):
    """One model of functions: attention dropout, label noise that grows, one schedule."""

    spec: FunctionsSpec

    def built(self) -> tuple[PreTrainedTokenizerFast, GPT2LMHeadModel]:
        tokenizer = number_tokenizer(self.spec.family().n_numbers, self.spec.n_positions)
        return tokenizer, fresh_gpt2(self.spec, tokenizer, self.seed, dropout=self.spec.dropout)

    def losses(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, float]]:
        """One step's loss, over the answers of all pairs, the first (a guess) too."""
        spec = self.spec
        torch.manual_seed(int(rng.integers(2**62)))  # of the attention dropout
        family = spec.family(spec.noise * min(1.0, self.progress.step / spec.ramp) if spec.ramp else spec.noise)
        examples = self._draw(rng, family, spec.batch, ~family.held_out)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):  # on a recent CPU too a third of the time
            logits = self.answer_logits(examples)
        loss = F.cross_entropy(logits.float().flatten(0, 1), examples.clean.flatten().to(self.device))
        yield loss, loss.item()

    def _draw(self, rng: np.random.Generator, family: Family, n: int, among: Tensor) -> Examples:
        return family.draw(n, self.spec.n_pairs + 1, torch.Generator().manual_seed(int(rng.integers(2**62))), among)

    def tokens(self, examples: Examples) -> Int[Tensor, "n n_pos"]:
        """``<bos> x , y x , y ...``"""
        zero, comma = self.tokenizer.convert_tokens_to_ids(["0", ","])
        pairs = torch.stack([examples.x + zero, torch.full_like(examples.x, comma), examples.y + zero], 2).flatten(1)
        return torch.cat([torch.full((len(pairs), 1), self.tokenizer.bos_token_id), pairs], 1)

    def answer_logits(self, examples: Examples) -> Float[Tensor, "n n_pairs n_numbers"]:
        """Logits of the numbers at the comma of every pair, from which its y is answered."""
        hidden = self.model.transformer(self.tokens(examples).to(self.device)).last_hidden_state[:, 2::PER_PAIR]
        return self.model.lm_head(hidden)[..., self.tokenizer.convert_tokens_to_ids("0") :]

    @torch.no_grad()
    def accuracy(self, n: int = N_EVAL) -> dict[str, float]:
        """Accuracy after k examples on fixed prompts, of the functions that training shows and of those held out."""
        self.model.eval()  # without dropout
        found: dict[str, float] = {}
        for kind, examples in self._fixed(n).items():
            right = (self.answer_logits(examples).argmax(-1).cpu() == examples.clean).float().mean(0)
            found |= {f"{kind}k={k}": value for k, value in enumerate(right.tolist())}
        self.model.train()
        return found

    def _fixed(self, n: int) -> dict[str, Examples]:
        """The prompts that accuracies are taken on, of the functions that training shows and of those held out."""
        family = self.spec.family()
        return {
            kind: self._draw(np.random.default_rng([9, len(kind)]), family, n, among)
            for kind, among in ((SEEN, ~family.held_out), (HELD_OUT, family.held_out))
        }

    def about(self) -> dict[str, Any]:
        """For the card: the exact reader's accuracy on the prompts of :meth:`accuracy`."""
        family = self.spec.family()
        uniform = torch.full((len(family.functions),), 1 / len(family.functions))
        priors = {SEEN: trained_prior(family), HELD_OUT: uniform}
        reader = {
            f"{kind}k={k}": round(value, 4)
            for kind, examples in self._fixed(N_EVAL).items()
            for k, value in enumerate(bayes_accuracy(family, examples, priors[kind]).mean(0).tolist())
        }
        return dict(exact_reader=reader)


def number_tokenizer(n_numbers: int, n_positions: int) -> PreTrainedTokenizerFast:
    """One token per number, and the comma. Brackets and line ends, which prompts of functions have, are dropped."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = [",", *map(str, range(n_numbers))]
    brackets = normalizers.Replace(Regex("[()]"), " ")
    return level_tokenizer(words, pre_tokenizers.Whitespace(), n_positions, brackets)
