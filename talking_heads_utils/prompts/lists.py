"""The Laundry List: n items are named, all but one are named again as dealt with; the answer is the one left.

This is the project's reading of the task; the paper's own wording could not be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.encoding import PromptText, encode, render
from talking_heads_utils.prompts.sets import PromptSet, Recipe, check_count, check_seed
from talking_heads_utils.prompts.words import load_templates, load_words, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "laundry"
N_ITEMS = range(3, 21)
KEPT, SHUFFLED = "kept", "shuffled"
SELECTION, HELD_OUT = "selection", "held-out"


def wordings(held_out: bool | None = None) -> list[str]:
    """Names of the wordings: all, those that may be used for choices (False), or those held out of them (True)."""
    templates = load_templates(TASK)
    names = list(templates["wordings"])
    return names if held_out is None else [name for name in names if (name in templates["held_out"]) == held_out]


def laundry_prompt(
    wording: str, items: list[str], index: int, order: str, rest: list[str], half: str,
    templates: Mapping[str, str] | None = None,
) -> PromptText:  # fmt: skip
    """One prompt as text. Positions: ``item_k first`` and ``item_k second``, k being the list index.

    index: that of the answer. rest: the other items in the order of their second mention. templates: wording -> text,
    those of the data if none are given.
    """
    templates = templates or load_templates(TASK)["wordings"]
    fields = {
        "ITEMS": [(f"item_{k} first", item) for k, item in enumerate(items)],
        "REST": [(f"item_{items.index(item)} second", item) for item in rest],
    }
    text, spans = render(templates[wording], fields)
    wrong = tuple(item for k, item in enumerate(items) if k != index)
    info: dict[str, str | int] = {"wording": wording, "index": index, "order": order, "half": half}
    return PromptText(text, spans, items[index], wrong, info)


def others(items: list[str], index: int, order: str, rng: np.random.Generator) -> list[str]:
    """All items but the answer, in the order of their second mention: the same, or another one."""
    rest = kept = [item for k, item in enumerate(items) if k != index]
    while order == SHUFFLED and rest == kept:
        rest = [str(item) for item in rng.permutation(kept)]
    return rest


def draw_laundry(
    tokenizer: PreTrainedTokenizerBase, n_items: int, n_prompts: int = 250, seed: int = 0
) -> list[PromptText]:
    """Prompts with ``n_items`` items each; in each half every list index of the answer as often as any other, up to
    one.

    The first half is for choices and never uses a held-out wording; the second is held out and uses all. They share
    no prompt and no set of items. Wordings and orders take turns so that every index meets all of them. Raises
    :class:`TaskError` for a list length outside 3..20, too few different lists, or a tokenizer that splits too many
    items.
    """
    check_seed(seed)
    if not isinstance(n_items, int) or n_items not in N_ITEMS:
        raise TaskError(f"A list has {N_ITEMS[0]} to {N_ITEMS[-1]} items, not {n_items!r}.")
    check_count("n_prompts", n_prompts, 2)  # two halves
    rng = np.random.default_rng([seed, n_items])
    objects = load_words("objects", tokenizer, at_least=n_items + 1)
    if math.comb(len(objects), n_items) < 2 * n_prompts:
        raise TaskError(
            f"{len(objects)} objects make too few different lists of {n_items} for {n_prompts} prompts. "
            "Ask for fewer prompts, or add objects to data/prompts/objects.txt."
        )
    seen, prompts, templates = set(), [], load_templates(TASK)["wordings"]
    by_half = {SELECTION: wordings(held_out=False), HELD_OUT: wordings()}
    for i in range(n_prompts):
        half, within = (SELECTION, i) if i < n_prompts // 2 else (HELD_OUT, i - n_prompts // 2)
        names = by_half[half]
        index, turn = within % n_items, within // n_items + within % n_items
        while frozenset(items := [str(item) for item in rng.choice(objects, n_items, replace=False)]) in seen:
            continue
        seen.add(frozenset(items))
        order = (KEPT, SHUFFLED)[(turn // len(names) + turn % len(names)) % 2]
        rest = others(items, index, order, rng)
        prompts.append(laundry_prompt(names[turn % len(names)], items, index, order, rest, half, templates))
    return prompts


def build_laundry(
    tokenizer: PreTrainedTokenizerBase,
    n_items: int,
    n_prompts: int = 250,
    seed: int = 0,
    *,
    prefix: str | None = None,
    n_ctx: int | None = None,
) -> PromptSet:
    """Laundry List prompts for a tokenizer; see :func:`draw_laundry`. With ``n_ctx``, too long a list is an error.
    prefix: what stands in front, in place of what the tokenizer adds by itself."""
    prompts = draw_laundry(tokenizer, n_items, n_prompts, seed)
    recipe = Recipe(TASK, n_prompts, seed, tokenizer_hash(tokenizer), n_items, prefix=prefix)
    return encode(prompts, tokenizer, recipe, n_ctx=n_ctx)
