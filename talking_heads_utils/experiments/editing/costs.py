"""What edits cost: other tasks, running text, other heads. No edit was chosen on any of these prompts or texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import gains
from talking_heads_utils.experiments.editing.above import Above, prepare
from talking_heads_utils.experiments.editing.gains import LENGTHS
from talking_heads_utils.experiments.editing.moves import edit_of, parse
from talking_heads_utils.experiments.gate import AT_LEAST
from talking_heads_utils.experiments.icl.words import WordsRow, answers_of
from talking_heads_utils.experiments.inhibition.exchange_study import fresh_prompts
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.subspace import nearest_lengths
from talking_heads_utils.experiments.rows import ModelRow, column, frame, maybe
from talking_heads_utils.labels import heads_in
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.relations import ITS_OWN, draw_words, encode_words, load_relation
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import Z, bootstrap_mean, share_change, summary

if TYPE_CHECKING:
    import pandas as pd

N_IOI, N_WORDS, N_LISTS = 400, 100, 100  # prompts; of words, of each task
N_EXAMPLES = 4  # of a task of words, before the question
N_POS = 256  # tokens of a block of text
N_TOKENS, N_TOKENS_OTHERS, N_TOKENS_TRIED = 100_000, 20_000, 4_000  # of the best edit, of the others, of every one
N_TOKENS_OWN = 5_000  # of a model of the book
N_MOVED = 10  # heads that are shown


class What(StrEnum):
    """What is compared: accuracy on IOI and on words in context, loss on running text and divergence of what is
    predicted there, and how far other heads' attention from the last token moves, on lists and on text."""

    IOI = "ioi"
    WORDS = "words"
    TEXT_LOSS = "text_loss"
    TEXT_KL = "text_kl"
    PATTERNS = "patterns"
    PATTERNS_ON_TEXT = "patterns_on_text"


@dataclass(frozen=True)
class CostRow(ModelRow):
    edit: str = column("", "as in the table of gains")
    family: str = column("", "of heads")
    what: str = column("", "ioi, words, text_loss, text_kl, patterns, patterns_on_text")
    of: str = column("", "the task of words; the head, or mean: over all heads above the edit that it does not change")
    before: float | None = maybe("", "without an edit")
    after: float = column("", "with it")
    change: float = column(
        "", "of ioi and words in points; of text_loss and text_kl in nats a token; of patterns in total variation"
    )
    low: float = column("", "95% interval over prompts, or blocks of text, lower end")
    high: float = column("", "upper end")
    n: int = column("", "prompts, tokens or blocks of text")


@dataclass(frozen=True)
class TriedRow(ModelRow):
    """Every edit that was measured whole: what it gains, what it costs."""

    edit: str = column("", "as in the table of gains")
    family: str = column("", "of heads; random too")
    extent: str = column("", "single, leading, whole_head, combined")
    draw: int | None = maybe("", "of random heads; empty for others")
    gain: float = column(
        "points", "of accuracy on held-out lists, mean over the two lengths that edits are compared on"
    )
    low: float = column("points", "95% interval, lower end")
    high: float = column("points", "upper end")
    text_loss: float = column("nats a token", "change of the loss on running text")
    text_low: float = column("nats a token", "95% interval over blocks of text, lower end")
    text_high: float = column("nats a token", "upper end")
    size: float = column("Frobenius norm", "of the change of the weights")
    n: int = column("prompts", "held-out lists")
    n_tokens: int = column("tokens", "of running text")


class Tried(NamedTuple):
    """An edit by its name in tables. n_tokens: of running text that it is measured on."""

    model: str
    name: str
    family: str
    edit: Edit
    n_tokens: int

    def row(self, what: What, of: str, before: float | None, after: float, change: Sequence[float], n: int) -> CostRow:
        """change: mean, low and high."""
        mean, low, high = change[:3]
        return CostRow(self.model, self.name, self.family, what, of, before=before, after=after, change=mean, low=low,
                       high=high, n=n)  # fmt: skip


class OnText(NamedTuple):
    """Of every block, mean over its tokens: loss without and with each edit, and divergence of the edited next-token
    distribution from the untouched one, in nats. moved: see :func:`moved`, at the last token of each block."""

    before: Float[Tensor, "n"]
    loss: Float[Tensor, "n"]
    kl: Float[Tensor, "n"]
    moved: Float[Tensor, "n layers n_heads"]


def run_costs(c: Context) -> list[CostRow]:
    """The best edit of all, and the best of each family. Raises :class:`NotApplicable` where nothing was searched."""
    found = c.kept(gains.found)
    winners = {w.name: w for w in (*reversed(found.best_of_each_family), found.best)}  # each once: the first family's
    full, others = (c.n(n) for n in ((N_TOKENS_OWN,) * 2 if c.is_own else (N_TOKENS, N_TOKENS_OTHERS)))
    tried = [
        Tried(c.model, name, w.family, w.edit(c), full if name == found.best.name else others)
        for name, w in winners.items()
    ]
    above = prepare(c.bridge, c.ioi(20), [t.edit for t in tried])
    return [*_other_tasks(c, above, tried), *_on_lists(c, above, tried), *_on_text(c, above, tried)]


