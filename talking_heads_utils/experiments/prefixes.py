"""Which prefix a model does its tasks best behind: chosen on one half of the prompts, confirmed on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.metrics import answer_logits, correct, logit_difference
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.halves import half_rows
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import bootstrap_mean, share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

N_ITEMS = 4  # of the lists


def prefix_candidates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Nothing, and the tokenizer's own marks for the beginning, the end and the unknown, as far as it has them."""
    marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    return list(dict.fromkeys(["", *(str(mark) for mark in marks if mark is not None)]))


@dataclass(frozen=True)
class PrefixRow(Row):
    """How well a model does one task behind one prefix, on one half of the prompts; 95% intervals."""

    task: str = column("", "ioi or laundry")
    prefix: str = column("", "tokens in front of every prompt, as text")
    half: str = column("", "selection or held-out")
    n: int = column("prompts", "prompts of this half")
    accuracy: float = column("share", "prompts whose answer has the highest logit among the candidates")
    accuracy_low: float = column("share", "lower end of its interval (Wilson)")
    accuracy_high: float = column("share", "upper end of its interval")
    over_vocabulary: float = column("share", "prompts whose answer has the highest logit of all tokens")
    over_vocabulary_low: float = column("share", "lower end of its interval (Wilson)")
    over_vocabulary_high: float = column("share", "upper end of its interval")
    logit_diff: float = column("logits", "logit of the answer less the mean of the others")
    logit_diff_low: float = column("logits", "lower end of its interval (bootstrap over prompts)")
    logit_diff_high: float = column("logits", "upper end of its interval")


def run(c: Context) -> list[PrefixRow]:
    """Behind every mark that the tokenizer has, and behind none."""
    return prefix_rows(c.bridge, c.tokenizer, prefix_candidates(c.tokenizer), c.n(100), c.seed)


def prefix_rows(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, candidates: Sequence[str], n: int, seed: int
) -> list[PrefixRow]:
    """IOI and lists of four behind each candidate, ``n`` prompts a half, the same behind each.

    candidates: tokens as text, ``""`` for none. Raises :class:`TaskError` for one that the tokenizer does not know.
    """
    rows = []
    for prefix in candidates:
        rows += _rows(bridge, ioi.build_ioi(tokenizer, 2 * n, seed, prefix=prefix))
        lists = laundry.build_laundry(tokenizer, N_ITEMS, 2 * n, seed, prefix=prefix, n_ctx=bridge.cfg.n_ctx)
        rows += _rows(bridge, lists)
    return sorted(rows, key=lambda row: (row.task, row.half != laundry.SELECTION))


def _rows(bridge: TransformerBridge, prompts: PromptSet) -> list[PrefixRow]:
    """One row a half."""
    logits, rows = answer_logits(bridge, prompts).cpu(), []
    hits, over_all = (correct(logits, prompts, among_candidates=among) for among in (True, False))
    for half, keep in zip((laundry.SELECTION, laundry.HELD_OUT), half_rows(prompts)):
        difference = bootstrap_mean(logit_difference(logits, prompts)[keep])
        ends = (end for found in (share(hits[keep]), share(over_all[keep]), difference) for end in found[:3])
        rows.append(PrefixRow(prompts.recipe.task, str(prompts.recipe.prefix), half, len(keep), *ends))
    return rows


def chosen_prefix(rows: Sequence[PrefixRow]) -> str:
    """The prefix with the highest mean over the tasks of accuracy among the candidates, on the selection half alone; of
    equal ones that with the larger logit difference."""

    def worth(prefix: str) -> tuple[float, float]:
        own = [row for row in rows if (row.prefix, row.half) == (prefix, laundry.SELECTION)]
        return fmean(row.accuracy for row in own), fmean(row.logit_diff for row in own)

    return max(dict.fromkeys(row.prefix for row in rows), key=worth)
