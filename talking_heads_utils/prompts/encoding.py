"""From texts with named spans to tokens with named positions: the one way in which prompts are tokenized.

A span is a pair of characters of a text: the first, and the one after the last.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.prefix import begin_ids, prefix_of
from talking_heads_utils.prompts.sets import ABSENT, PromptSet, Recipe, pad_rows
from talking_heads_utils.prompts.words import check_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True)
class PromptText:
    """One prompt before it is tokenized. spans: name of a position -> where its word stands. info: of this prompt."""

    text: str
    spans: Mapping[str, Span]
    answer: str
    distractors: tuple[str, ...]
    info: Mapping[str, str | int]


@dataclass(frozen=True)
class Tokens:
    """One text's tokens. starts, ends: the characters of each, the one after the last for ``ends``."""

    ids: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]

    def first(self, character: int) -> int:
        """The first token that reaches beyond a character's beginning; the number of tokens where none does."""
        return bisect_right(self.ends, character)

    def covering(self, span: Span) -> range:
        """The tokens that hold a character of the span; empty where none does."""
        return range(self.first(span[0]), bisect_left(self.starts, span[1]))


def tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Each text's tokens, nothing put in front. Raises :class:`TaskError` for a tokenizer that cannot say where a token
    stands in the text."""
    if not tokenizer.is_fast:
        raise TaskError(f"{type(tokenizer).__name__} cannot tell where tokens stand in a text. Take a fast tokenizer.")
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return [Tokens(ids, [a for a, _ in at], [b for _, b in at]) for ids, at in zip(encoded["input_ids"], offsets)]


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for what the tokenizer does not know; None where it has none of its own: GPT-2's is the end
    of the text."""
    return None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id


def spelled(parts: Iterable[tuple[str, str]]) -> tuple[str, dict[str, Span]]:
    """The text that parts make, ``(name of a position or "", characters)`` each, and where the named ones stand."""
    text, spans = "", {}
    for name, part in parts:
        if name:
            spans[name] = (len(text), len(text) + len(part))
        text += part
    return text, spans


def render(template: str, fields: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[str, dict[str, Span]]:
    """Fill a template and note where each word came to stand.

    fields: placeholder -> ``(name of the position, word)`` of each word; several are joined by commas.
    """
    parts = []
    for literal, placeholder, _, _ in Formatter().parse(template):
        parts.append(("", literal))
        for i, word in enumerate(fields[placeholder] if placeholder else ()):
            parts += [("", ", "), word] if i else [word]
    return spelled(parts)


def encode(
    prompts: Sequence[PromptText], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, *, n_ctx: int | None = None
) -> PromptSet:
    """Tokenize prompts and find their named positions; the recipe's prefix stands in front.

    Raises :class:`TaskError` for a named word, answer or distractor that is not one token, for an unknown prefix, and
    for a prompt longer than ``n_ctx``.
    """
    read, unknown, places = tokenized([p.text for p in prompts], tokenizer), unknown_id(tokenizer), []
    for prompt, tokens in zip(prompts, read):
        found = {name: tokens.covering(span) for name, span in prompt.spans.items()}
        for name, at in found.items():
            if len(at) != 1 or tokens.ids[at[0]] == unknown:
                word = prompt.text[slice(*prompt.spans[name])]
                raise TaskError(f"{name} = {word!r} is not one token in {prompt.text!r}. Choose another word.")
        places.append({name: at[0] for name, at in found.items()})
    words = dict.fromkeys(word for p in prompts for word in (p.answer, *p.distractors))
    ids = {word: check_one_token(word, tokenizer) for word in words}
    return prompt_set(
        [tokens.ids for tokens in read],
        places,
        [[ids[p.answer]] for p in prompts],
        [[ids[word] for word in p.distractors] for p in prompts],
        tokenizer,
        recipe,
        texts=[p.text for p in prompts],
        info={name: [p.info[name] for p in prompts] for name in prompts[0].info},
        n_ctx=n_ctx,
    )


def prompt_set(
    rows: Sequence[Sequence[int]],
    places: Sequence[Mapping[str, int]],
    right: Sequence[Sequence[int]],
    wrong: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    texts: Sequence[str],
    info: Mapping[str, Sequence],
    n_ctx: int | None = None,
) -> PromptSet:
    """A prompt set of tokens, the recipe's prefix put in front of each row.

    places: name -> index in the row, of each prompt. right, wrong: tokens of each prompt's answers, the first of the
    right ones being the answer and the others its alternatives. Raises :class:`TaskError` for an unknown prefix and for
    a prompt longer than ``n_ctx``.
    """
    begin = begin_ids(tokenizer, recipe.prefix)
    tokens, mask = padded([[*begin, *row] for row in rows], tokenizer)
    for i, n in enumerate(mask.sum(1).tolist()):
        if n_ctx is not None and n > n_ctx:
            raise TaskError(f"Prompt {i}, of {n} tokens, does not fit the model's context of {n_ctx}.")
    names = dict.fromkeys(name for named in places for name in named)
    at = {name: [named[name] + len(begin) if name in named else ABSENT for named in places] for name in names}
    return PromptSet(
        tokens=tokens,
        mask=mask,
        positions={name: torch.tensor(index) for name, index in at.items()} | {"end": mask.sum(1) - 1},
        answers=torch.tensor([ids[0] for ids in right]),
        distractors=pad_rows(ABSENT, wrong),
        texts=texts,
        info=info,
        recipe=recipe if recipe.prefix is not None else replace(recipe, prefix=prefix_of(tokenizer)),
        alternatives=pad_rows(ABSENT, [ids[1:] for ids in right]),
    )


def padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[Tensor, "n n_pos"], Bool[Tensor, "n n_pos"]]:
    """Rows of tokens as one tensor, padded on the right, and a mask that is True where a token is no padding."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    tokens = pad_rows(pad, rows)
    return tokens, torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
