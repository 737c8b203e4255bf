"""Indirect object identification (Wang et al. 2022): two names, one is named again, the other is the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.encoding import PromptText, encode, render
from talking_heads_utils.prompts.sets import PromptSet, Recipe, check_count, check_seed
from talking_heads_utils.prompts.words import load_templates, load_words, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "ioi"
IO_FIRST, S_FIRST = "IO first", "S first"


@dataclass(frozen=True)
class IOIPrompt:
    """One prompt by its parts. ``io_first``: IO stands before S1. ``repeated``: who acts, S unless a counterfactual."""

    template: str
    io: str
    s: str
    place: str
    thing: str
    io_first: bool
    repeated: str
    third: str

    def text(self) -> PromptText:
        """The prompt as text, with the positions ``IO``, ``S1``, ``S2``."""
        template = load_templates(TASK)["templates"][self.template]
        first, second = [("IO", self.io), ("S1", self.s)][:: 1 if self.io_first else -1]
        fields = {"A": [first], "B": [second], "S": [("S2", self.repeated)], "PLACE": [("place", self.place)]}
        text, spans = render(template, fields | {"OBJECT": [("object", self.thing)]})
        info = {"template": self.template, "order": IO_FIRST if self.io_first else S_FIRST}
        return PromptText(text, spans, self.io, (self.s,), info)


def swap_order(prompt: IOIPrompt) -> IOIPrompt:
    """The same people in the same roles, named in the other order at first: what a *place* would change."""
    return replace(prompt, io_first=not prompt.io_first)


def swap_names(prompt: IOIPrompt) -> IOIPrompt:
    """IO and S exchange names and keep their places: what an *identity* would change."""
    repeated = prompt.io if prompt.repeated == prompt.s else prompt.repeated
    return replace(prompt, io=prompt.s, s=prompt.io, repeated=repeated)


def third_name(prompt: IOIPrompt) -> IOIPrompt:
    """A third person acts, so that neither name is named twice: no duplicate to be found."""
    return replace(prompt, repeated=prompt.third)


COUNTERFACTUALS: dict[str, Callable[[IOIPrompt], IOIPrompt]] = {
    "swap order": swap_order,
    "swap names": swap_names,
    "third name": third_name,
}


def draw_ioi(tokenizer: PreTrainedTokenizerBase, n_prompts: int = 200, seed: int = 0) -> list[IOIPrompt]:
    """``n_prompts`` prompts, half with IO first and half with S first, templates in turn.

    Raises :class:`TaskError` for an odd or non-positive number, or a tokenizer that splits too many names.
    """
    check_seed(seed)
    if check_count("n_prompts", n_prompts, 2) % 2:
        raise TaskError(f"Half of the prompts have IO first, so their number must be even, not {n_prompts}.")
    rng = np.random.default_rng(seed)
    names = load_words("names", tokenizer, at_least=3)
    places, objects = (load_words(kind, tokenizer, at_least=1) for kind in ("places", "objects"))
    templates = list(load_templates(TASK)["templates"])
    prompts = []
    for i in range(n_prompts):
        io, s, third = (str(name) for name in rng.choice(names, 3, replace=False))
        place, thing = str(rng.choice(places)), str(rng.choice(objects))
        template = templates[i // 2 % len(templates)]
        prompts.append(IOIPrompt(template, io, s, place, thing, i % 2 == 0, repeated=s, third=third))
    return prompts


def build_ioi(
    tokenizer: PreTrainedTokenizerBase,
    n_prompts: int = 200,
    seed: int = 0,
    *,
    counterfactual: str | None = None,
    prompts: Sequence[IOIPrompt] | None = None,
    prefix: str | None = None,
) -> PromptSet:
    """IOI prompts for a tokenizer; with ``counterfactual`` each one changed by that named operation, pair by pair.

    prompts: your own instead of drawn ones. prefix: what stands in front, in place of what the tokenizer adds by itself
    (:mod:`~talking_heads_utils.prompts.prefix`). Raises :class:`TaskError` for an unknown operation, no prompts,
    equal names, or a word that is not one token.
    """
    drawn = prompts is None
    prompts = draw_ioi(tokenizer, n_prompts, seed) if prompts is None else list(prompts)
    if not prompts:
        raise TaskError("No prompts were given. Leave prompts out to have them drawn.")
    if bad := [p for p in prompts if len({p.io, p.s, p.third}) < 3]:
        raise TaskError(f"IO, S and the third must be three names, not {bad[0].io!r}, {bad[0].s!r}, {bad[0].third!r}.")
    if counterfactual is not None:
        if counterfactual not in COUNTERFACTUALS:
            raise TaskError(f"No counterfactual {counterfactual!r}; there are {', '.join(COUNTERFACTUALS)}.")
        prompts = [COUNTERFACTUALS[counterfactual](p) for p in prompts]
    recipe = Recipe(TASK, len(prompts), seed, tokenizer_hash(tokenizer), prefix=prefix, counterfactual=counterfactual,
                    drawn=drawn)  # fmt: skip
    return encode([p.text() for p in prompts], tokenizer, recipe)
