"""In-context tasks of words on one model: how well it does each, beside controls, and which of them it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.gate import AT_LEAST
from talking_heads_utils.forward.ends import logits_in_blocks
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import Numbers, asked_at
from talking_heads_utils.prompts.relations import (
    ANOTHER,
    ITS_OWN,
    SHUFFLED,
    Relation,
    draw_words,
    encode_words,
    load_relations,
)
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.words import check_one_token
from talking_heads_utils.stats import share_in_clusters

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

COUNTS = (0, 1, 2, 4, 8, 16)


def answers_of(relation: Relation, tokenizer: PreTrainedTokenizerBase) -> Numbers:
    """A task's answers, by their places in :attr:`Relation.answers`."""
    ids = [check_one_token(word, tokenizer) for word in relation.answers]
    return Numbers(torch.arange(len(ids)), torch.tensor(ids))


def words_table(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    n: int = 48,
    examples: Sequence[int] = COUNTS,
    seed: int = 0,
    *,
    halves: Sequence[str] = (SELECTION, HELD_OUT),
    relations: Sequence[Relation] | None = None,
) -> pd.DataFrame:
    """How well a model does every task of words after some numbers of examples, beside two controls.

    Columns ``task, n_examples, examples, accuracy, low, high, among, among_low, among_high, chance, n, n_pairs,
    left_out, half``. accuracy: greedy, over the whole vocabulary; among: over the task's answers, whose ``chance`` it
    is held against; 95% intervals over answers, as prompts with one answer are alike. examples: the task's own; with
    labels permuted among a prompt's; or of another task, drawn for each prompt. Against that last one
    ``among`` is to be read: a word that looks like the question wins among answers whatever the task. n_pairs: those
    whose answer is one token; left_out: the others. A half of too few pairs has no row for many examples. Examples of
    the task itself are read off one pass over the longest prompts: what follows a question cannot change its answer.
    """
    import pandas as pd

    every = load_relations(tokenizer) if relations is None else list(relations)
    rows = []
    for relation in follow(every, "tasks of words"):
        others = [other for other in every if other is not relation]
        about = dict(n_pairs=len(relation.pairs), left_out=relation.left_out)
        for half in halves:
            counts = [k for k in examples if k < len(relation.half(half))]
            for shown in (ITS_OWN, SHUFFLED, ANOTHER):
                for k, found in _scored(bridge, tokenizer, relation, others, n, counts, half, shown, seed).items():
                    rows.append(dict(task=relation.name, n_examples=k, examples=shown) | found | about | {"half": half})
    return pd.DataFrame(rows)


def _scored(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    relation: Relation,
    others: Sequence[Relation],
    n: int,
    counts: Sequence[int],
    half: str,
    shown: str,
    seed: int,
) -> dict[int, dict]:
    """By number of examples, one condition's scores."""
    if shown == ITS_OWN:
        return _along(bridge, tokenizer, relation, n, list(counts), half, seed)
    sources = others if shown == ANOTHER else [relation]
    least = {SHUFFLED: 2, ANOTHER: 1}[shown]
    found = {}
    for k in [k for k in counts if k >= least and any(k + 1 < len(source.half(half)) for source in sources)]:
        drawn = draw_words(relation, n, k, half, examples=shown, others=others, seed=seed)
        prompts = encode_words(drawn, relation, tokenizer, half=half, seed=seed, n_ctx=bridge.cfg.n_ctx)
        right = torch.tensor(list(prompts.info["answer"]))[:, None]
        answers = answers_of(relation, tokenizer)
        greedy, among = answered(bridge, prompts, prompts.positions["end"][:, None], right, answers)
        found[k] = _summary(greedy, among, right, answers)
    return found


def _along(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    relation: Relation,
    n: int,
    counts: list[int],
    half: str,
    seed: int,
) -> dict[int, dict]:
    """Scores after each of ``counts`` examples of the task's own, all read off the prompts with the most. Not for
    shuffled labels: a shorter prompt's question would find its answer in the pair before it."""
    if not counts:
        return {}
    drawn = draw_words(relation, n, max(counts), half, seed=seed)
    prompts = encode_words(drawn, relation, tokenizer, half=half, seed=seed, n_ctx=bridge.cfg.n_ctx)
    places, right = torch.stack(asked_at(prompts), 1)[:, counts], relation.right(drawn)[:, counts]
    answers = answers_of(relation, tokenizer)
    greedy, among = answered(bridge, prompts, places, right, answers)
    return {k: _summary(greedy[:, [i]], among[:, [i]], right[:, [i]], answers) for i, k in enumerate(counts)}


def answered(
    bridge: TransformerBridge,
    prompts: PromptSet,
    places: Int[Tensor, "n n_places"],
    right: Int[Tensor, "n n_places"],
    answers: Numbers,
) -> tuple[Bool[Tensor, "n n_places"], Bool[Tensor, "n n_places"]]:
    """Whether the right answer has the highest logit at each place: over the vocabulary, and among the answers."""
    greedy, among = torch.zeros_like(right, dtype=torch.bool), torch.zeros_like(right, dtype=torch.bool)
    for rows, logits in logits_in_blocks(bridge, prompts.tokens, places, batch=32):
        greedy[rows] = logits.argmax(-1) == answers.ids[right[rows]]
        among[rows] = answers.read(logits[..., answers.ids]) == right[rows]
    return greedy, among


def _summary(greedy: Tensor, among: Tensor, right: Tensor, answers: Numbers) -> dict:
    exact, best = (share_in_clusters(hits[:, 0], right[:, 0]) for hits in (greedy, among))
    return dict(
        accuracy=exact.mean, low=exact.low, high=exact.high, among=best.mean, among_low=best.low, among_high=best.high,
        chance=1 / len(answers.ids), n=exact.n,
    )  # fmt: skip


def gate_table(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, n_examples: int, *, n: int = 32, seed: int = 0
) -> pd.DataFrame:
    """Which tasks a model may be asked: :func:`words_table` on the selection half after ``n_examples`` alone, and
    ``passes``: the lower bound of its accuracy over the vocabulary is :data:`~experiments.gate.AT_LEAST` times
    chance among the answers.

    Tasks of which a half has too few pairs for such prompts, and prompts to set beside them, are left out; the table
    may be empty.
    """
    import pandas as pd

    fit = [r for r in load_relations(tokenizer) if min(len(r.half(h)) for h in (SELECTION, HELD_OUT)) > n_examples + 1]
    rows = []
    for relation in follow(fit, "tasks of words"):
        found = _along(bridge, tokenizer, relation, n, [n_examples], SELECTION, seed)[n_examples]
        passes = found["low"] >= AT_LEAST * found["chance"]
        rows.append(dict(task=relation.name, n_examples=n_examples) | found
                    | dict(n_pairs=len(relation.pairs), left_out=relation.left_out, passes=passes))  # fmt: skip
    return pd.DataFrame(rows)


def choose_task(gate: pd.DataFrame, name: str) -> str:
    """The task that passes the gate with the highest lower bound of accuracy over the vocabulary.

    Raises :class:`TaskError` where none passes.
    """
    passed = gate[gate["passes"]] if len(gate) else gate
    if not len(passed):
        raise TaskError(
            f"{name} can be asked nothing in context: its tokenizer splits the numbers, and of {len(gate)} tasks of "
            f"words with answers of one token it does none better than {AT_LEAST} times chance."
        )
    return str(passed.loc[passed["low"].idxmax(), "task"])
