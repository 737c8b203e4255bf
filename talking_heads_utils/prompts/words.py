"""The words that prompts are made of, and which of them are one token of the model at hand."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from talking_heads_utils.errors import TaskError
from talking_heads_utils.files import data_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_LISTS = ("names", "places", "objects")
_sums: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()  # tokenizer -> its size and its sum


def load_words(kind: str, tokenizer: PreTrainedTokenizerBase, at_least: int) -> tuple[str, ...]:
    """The words of one of :data:`WORD_LISTS` that are a single token after a space. Raises :class:`TaskError` if fewer
    than ``at_least`` are."""
    words = (data_dir() / "prompts" / f"{kind}.txt").read_text(encoding="utf-8").split()
    kept = tuple(word for word in words if token_of(word, tokenizer) is not None)
    if len(kept) < at_least:
        raise TaskError(
            f"Only {len(kept)} of {len(words)} {kind} are one token of this tokenizer; {at_least} are needed. "
            f"Add {kind} to data/prompts/{kind}.txt that it keeps whole."
        )
    return kept


def load_templates(task: str) -> dict[str, Any]:
    """The wordings of a task, ``ioi`` or ``laundry``, as ``data/prompts`` has them."""
    return json.loads((data_dir() / "prompts" / f"{task}.json").read_text(encoding="utf-8"))


def token_of(word: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of ``word`` after a space, or None where it is several tokens or unknown."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if len(ids) != 1 or (ids[0] == unknown and word != tokenizer.unk_token):
        return None
    return ids[0]


def check_one_token(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a word given by hand. Raises :class:`TaskError` if it is not one token."""
    token = token_of(word, tokenizer)
    if token is None:
        pieces = tokenizer.tokenize(f" {word}")
        raise TaskError(f"{word!r} is not one token of this tokenizer but {pieces}. Choose another word.")
    return token


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short sum over the vocabulary, to tell prompt sets of different tokenizers apart. Made once for each tokenizer
    (of 50,000 tokens it takes a quarter of a second), and anew where its size has changed."""
    size, found = _sums.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        found = hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
        _sums[tokenizer] = len(tokenizer), found
    return found
