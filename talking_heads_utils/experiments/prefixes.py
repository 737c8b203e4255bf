"""Which prefix a model does its tasks best behind: chosen on one half of the prompts, confirmed on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from talking_heads_utils.metrics import answer_logits, correct, logit_difference
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.halves import half_rows
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, share

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

N_ITEMS = 4  # of the lists


def prefix_candidates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Nothing, and the tokenizer's own marks for the beginning, the end and the unknown, as far as it has them."""
    marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    return list(dict.fromkeys(["", *(str(mark) for mark in marks if mark is not None)]))


def prefix_table(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    candidates: Sequence[str],
    n: int = 200,
    seed: int = SEED,
) -> pd.DataFrame:
    """IOI and lists of four behind each candidate, ``n`` prompts a half, the same behind each.

    candidates: tokens as text, ``""`` for none. Columns: task, prefix, half, n, and, each with the ends of its 95%
    interval (``... low``, ``... high``), ``accuracy`` among the candidates (Wilson), ``over vocabulary`` (Wilson) and
    ``logit difference`` (bootstrap). Raises :class:`TaskError` for a prefix that the tokenizer does not know.
    """
    import pandas as pd

    rows = []
    for prefix in candidates:
        for prompts in (
            ioi.build_ioi(tokenizer, 2 * n, seed, prefix=prefix),
            laundry.build_laundry(tokenizer, N_ITEMS, 2 * n, seed, prefix=prefix, n_ctx=bridge.cfg.n_ctx),
        ):
            rows += _scores(bridge, prompts)
    return pd.DataFrame(rows).sort_values(["task", "half"], kind="stable", ascending=[True, False], ignore_index=True)


def _scores(bridge: TransformerBridge, prompts: PromptSet) -> list[dict[str, Any]]:
    """One row a half."""
    logits = answer_logits(bridge, prompts).cpu()
    values = {
        "accuracy": correct(logits, prompts),
        "over vocabulary": correct(logits, prompts, among_candidates=False),
        "logit difference": logit_difference(logits, prompts),
    }
    rows = []
    for half, keep in zip((laundry.SELECTION, laundry.HELD_OUT), half_rows(prompts)):
        row: dict[str, Any] = {
            "task": prompts.recipe.task,
            "prefix": prompts.recipe.prefix,
            "half": half,
            "n": len(keep),
        }
        for name, value in values.items():
            found = bootstrap_mean(value[keep]) if value.is_floating_point() else share(value[keep])
            row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
        rows.append(row)
    return rows


def chosen_prefix(table: pd.DataFrame) -> str:
    """The prefix with the highest mean over the tasks of accuracy among the candidates, on the selection half alone; of
    equal ones that with the larger logit difference."""
    selection = table[table["half"] == laundry.SELECTION]
    means = selection.groupby("prefix", sort=False)[["accuracy", "logit difference"]].mean()
    return str(means.sort_values(["accuracy", "logit difference"], ascending=False, kind="stable").index[0])
