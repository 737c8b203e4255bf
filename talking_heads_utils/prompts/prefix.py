"""What stands in front of a prompt: a property of the model, which its tokenizer carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from talking_heads_utils.errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def begin_ids(tokenizer: PreTrainedTokenizerBase, prefix: str | None = None) -> list[int]:
    """The tokens in front of a prompt. prefix: those tokens as text, ``""`` for none; None for what the tokenizer adds
    in front by itself.

    Raises :class:`TaskError` for a prefix that the tokenizer does not know.
    """
    if prefix is None:
        plain = tokenizer("a", return_special_tokens_mask=True)
        added = plain["special_tokens_mask"]
        return plain["input_ids"][: added.index(0)] if 0 in added else []
    if not isinstance(prefix, str):
        raise TaskError(f"What stands in front of a prompt is text, such as '<|endoftext|>' or '', not {prefix!r}.")
    ids = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    unknown = tokenizer.unk_token is not None and ids.count(tokenizer.unk_token_id) > prefix.count(tokenizer.unk_token)
    if unknown or (prefix and not ids):
        raise TaskError(f"This tokenizer does not know the prefix {prefix!r}. Its own is {prefix_of(tokenizer)!r}.")
    return ids


def prefix_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer adds in front of a prompt by itself, as text; ``""`` for nothing."""
    return tokenizer.decode(begin_ids(tokenizer))


def add_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> None:
    """Make a fast tokenizer add ``prefix``, and nothing else, in front of every text by itself, in place.

    Raises :class:`TaskError` for a prefix that it does not know, or for a tokenizer that is no fast one.
    """
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    ids = begin_ids(tokenizer, prefix)
    if ids == begin_ids(tokenizer):
        return
    if not tokenizer.is_fast:
        raise TaskError(
            f"{type(tokenizer).__name__} is no fast tokenizer, and cannot be told to begin with {prefix!r}."
        )
    fast = tokenizer.backend_tokenizer
    steps: Any = fast.post_processor if isinstance(fast.post_processor, Sequence) else [fast.post_processor]
    spaces = [step for step in steps if isinstance(step, ByteLevel)]  # which tells characters apart from their spaces
    front = ["prefix"] if ids else []
    token = dict(id="prefix", ids=ids, tokens=tokenizer.convert_ids_to_tokens(ids))
    template = TemplateProcessing(
        single=[*front, "$A"], pair=[*front, "$A", "$B:1"], special_tokens=[token] if ids else []
    )
    fast.post_processor = Sequence([*spaces, template]) if spaces else template
