"""In-context tasks of words on one model: how well it does each, beside controls, and which of them it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT
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
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.experiments.context import Context

COUNTS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class WordsRow(Row):
    """How well a model does one task of words in context."""

    task: str = column("", "relation of words")
    half: str = column("", "half of the relation's pairs, selection or held-out")
    examples: str = column("", "examples: the task's own, the same with labels permuted, or of another task")
    n_examples: int = column("", "examples in the prompt")
    accuracy: float = column("share", "right answers, over the whole vocabulary")
    low: float = column("share", "lower end of accuracy, 95% over answers")
    high: float = column("share", "upper end of accuracy")
    among: float = column("share", "right answers, among the task's answers")
    among_low: float = column("share", "lower end of among")
    among_high: float = column("share", "upper end of among")
    chance: float = column("share", "one over the number of the task's answers")
    n: int = column("", "prompts")
    n_pairs: int = column("", "pairs whose answer is one token")
    left_out: int = column("", "pairs whose answer is several tokens")


def answers_of(relation: Relation, tokenizer: PreTrainedTokenizerBase) -> Numbers:
    """A task's answers, by their places in :attr:`Relation.answers`."""
    ids = [check_one_token(word, tokenizer) for word in relation.answers]
    return Numbers(torch.arange(len(ids)), torch.tensor(ids))


def words(
    run: Context,
    n: int = 32,
    counts: Sequence[int] = COUNTS,
    *,
    halves: Sequence[str] = (HELD_OUT,),
    relations: Sequence[Relation] | None = None,
) -> list[WordsRow]:
    """Every task of words after ``counts`` examples, beside two controls: labels permuted among a prompt's examples,
    and examples of another task, drawn for each prompt.

    Against that last one ``among`` is to be read: a word that looks like the question wins among answers whatever the
    task. A half of too few pairs has no row for many examples.
    """
    every = load_relations(run.tokenizer) if relations is None else list(relations)
    rows = []
    for relation in follow(every, "tasks of words"):
        others = [other for other in every if other is not relation]
        for half in halves:
            fit = [k for k in counts if k < len(relation.half(half))]
            rows += _along(run, relation, n, fit, half)
            for shown, least, sources in ((SHUFFLED, 2, [relation]), (ANOTHER, 1, others)):
                for k in fit:
                    if k >= least and any(k + 1 < len(source.half(half)) for source in sources):
                        rows.append(_control(run, relation, others, n, k, half, shown))
    return rows


def _along(run: Context, relation: Relation, n: int, counts: Sequence[int], half: str) -> list[WordsRow]:
    """After each of ``counts`` examples of the task's own, all read off one pass over the prompts with the most: what
    follows a question cannot change its answer. Not for permuted labels, where a question's answer stands above it."""
    if not counts:
        return []
    drawn = draw_words(relation, n, max(counts), half, seed=run.seed)
    prompts = _encode(run, relation, drawn, half)
    places, right = torch.stack(asked_at(prompts), 1)[:, counts], relation.right(drawn)[:, counts]
    hits = answered(run, prompts, places, right, answers_of(relation, run.tokenizer))
    return [_row(relation, half, ITS_OWN, k, right[:, i], *(h[:, i] for h in hits)) for i, k in enumerate(counts)]


def _control(
    run: Context, relation: Relation, others: Sequence[Relation], n: int, k: int, half: str, shown: str
) -> WordsRow:
    drawn = draw_words(relation, n, k, half, examples=shown, others=others, seed=run.seed)
    prompts = _encode(run, relation, drawn, half)
    right = torch.tensor(list(prompts.info["answer"]))[:, None]
    hits = answered(run, prompts, prompts.positions["end"][:, None], right, answers_of(relation, run.tokenizer))
    return _row(relation, half, shown, k, right[:, 0], *(h[:, 0] for h in hits))


def _encode(run: Context, relation: Relation, drawn: Sequence, half: str) -> PromptSet:
    return encode_words(drawn, relation, run.tokenizer, half=half, seed=run.seed, n_ctx=run.bridge.cfg.n_ctx)


def answered(
    run: Context,
    prompts: PromptSet,
    places: Int[Tensor, "n n_places"],
    right: Int[Tensor, "n n_places"],
    answers: Numbers,
) -> tuple[Bool[Tensor, "n n_places"], Bool[Tensor, "n n_places"]]:
    """Whether the right answer has the highest logit at each place: over the vocabulary, and among the answers."""
    greedy, among = torch.zeros_like(right, dtype=torch.bool), torch.zeros_like(right, dtype=torch.bool)
    for rows, logits in logits_in_blocks(run.bridge, prompts.tokens, places, batch=32):
        greedy[rows] = logits.argmax(-1) == answers.ids[right[rows]]
        among[rows] = answers.read(logits[..., answers.ids]) == right[rows]
    return greedy, among


@torch.no_grad()
def logits_in_blocks(
    bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], places: Int[Tensor, "n k"], *, batch: int = 64
) -> Iterator[tuple[slice, Float[Tensor, "rows k d_vocab"]]]:
    """Logits at ``places``, ``batch`` rows at a time: which rows, and their logits, on the CPU in float32."""
    for rows in batches.blocks(len(tokens), batch):
        with logits_at(bridge, places[rows]):
            yield rows, bridge(tokens[rows].to(bridge.cfg.device)).float().cpu()


def _row(relation: Relation, half: str, shown: str, k: int, right: Tensor, greedy: Tensor, among: Tensor) -> WordsRow:
    exact, best = (share_in_clusters(hits, right) for hits in (greedy, among))
    return WordsRow(
        relation.name, half, shown, k, *exact[:3], *best[:3], 1 / len(relation.answers), exact.n,
        len(relation.pairs), relation.left_out,
    )  # fmt: skip
