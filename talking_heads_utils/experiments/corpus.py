"""Running text, cut into windows; of every token which text, which content word and which list it stands in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import DownloadError, TaskError
from talking_heads_utils.files import known_sha256
from talking_heads_utils.prompts.encoding import Span, tokenized, unknown_id
from talking_heads_utils.prompts.ioi import draw_ioi
from talking_heads_utils.prompts.lists import draw_laundry
from talking_heads_utils.prompts.prefix import begin_ids
from talking_heads_utils.prompts.sets import ABSENT
from talking_heads_utils.settings import SEED
from talking_heads_utils.weights.checkpoints import hub_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_WEB_TEXT = "Skylion007/openwebtext"
OPEN_WEB_TEXT_REVISION = "b4325f019c648b1641a1784748667e8b74e5e064"  # in parquet: a script is no longer run
OPEN_WEB_TEXT_NAME, PYDOC = "openwebtext", "pydoc"  # in place of a file
PYDOC_TOPICS = "pydoc_data.topics"
FUNCTION_WORDS = frozenset(
    "about above after all also although among and another any are because been before being below between both but "
    "can could did does done each either else even ever every few for from had has have having her hers him his how "
    "however into its itself just least less like may might more most much must neither never nor not off once one "
    "only onto other others our ours out over own same shall she should since some such than that the their them then "
    "there therefore these they this those though through thus too two under unless until upon use used uses using "
    "very via was were what when where whether which while who whom whose why will with within without would yet you "
    "your".split()
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_ITEM = r"[^\s.?!,;:()\[\]{}]+(?: [^\s.?!,;:()\[\]{}]+){0,2}"
_LIST = re.compile(rf"{_ITEM}(?: ?, {_ITEM})+ ?,? (?:and|or) {_ITEM}|{_ITEM}(?: ?, {_ITEM}){{2,}}")
_MARKUP_LINE = re.compile(r"\s*([*=~^\"-])\1{2,}\s*|\s*[+|].*[+|]\s*")  # an underline, a row of a table
_STARS = re.compile(r"\*\*?(\w(?:[^*\n]*[\w:.])?)\*\*?")
_FOOTNOTE = re.compile(r" \[\d+\]")


@dataclass(frozen=True)
class Corpus:
    """Windows of text. All are ``[n_windows, n_pos]``, and -1 where a token is of none.

    section: the text that a token is of. word: the content word, the same for every mention, whatever its case.
    mention: one number for all tokens of one mention of a word. in_list: the list that a token stands in.
    """

    tokens: Int[Tensor, "n_windows n_pos"]
    section: Int[Tensor, "n_windows n_pos"]
    word: Int[Tensor, "n_windows n_pos"]
    mention: Int[Tensor, "n_windows n_pos"]
    in_list: Int[Tensor, "n_windows n_pos"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Corpus:
        return Corpus(*(part[rows] for part in vars(self).values()))


def corpus_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, n_pos: int = 64, n_windows: int | None = None
) -> Corpus:
    """Texts one after the other, cut into windows of ``n_pos`` tokens, each behind what the tokenizer puts in front.

    Raises :class:`TaskError` for texts without a token that the tokenizer knows, or shorter than one window.
    """
    unknown, begin = unknown_id(tokenizer), begin_ids(tokenizer)
    n_body, stream, words = n_pos - len(begin), list[tuple[int, ...]](), dict[str, int]()
    n_mentions = n_lists = 0
    for section, (text, tokens) in enumerate(zip(texts, tokenized(texts, tokenizer))):
        marks = [[token, section, ABSENT, ABSENT, ABSENT] for token in tokens.ids]
        for span in content_words(text):
            for i in tokens.covering(span):
                marks[i][2:4] = words.setdefault(text[slice(*span)].lower(), len(words)), n_mentions
            n_mentions += 1
        for span in lists_in(text):
            for i in tokens.covering(span):
                marks[i][4] = n_lists
            n_lists += 1
        stream += map(tuple, marks)
        if n_windows is not None and len(stream) >= n_windows * n_body:
            break
    if all(token == unknown for token, *_ in stream):
        raise TaskError("The corpus holds no token of this model. Take text in the model's language.")
    if (n := len(stream) // n_body) == 0:
        raise TaskError(f"The corpus has {len(stream)} tokens; one window takes {n_body}. Take more text.")
    body = torch.tensor(stream[: n * n_body]).view(n, n_body, -1)[:n_windows]
    front = torch.tensor([[token, *[ABSENT] * 4] for token in begin], dtype=torch.long).view(1, -1, 5)
    return Corpus(*torch.cat([front.expand(len(body), -1, -1), body], 1).unbind(-1))


def content_words(text: str) -> Iterator[Span]:
    """Where words of three letters or more stand that are not among :data:`FUNCTION_WORDS`."""
    return (m.span() for m in _WORD.finditer(text) if m.group().lower() not in FUNCTION_WORDS)


def lists_in(text: str) -> Iterator[Span]:
    """Where lists stand: three items or more, commas between them or, before the last, ``and`` or ``or``; an item is of
    three words at most, without brackets."""
    return (m.span() for m in _LIST.finditer(text))


def read_texts(path: Path) -> list[str]:
    """The paragraphs of a text file. Raises :class:`TaskError` if it cannot be read or is empty."""
    try:
        texts = [part for part in Path(path).read_text(encoding="utf-8").split("\n\n") if part.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as text ({error}).") from error
    if not texts:
        raise TaskError(f"{path} is empty.")
    return texts


OWN_TEXTS = "this book's own lists and sentences"  # what generated_texts are


def generated_texts(tokenizer: PreTrainedTokenizerBase, n: int, seed: int = SEED) -> list[str]:
    """Text for models whose words are few: lists and sentences about two people from this book's own generators."""
    lists = [p.text for k in (4, 7) for p in draw_laundry(tokenizer, k, n // 4, seed)]
    names = [p.text().text for p in draw_ioi(tokenizer, n // 4 * 2, seed)]
    order = torch.randperm(len(lists) + len(names), generator=torch.Generator().manual_seed(seed))
    texts = lists + names
    return [texts[i] + " ." for i in order.tolist()]


def running_text(source: Path | str, n_texts: int = 2000) -> list[str]:
    """The first texts of :data:`PYDOC`, of :data:`OPEN_WEB_TEXT_NAME`, or of a user's own file, a text a paragraph.

    Raises :class:`TaskError` for a file that cannot be read, and :class:`DownloadError` without a network.
    """
    if source == OPEN_WEB_TEXT_NAME:
        return open_web_text(n_texts)
    return (pydoc_texts() if source == PYDOC else read_texts(Path(source)))[:n_texts]


def texts_shown_as(source: Path | str) -> str:
    """What the texts of a source are called."""
    return {OPEN_WEB_TEXT_NAME: OPEN_WEB_TEXT, PYDOC: PYDOC_TOPICS}.get(str(source), Path(source).name)


def texts_sum(source: Path | str) -> str:
    """The texts of a source, and which: a revision, or a SHA-256 of them. pydoc's differ between Python's versions."""
    if source == OPEN_WEB_TEXT_NAME:
        return f"{OPEN_WEB_TEXT}, revision {OPEN_WEB_TEXT_REVISION}"
    if source == PYDOC:
        return f"{PYDOC_TOPICS}, sha256 {hashlib.sha256(chr(0).join(pydoc_texts()).encode()).hexdigest()}"
    return f"{Path(source).name}, sha256 {known_sha256(Path(source))}"


def pydoc_texts() -> list[str]:
    """Python's own language reference, which comes with every CPython: one text a topic, by name.

    Its markup is dropped: underlines, tables, stars around a word, numbers of footnotes, and line ends in a paragraph.
    """
    from pydoc_data.topics import topics

    return [_plain(topics[name]) for name in sorted(topics)]


def _plain(text: str) -> str:
    """Paragraphs on a line each; indented lines, which are code, stay as they are."""
    lines = [line for line in text.splitlines() if not _MARKUP_LINE.fullmatch(line)]
    text = _FOOTNOTE.sub("", _STARS.sub(r"\1", "\n".join(lines)))
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return "\n".join(part if part.startswith("   ") else " ".join(part.split()) for part in parts)


def open_web_text(n_texts: int = 2000) -> list[str]:
    """The first texts of Open Web Text at :data:`OPEN_WEB_TEXT_REVISION`; no more than those are fetched.

    Raises :class:`DownloadError` without a network, at once.
    """
    try:
        if not hub_answers():
            raise ConnectionError("the Hub does not answer")
        from datasets import DownloadConfig, load_dataset

        rows = load_dataset(
            OPEN_WEB_TEXT, revision=OPEN_WEB_TEXT_REVISION, split="train", streaming=True,
            download_config=DownloadConfig(max_retries=0),
        )  # fmt: skip
        return [row["text"] for row in rows.take(n_texts)]
    except Exception as error:  # of whatever kind: the library's own, the Hub's, the network's, the disk's
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DownloadError(
            f"Open Web Text could not be fetched ({reason}). Use {PYDOC}, which every Python has, or a text file of "
            f"your own: --texts {PYDOC}, or --texts FILE."
        ) from error
