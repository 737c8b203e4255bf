"""Functions in context, whatever a tokenizer does to numbers: answers of several tokens, scored whole.

Many tokenizers split numbers into digits. There y = a x + b has no answer token; it has an answer. Where any candidate
of a set of questions is several tokens, the bracket that closes the pair belongs to every answer, so that 8 is not
taken for right because 87 begins with it. Where all are single tokens nothing is added, and scores are those of single
tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import TaskError, UnsupportedModelError
from talking_heads_utils.experiments.icl.tasks import FUNCTIONS
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.prompts.encoding import tokenized
from talking_heads_utils.prompts.questions import Question, encode_questions
from talking_heads_utils.prompts.relations import ITS_OWN, SHUFFLED
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.experiments.context import Context

Candidates = Sequence[Sequence[Sequence[int]]]  # of each prompt, each candidate's tokens
COUNTS = (4, 12)  # examples
N_CANDIDATES = 8
LARGEST_X = 99
NONE = "none"
CLOSING = "\n("  # what follows a pair in a prompt: some tokenizers write the bracket and the line end as one token


def encode_whole(
    questions: Sequence[Question],
    candidates: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    n_ctx: int | None = None,
) -> tuple[PromptSet, Candidates]:
    """Prompts, and the tokens of every candidate number as they stand there. The set's ``answers`` are the first tokens
    of the right ones.

    Raises :class:`TaskError` where a candidate begins before the prompt ends, and what
    :func:`talking_heads_utils.prompts.questions.encode_questions` raises, but for answers of several tokens.
    """
    prompts = encode_questions(questions, tokenizer, seed=seed, n_ctx=n_ctx, whole=True)
    alike = [[Question(q.pairs, q.x, (0, c)) for c in some] for q, some in zip(questions, candidates)]
    found = [[_candidate_tokens(question, tokenizer) for question in some] for some in alike]
    for i, some in enumerate(found):
        row = prompts.tokens[i, prompts.mask[i]].tolist()
        if any(before != row[len(row) - len(before) :] for before, _, _ in some):
            raise TaskError("This tokenizer reads the prompt otherwise before some candidates than before others.")
    several = any(len(number) > 1 for some in found for _, number, _ in some)
    return prompts, [[[*number, *close] if several else number for _, number, close in some] for some in found]


def _candidate_tokens(question: Question, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Tokens before the answer, of the answer, and of the bracket after it, if the tokenizer knows one."""
    text = question.text()
    tokens, stop = tokenized([text + CLOSING], tokenizer)[0], len(text) - 1
    number, bracket = (tokens.covering(span) for span in ((stop - len(str(question.answer)), stop), (stop, stop + 1)))
    before, own, close = (list(tokens.ids[at.start : at.stop]) for at in (range(number[0]), number, bracket))
    return before, own, close


def candidates_for(question: Question) -> list[int]:
    """Eight numbers, the right one first: a x, x, b and x + b where they differ from it, its neighbours and those of
    its tens; then others near it. None is below 0, none stands twice."""
    (a, b), x, right = question.function, question.x, question.answer
    plausible = [right, a * x, x, b, x + b, right + 1, right - 1, right + 10, right - 10]
    plausible += [right + sign * step for step in range(2, 10) for sign in (1, -1)]
    return list(dict.fromkeys(number for number in plausible if number >= 0))[:N_CANDIDATES]


def draw_questions(
    function: tuple[int, int], n: int, n_examples: int, *, examples: str = ITS_OWN, seed: int = 0
) -> list[Question]:
    """``n`` questions of one function after ``n_examples`` pairs of different x from 0 to 99, the question's included.

    examples: the function's own, or with labels permuted among them, so that every x has another one's.
    """
    (a, b), rng, found = function, random.Random(seed), []
    for _ in range(n):
        *shown, x = rng.sample(range(LARGEST_X + 1), n_examples + 1)
        labels = [a * at + b for at in shown]
        labels = [*labels[1:], labels[0]] if examples == SHUFFLED else labels
        found.append(Question(tuple(zip(shown, labels)), x, function))
    return found


# --- scores ---


@dataclass(frozen=True)
class AnswerScores:
    """log_prob: of all tokens of each candidate, in nats, over the whole vocabulary. greedy: whether each of them has
    the highest logit after those before it, so that greedy decoding writes the candidate."""

    log_prob: Float[Tensor, "n n_candidates"]
    greedy: Bool[Tensor, "n n_candidates"]