# --- other tasks ---


def _other_tasks(c: Context, above: Above, tried: Sequence[Tried]) -> list[CostRow]:
    rows = []
    for what, of, prompts, among in _tasks(c):
        before, *edited = right(above, prompts, among)
        for t, after in zip(tried, edited):
            change, (was, now) = share_change(after, before), (hits.double().mean().item() for hits in (before, after))
            rows.append(t.row(what, of, was, now, gains.points(change), change.n))
    return rows


def _tasks(c: Context) -> Iterator[tuple[What, str, PromptSet, Tensor | None]]:
    """IOI, then each task of words: its name, its prompts and, of words, every answer's token."""
    (drawn,) = fresh_prompts(c.tokenizer, [c.n(N_IOI)], c.seed)
    yield What.IOI, "", ioi.build_ioi(c.tokenizer, prompts=drawn), None
    for task in follow(tasks_of_words(c), "tasks of words"):
        relation = load_relation(task, c.tokenizer)
        asked = draw_words(relation, c.n(N_WORDS), N_EXAMPLES, HELD_OUT, seed=c.seed + 1)
        prompts = encode_words(asked, relation, c.tokenizer, half=HELD_OUT, n_ctx=c.bridge.cfg.n_ctx)
        yield What.WORDS, task, prompts, answers_of(relation, c.tokenizer).ids[relation.right(asked)[:, -1]]


def right(above: Above, prompts: PromptSet, among: Tensor | None = None) -> Bool[Tensor, "k n"]:
    """Whether the answer leads its prompt's candidates, or the whole vocabulary where ``among`` has every answer's
    token: untouched, then under each edit."""
    found = []
    for rows in batches.blocks(len(prompts), 32):
        some = prompts.select(rows)
        width = int(some.positions["end"].max()) + 1
        hits = []
        for ran in above.runs(some.tokens[:, :width], some.positions["end"]):
            if among is None:
                own = above.plain.logits(ran.final, some.candidates.to(ran.final.device))[:, 0]
                hits.append(own[:, 0] > own[:, 1:].amax(-1))
            else:
                hits.append(above.plain.logits(ran.final)[:, 0].argmax(-1).cpu() == among[rows])
        found.append(torch.stack(hits).cpu())
    return torch.cat(found, 1)


def tasks_of_words(c: Context) -> list[str]:
    """In-context tasks whose accuracy after :data:`N_EXAMPLES` examples has a lower end of 1.5 times chance at least.
    None for a model of the book."""
    table = None if c.is_own else c.finished("words")
    if table is None:
        return []
    rows = table[(table["examples"] == ITS_OWN) & (table["half"] == HELD_OUT) & (table["n_examples"] == N_EXAMPLES)]
    assert set(rows.columns) == {column.name for column in WordsRow.columns()}
    return rows[rows["low"] >= AT_LEAST * rows["chance"]]["task"].tolist()


# --- other heads ---


def moved(before: dict[int, Tensor], after: dict[int, Tensor]) -> Float[Tensor, "n layers n_heads"]:
    """Total variation between two runs' attention from the last token, of the layers that were run."""
    return torch.stack([(after[layer] - before[layer]).abs().sum(-1) / 2 for layer in sorted(before)], 1).cpu()


def _on_lists(c: Context, above: Above, tried: Sequence[Tried]) -> list[CostRow]:
    prompts = c.kept(Lists(Part.HELD_OUT, nearest_lengths(c, *LENGTHS)[-1], c.n(N_LISTS)))
    parts: list[list[Tensor]] = [[] for _ in tried]
    for rows in batches.blocks(len(prompts), 25):
        plain, *runs = above.runs(prompts.tokens[rows], prompts.positions["end"][rows], patterns=True)
        for part, ran in zip(parts, runs):
            part.append(moved(plain.patterns, ran.patterns))
    return [row for t, part in zip(tried, parts) for row in _moved_rows(c, above, t, What.PATTERNS, torch.cat(part))]


def _moved_rows(
    c: Context, above: Above, t: Tried, what: What, found: Float[Tensor, "n layers n_heads"]
) -> list[CostRow]:
    """The heads that move most, and the mean over all above the first edited layer that the edit leaves as they are."""
    start, own = above.plain.start, {change.component.of_head for change in t.edit.changes}
    first = min(head.layer for head in own)
    heads = [h for h in heads_in(range(first + 1, c.bridge.cfg.n_layers), found.shape[2]) if h not in own]
    if not heads:  # an edit of the last layer
        return []
    values = torch.stack([found[:, head.layer - start, head.head] for head in heads], 1).double()
    each, mean = summary(values, seed=c.seed), bootstrap_mean(values.mean(1), seed=c.seed)
    rows = [t.row(what, "mean", None, mean.mean, mean, mean.n)]
    for i in each.mean.argsort(descending=True)[:N_MOVED].tolist():
        change = [ends[i].item() for ends in each[:3]]
        rows.append(t.row(what, str(heads[i]), None, change[0], change, each.n))
    return rows


