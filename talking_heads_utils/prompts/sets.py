"""Prompt sets: tokens whose positions have names, so that nobody counts tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.files import written_whole
from talking_heads_utils.prompts.prefix import begin_ids, prefix_of
from talking_heads_utils.prompts.words import check_one_token

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

ABSENT = -1
_META = b"talking_heads"


@dataclass(frozen=True)
class PromptText:
    """One prompt before it is tokenized. ``spans``: name of a position -> first and last character of its word."""

    text: str
    spans: Mapping[str, tuple[int, int]]
    answer: str
    distractors: tuple[str, ...]
    info: Mapping[str, str | int]


@dataclass(frozen=True)
class Recipe:
    """What a prompt set was made from: enough to make it again, unless its prompts were given by hand.

    prefix: the tokens in front of every prompt, as text; None becomes, once encoded, what the tokenizer adds by itself.
    counterfactual: the named operation that changed every prompt. drawn: False where prompts were given. rows: those
    that :meth:`PromptSet.select` kept, None for all.
    """

    task: str
    n_prompts: int
    seed: int
    tokenizer_hash: str
    n_items: int | None = None
    prefix: str | None = None
    words_left_out: int = 0
    counterfactual: str | None = None
    drawn: bool = True
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts, padded on the right, with named positions.

    tokens: ``[n_prompts, n_pos]``. mask: True where a token is no padding. positions: name -> ``[n_prompts]``, -1
    where a prompt has no such position; ``end`` is the last token. answers: ``[n_prompts]`` token ids. distractors:
    ``[n_prompts, n_distractors]``, the other candidates. info: name -> one value per prompt (wording, order, ...).
    """

    tokens: Int[Tensor, "n_prompts n_pos"]
    mask: Bool[Tensor, "n_prompts n_pos"]
    positions: Mapping[str, Int[Tensor, "n_prompts"]]
    answers: Int[Tensor, "n_prompts"]
    distractors: Int[Tensor, "n_prompts n_distractors"]
    texts: Sequence[str]
    info: Mapping[str, Sequence]
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def candidates(self) -> Int[Tensor, "n_prompts n_candidates"]:
        """The answer first, then the distractors."""
        return torch.cat([self.answers[:, None], self.distractors], 1)

    def select(self, keep: Bool[Tensor, "n_prompts"] | Sequence[int] | slice) -> PromptSet:
        """The prompts at ``keep``, with the same padding. Raises :class:`TaskError` if none is left, for a mask of
        another length, for a row that is not there, and for what is neither a mask nor rows."""
        try:
            keep = torch.as_tensor(range(len(self))[keep] if isinstance(keep, slice) else keep)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskError(f"Prompts are chosen by a mask, rows or a slice, not by {keep!r}.") from error
        is_mask = keep.dtype == torch.bool
        if keep.ndim != 1 or (len(keep) and (keep.is_floating_point() or keep.is_complex())):
            raise TaskError(f"Prompts are chosen by a mask or whole numbers in one row, not by {keep.tolist()!r}.")
        if is_mask and len(keep) != len(self):
            raise TaskError(f"A mask of {len(keep)} does not fit {len(self)} prompts.")
        index = keep.nonzero().flatten() if is_mask else keep
        if len(index) == 0:
            raise TaskError("No prompt is left by this choice.")
        if index.min() < 0 or index.max() >= len(self):
            raise TaskError(f"There are {len(self)} prompts, rows 0 to {len(self) - 1}.")
        rows = index.tolist()
        before = self.recipe.rows
        kept = tuple(rows if before is None else (before[i] for i in rows))
        return PromptSet(
            self.tokens[index],
            self.mask[index],
            {name: position[index] for name, position in self.positions.items()},
            self.answers[index],
            self.distractors[index],
            [self.texts[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.info.items()},
            replace(self.recipe, rows=kept),
        )

    def where(self, **wanted: Any) -> PromptSet:
        """The prompts whose info has these values: ``prompts.where(half="held-out", wording="wash")``."""
        keep = torch.ones(len(self), dtype=torch.bool)
        for name, value in wanted.items():
            if name not in self.info:
                raise TaskError(f"These prompts have no {name!r}; they have {', '.join(self.info)}.")
            keep &= torch.tensor([entry == value for entry in self.info[name]])
        return self.select(keep)


def item_positions(prompts: PromptSet) -> tuple[Int[Tensor, "n_prompts n_items"], Int[Tensor, "n_prompts n_items"]]:
    """``(positions, tokens)``: where each candidate is first named, and its token. List items in their order, or IO and
    S.

    Raises :class:`TaskError` for prompts of another task.
    """
    names = [f"item_{k} first" for k in range(prompts.recipe.n_items or 0)]
    if not names and {"IO", "S1"} <= set(prompts.positions):
        names = ["IO", "S1"]
    if not names or any(name not in prompts.positions for name in names):
        raise TaskError("Only the candidates of IOI or Laundry List prompts have named positions.")
    positions = torch.stack([prompts.positions[name] for name in names], 1)
    return positions, prompts.tokens.gather(1, positions)


def render(template: str, fields: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[str, dict[str, tuple[int, int]]]:
    """Fill a template and note where each word came to stand.

    fields: placeholder -> ``(name of the position, word)`` of each word; several are joined by commas.
    """
    text, spans = "", {}
    for literal, placeholder, _, _ in Formatter().parse(template):
        text += literal
        for i, (name, word) in enumerate(fields[placeholder] if placeholder else ()):
            text += ", " if i else ""
            spans[name] = (len(text), len(text) + len(word) - 1)
            text += word
    return text, spans


def encode(
    prompts: Sequence[PromptText],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    n_ctx: int | None = None,
) -> PromptSet:
    """Tokenize prompts and find their named positions.

    In front stands the recipe's prefix. Every named word must be one token, as must answers and distractors. Raises
    :class:`TaskError` otherwise, for an unknown prefix, or if a prompt is longer than ``n_ctx``.
    """
    begin = begin_ids(tokenizer, recipe.prefix)
    encoded = tokenizer([p.text for p in prompts], add_special_tokens=False, return_offsets_mapping=False)
    tokens, mask = padded([begin + ids for ids in encoded["input_ids"]], tokenizer)
    if n_ctx is not None and tokens.shape[1] > n_ctx:
        raise TaskError(
            f"A prompt of {tokens.shape[1]} tokens does not fit the model's context of {n_ctx}: ask for fewer items."
        )
    unknown = unknown_id(tokenizer)
    names = dict.fromkeys(name for prompt in prompts for name in prompt.spans)
    positions = {
        name: torch.tensor([_position(encoded, i, p, name, len(begin), unknown) for i, p in enumerate(prompts)])
        for name in names
    }
    words = dict.fromkeys(word for p in prompts for word in (p.answer, *p.distractors))
    ids = {word: check_one_token(word, tokenizer) for word in words}
    return PromptSet(
        tokens=tokens,
        mask=mask,
        positions=positions | {"end": mask.sum(1) - 1},
        answers=torch.tensor([ids[p.answer] for p in prompts]),
        distractors=torch.tensor([[ids[word] for word in p.distractors] for p in prompts]),
        texts=[p.text for p in prompts],
        info={name: [p.info[name] for p in prompts] for name in prompts[0].info},
        recipe=recipe if recipe.prefix is not None else replace(recipe, prefix=prefix_of(tokenizer)),
    )


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for what the tokenizer does not know; None where it has none of its own: GPT-2's is the end
    of the text."""
    return None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id


def padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[Tensor, "n n_pos"], Bool[Tensor, "n n_pos"]]:
    """Rows of tokens as one tensor, padded on the right, and a mask that is True where a token is no padding."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return _padded_with(pad, rows, max(map(len, rows)))


def _padded_with(
    pad: int, rows: Sequence[Sequence[int]], width: int
) -> tuple[Int[Tensor, "n n_pos"], Bool[Tensor, "n n_pos"]]:
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    return tokens, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def _position(encoded: BatchEncoding, i: int, prompt: PromptText, name: str, shift: int, unknown: int | None) -> int:
    """The token of prompt ``i`` that holds the word named ``name``, counted with the ``shift`` tokens put before it.

    Raises :class:`TaskError` for a word of several tokens or one that the tokenizer does not know.
    """
    if name not in prompt.spans:
        return ABSENT
    first, last = (encoded.char_to_token(i, place) for place in prompt.spans[name])
    if first is None or first != last or encoded["input_ids"][i][first] == unknown:
        word = prompt.text[prompt.spans[name][0] : prompt.spans[name][1] + 1]
        raise TaskError(f"{name} = {word!r} is not one token in {prompt.text!r}. Choose another word.")
    return first + shift


def check_seed(seed: int) -> int:
    """Raises :class:`TaskError` unless the seed is an integer from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise TaskError(f"A seed is an integer from 0 to 2^63 - 1, not {seed!r}.")
    return seed


def check_count(name: str, value: int, at_least: int) -> int:
    """Raises :class:`TaskError` unless the value is an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise TaskError(f"{name} is an integer from {at_least} on, not {value!r}.")
    return value


def save_prompts(prompts: PromptSet, path: Path) -> None:
    """Write a prompt set as parquet, the recipe in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = prompts.mask.sum(1).tolist()
    columns = {
        "text": list(prompts.texts),
        "tokens": [row[:length] for row, length in zip(prompts.tokens.tolist(), lengths)],
        "answer": prompts.answers.tolist(),
        "distractors": prompts.distractors.tolist(),
    }
    columns |= {f"position:{name}": position.tolist() for name, position in prompts.positions.items()}
    columns |= {f"info:{name}": list(values) for name, values in prompts.info.items()}
    pad = prompts.tokens[~prompts.mask]
    about = asdict(prompts.recipe) | {"pad": int(pad[0]) if len(pad) else 0, "width": prompts.tokens.shape[1]}
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(about)})
    with written_whole(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def load_prompts(path: Path) -> PromptSet:
    """Read what :func:`save_prompts` wrote. Raises :class:`TaskError` for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        return _unpacked(table.to_pydict(), json.loads(table.schema.metadata[_META]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TaskError(f"{path} holds no prompt set ({error!r}).") from error


def _unpacked(columns: dict[str, list], about: dict[str, Any]) -> PromptSet:
    pad, width = about.pop("pad"), about.pop("width")
    tokens, mask = _padded_with(pad, columns["tokens"], width)
    named: dict[str, dict[str, Any]] = {kind: {} for kind in ("position", "info")}
    for column, values in columns.items():
        kind, _, name = column.partition(":")
        if name:
            named[kind][name] = torch.tensor(values) if kind == "position" else values
    return PromptSet(
        tokens=tokens,
        mask=mask,
        positions=named["position"],
        answers=torch.tensor(columns["answer"]),
        distractors=torch.tensor(columns["distractors"], dtype=torch.long),
        texts=columns["text"],
        info=named["info"],
        recipe=Recipe(**about | {"rows": None if about["rows"] is None else tuple(about["rows"])}),
    )