@torch.no_grad()
def answer_log_probs(
    bridge: TransformerBridge, prompts: PromptSet, candidates: Candidates, *, batch: int = 16
) -> AnswerScores:
    """Score every candidate as what follows its prompt.

    candidates: as many for each prompt. Prompts of one length are run together, once, keeping keys and values; all
    candidates continue from there in one more pass, padded on the right. Candidates of one token need none.
    Raises :class:`TaskError` for candidates that do not fit the prompts, :class:`UnsupportedModelError` for a model
    that keeps no keys and values.
    """
    counts = {len(some) for some in candidates}
    if len(candidates) != len(prompts) or len(counts) != 1 or not all(len(c) for some in candidates for c in some):
        raise TaskError("Give every prompt as many candidates, each of one token or more.")
    lengths = prompts.mask.sum(1)
    log_prob = torch.zeros(len(prompts), counts.pop())
    greedy = torch.zeros_like(log_prob, dtype=torch.bool)
    for length in lengths.unique().tolist():
        same = (lengths == length).nonzero().flatten()
        for block in batches.blocks(len(same), batch):
            rows = same[block]
            some = [list(candidates[i]) for i in rows.tolist()]
            log_prob[rows], greedy[rows] = _scored(bridge, prompts.tokens[rows, :length], some)
    return AnswerScores(log_prob, greedy)


def _scored(bridge: TransformerBridge, tokens: Int[Tensor, "n length"], some: list) -> tuple[Tensor, Tensor]:
    """Of prompts of one length: each candidate's summed log-probability, and whether greedy decoding writes it."""
    from transformers import DynamicCache

    n, n_candidates = len(some), len(some[0])
    longest = max(len(c) for row in some for c in row)
    wanted = torch.tensor([[[*c, *[0] * (longest - len(c))] for c in row] for row in some])
    asked = torch.tensor([[[k < len(c) for k in range(longest)] for c in row] for row in some])
    cache, end = DynamicCache(), torch.full((n, 1), tokens.shape[1] - 1)
    options = dict(use_cache=True, past_key_values=cache) if longest > 1 else {}
    with logits_at(bridge, end):
        first = bridge(tokens.to(bridge.cfg.device), **options)
    logits = first[:, None].expand(-1, n_candidates, -1, -1)
    if longest > 1:
        if cache.get_seq_length() != tokens.shape[1]:
            raise UnsupportedModelError(
                f"{bridge.cfg.model_name} keeps no keys and values, so answers of several tokens cannot be scored."
            )
        cache.batch_repeat_interleave(n_candidates)
        stems = wanted[..., :-1].flatten(0, 1)
        places = torch.arange(longest - 1).expand(len(stems), -1)
        with logits_at(bridge, places):
            rest = bridge(stems.to(bridge.cfg.device), **options).unflatten(0, (n, n_candidates))
        logits = torch.cat([logits, rest], 2)
    logits = logits.float().cpu()
    own = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    best = logits.argmax(-1) == wanted
    return own.masked_fill(~asked, 0).sum(-1), (best | ~asked).all(-1)


# --- the table ---


@dataclass(frozen=True)
class FunctionsRow(Row):
    """How well a model does one function in context."""

    function: str = column("", "y = a x + b")
    examples: str = column("", "examples: none, the function's own, or the same with labels permuted")
    n_examples: int = column("", "examples in the prompt")
    accuracy: float = column("share", "right answers by greedy decoding")
    low: float = column("share", "lower end of accuracy, 95% over prompts of this function")
    high: float = column("share", "upper end of accuracy")
    among: float = column("share", "right answers by log-probability, among eight candidates")
    among_low: float = column("share", "lower end of among")
    among_high: float = column("share", "upper end of among")
    chance: float = column("share", "one over the number of candidates")
    n: int = column("", "prompts")


def functions(c: Context) -> list[FunctionsRow]:
    """How well a model does two functions in context, the post's and a simpler one, whatever its tokenizer does to
    numbers.

    Candidates are :func:`candidates_for`. Controls: no examples at all, and labels permuted among them.
    """
    rows, n, n_ctx = [], c.n(64, 8), c.bridge.cfg.n_ctx
    shown = [(NONE, 0), *((examples, k) for examples in (ITS_OWN, SHUFFLED) for k in COUNTS)]
    for (a, b), (examples, k) in product(FUNCTIONS, shown):
        drawn = draw_questions((a, b), n, k, examples=examples, seed=c.seed)
        prompts, tokens = encode_whole(drawn, list(map(candidates_for, drawn)), c.tokenizer, seed=c.seed, n_ctx=n_ctx)
        scores = answer_log_probs(c.bridge, prompts, tokens)
        exact = share(scores.greedy[:, 0])
        among = share((scores.log_prob[:, :1] > scores.log_prob[:, 1:]).all(1))
        told = f"y = {'' if a == 1 else a}x + {b}"
        rows.append(FunctionsRow(told, examples, k, *exact[:3], *among[:3], 1 / N_CANDIDATES, exact.n))
    return rows
