"""Lists for chapters 2 and 3: what chooses and what is scored share no set of items; some wordings and objects are for
scoring alone."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.prompts.encoding import PromptText, encode
from talking_heads_utils.prompts.lists import KEPT, SHUFFLED, TASK, laundry_prompt, others, wordings
from talking_heads_utils.prompts.sets import PromptSet, Recipe, check_count, check_seed
from talking_heads_utils.prompts.words import load_words, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EACH_INDEX = 50  # lists of each index of the answer that a score needs
NEW_EVERY = 3  # one object in so many is kept for scoring alone


class Part(StrEnum):
    """Which lists: those that choices are made on; others in the same wordings, of the same objects; in a wording, or
    of objects, that no choice saw."""

    SELECTION = "selection"
    HELD_OUT = "held_out"
    NEW_WORDING = "new_wording"
    NEW_OBJECTS = "new_objects"


@dataclass(frozen=True)
class Lists:
    """``n_prompts`` lists of ``n_items``: every index of the answer as often as any other, up to one, in each order.

    Call it with a context, or give it to :meth:`Context.kept`. Lists of two parts have no set of items in common,
    however many are drawn; more of one part begin with the fewer.
    """

    part: Part
    n_items: int
    n_prompts: int

    def __call__(self, c: Context) -> PromptSet:
        return build(c.tokenizer, self, c.seed)


def build(tokenizer: PreTrainedTokenizerBase, lists: Lists, seed: int = 0) -> PromptSet:
    """Raises :class:`TaskError` for a tokenizer that splits too many objects, or more lists than there are."""
    check_seed(seed)
    check_count("n_prompts", lists.n_prompts, 1)
    objects = pool(load_words("objects", tokenizer, lists.n_items + 1), lists.part)
    names = wordings(held_out=lists.part == Part.NEW_WORDING)
    if math.comb(len(objects), lists.n_items) < 8 * lists.n_prompts:
        raise TaskError(f"{len(objects)} objects make too few lists of {lists.n_items} for {lists.n_prompts} prompts.")
    rng = np.random.default_rng([seed, lists.n_items, *lists.part.encode()])
    seen: set[frozenset[str]] = set()
    prompts = []
    for i in range(lists.n_prompts):
        while True:
            items = [str(item) for item in rng.choice(objects, lists.n_items, replace=False)]
            key = frozenset(items)
            if key not in seen and (lists.part == Part.NEW_OBJECTS or _chooses(key) == (lists.part == Part.SELECTION)):
                break
        seen.add(key)
        prompts.append(_prompt(items, i, names, rng))
    recipe = Recipe(TASK, lists.n_prompts, seed, tokenizer_hash(tokenizer), lists.n_items, drawn=False)
    return encode(prompts, tokenizer, recipe)


def check_each_index(prompts: PromptSet, least: int) -> None:
    """Raises :class:`TaskError` where an index of the answer has fewer than ``least`` lists."""
    of_index = Counter(prompts.info["index"])
    for index in range(prompts.recipe.n_items or 0):
        if of_index[index] < least:
            raise TaskError(
                f"{of_index[index]} of {len(prompts)} lists have their answer at index {index}; it takes {least} of "
                "each index. Ask for more lists."
            )


def pool(objects: Iterable[str], part: Part) -> list[str]:
    """The objects that a part's lists are made of."""
    new = part == Part.NEW_OBJECTS
    return [word for i, word in enumerate(sorted(objects)) if (i % NEW_EVERY == 0) == new]


def _chooses(items: frozenset[str]) -> bool:
    """Whether lists of these items are for choices, by the items alone."""
    return zlib.crc32(" ".join(sorted(items)).encode()) % 2 == 0


def _prompt(items: list[str], i: int, names: list[str], rng: np.random.Generator) -> PromptText:
    """The i-th: index, order and wording take turns so that each meets all of the others."""
    turn, index = divmod(i, len(items))
    order, wording = (KEPT, SHUFFLED)[turn % 2], names[(turn // 2 + index) % len(names)]
    return laundry_prompt(wording, items, index, order, others(items, index, order, rng), "")