# --- running text ---


def blocks_of_text(c: Context, n_tokens: int) -> Tensor:
    """``[n, n_pos]``: blocks of running text that hold so many tokens to predict, as far as there are."""
    n_pos = min(N_POS, c.bridge.cfg.n_ctx)
    n = -(-n_tokens // (n_pos - 1))
    source = c.text_source
    texts = corpus.generated_texts(c.tokenizer, 8 * n, c.seed) if source is None else corpus.running_text(source)
    return corpus.corpus_of(texts, c.tokenizer, n_pos=n_pos, n_windows=n).tokens


@torch.no_grad()
def on_text(above: Above, tokens: Tensor, n_blocks: Sequence[int], *, patterns: bool = False) -> list[OnText]:
    """Each edit on the first so many blocks of text."""
    parts: list[list[OnText]] = [[] for _ in n_blocks]
    for rows in batches.blocks(len(tokens), 4, "blocks of text"):
        wanted = [i for i, n in enumerate(n_blocks) if rows.start < n]
        here = Above(above.bridge, above.plain, tuple(above.edits[i] for i in wanted))
        target = tokens[rows, 1:, None].to(above.plain.end)
        plain, *others = here.runs(tokens[rows], everywhere=True, patterns=patterns)
        logits = above.plain.logits(plain.final[:, :-1])
        p, lse = logits.softmax(-1), logits.logsumexp(-1)
        before, own = lse - logits.gather(-1, target)[..., 0], torch.einsum("nqv,nqv->nq", p, logits) - lse
        del logits
        for i, ran in zip(wanted, others):
            logits = above.plain.logits(ran.final[:, :-1])
            lse = logits.logsumexp(-1)
            kl = own - torch.einsum("nqv,nqv->nq", p, logits) + lse
            loss = lse - logits.gather(-1, target)[..., 0]
            far = moved(plain.patterns, ran.patterns) if patterns else torch.zeros(len(target), 0, 0)
            means = [v.double().mean(1).cpu() for v in (before, loss, kl)]
            parts[i].append(OnText(means[0], means[1], means[2], far))
    return [OnText(*(torch.cat(v)[:n] for v in zip(*part))) for n, part in zip(n_blocks, parts)]


def _on_text(c: Context, above: Above, tried: Sequence[Tried]) -> list[CostRow]:
    tokens, rows = blocks_of_text(c, max(t.n_tokens for t in tried)), []
    each = tokens.shape[1] - 1
    sizes = [min(len(tokens), -(-t.n_tokens // each)) for t in tried]
    for t, found in zip(tried, on_text(above, tokens, sizes, patterns=True)):
        change, kl = (bootstrap_mean(v, seed=c.seed) for v in (found.loss - found.before, found.kl))
        n = each * change.n
        rows.append(t.row(What.TEXT_LOSS, "", found.before.mean().item(), found.loss.mean().item(), change, n))
        rows.append(t.row(What.TEXT_KL, "", None, kl.mean, kl, n))
        rows += _moved_rows(c, above, t, What.PATTERNS_ON_TEXT, found.moved)
    return rows


# --- all that were tried ---


def run_tried(c: Context) -> list[TriedRow]:
    """Every edit of the table of gains. Raises :class:`NotApplicable` where there is none."""
    table = c.finished(gains.GAINS)
    table = frame(gains.run(c)) if table is None else table
    table = table[(table["part"] == Part.HELD_OUT) & table["n_items"].isin(nearest_lengths(c, *LENGTHS))]
    every = dict(list(table.groupby("edit", sort=False)))
    edits = [edit_of(c, parse(name)) for name in every]
    tokens = blocks_of_text(c, c.n(N_TOKENS_TRIED))
    found = on_text(prepare(c.bridge, c.ioi(20), edits), tokens, [len(tokens)] * len(edits))
    return [_tried_row(c, rows, text, tokens.shape[1] - 1) for rows, text in zip(every.values(), found)]


def _tried_row(c: Context, rows: pd.DataFrame, text: OnText, each: int) -> TriedRow:
    """rows: of one edit on lists of several lengths, which are independent of each other."""
    by_length = rows.drop_duplicates("n_items")
    first, gain = rows.iloc[0], float(by_length["gain"].mean())
    reach = float((((by_length["high"] - by_length["low"]) / (2 * Z)) ** 2).sum() ** 0.5 / len(by_length)) * Z
    change = bootstrap_mean(text.loss - text.before, seed=c.seed)
    return TriedRow(
        c.model, first["edit"], first["family"], first["extent"], gain=gain, low=gain - reach, high=gain + reach,
        draw=None if first.isna()["draw"] else int(first["draw"]), text_loss=change.mean, text_low=change.low,
        text_high=change.high, size=float(first["size"]), n=int(by_length["n"].sum()), n_tokens=each * change.n,
    )  # fmt: skip
