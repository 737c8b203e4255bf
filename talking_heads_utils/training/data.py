"""Training prompts on the fly, straight as token ids: the tasks and wordings of :mod:`talking_heads_utils.prompts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.words import load_templates, load_words
from talking_heads_utils.training.spec import MiniSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right: tokens ``[n, n_pos]``, the last token's place ``end`` and the answer ``[n]``."""

    tokens: Int[Tensor, "n n_pos"]
    end: Int[Tensor, "n"]
    answers: Int[Tensor, "n"]


class Prompts:
    """Draws prompts as ids. Everything comes out of the generator that is passed in."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.bos = tokenizer.bos_token_id
        self.comma = tokenizer.convert_tokens_to_ids(",")
        self.ids = {
            kind: np.array(tokenizer.convert_tokens_to_ids(list(load_words(kind, tokenizer, 1).kept)))
            for kind in ("names", "places", "objects")
        }
        self.ioi = [self._pieces(t, tokenizer) for t in load_templates(ioi.TASK)["templates"].values()]
        self.laundry = [self._pieces(t, tokenizer) for t in load_templates(laundry.TASK)["wordings"].values()]

    @staticmethod
    def _pieces(template: str, tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], str | None]]:
        """``(ids of the words before, placeholder)`` of each part of a template."""
        parts = Formatter().parse(template)
        return [(tokenizer(literal, add_special_tokens=False)["input_ids"], name) for literal, name, *_ in parts]

    def _fill(self, pieces: list[tuple[list[int], str | None]], fields: Mapping[str, Iterable[int]]) -> list[int]:
        row = [self.bos]
        for words, name in pieces:
            row += words
            for i, token in enumerate(fields[name] if name else ()):
                row += [self.comma, int(token)] if i else [int(token)]
        return row

    def draw_ioi(self, rng: np.random.Generator) -> tuple[list[int], int]:
        """One IOI prompt and its answer, either name first."""
        a, b = rng.choice(self.ids["names"], 2, replace=False)
        s, io = (a, b) if rng.random() < 0.5 else (b, a)
        place, thing = rng.choice(self.ids["places"]), rng.choice(self.ids["objects"])
        fields: dict[str, Iterable[int]] = {"A": [a], "B": [b], "S": [s], "PLACE": [place], "OBJECT": [thing]}
        return self._fill(self.ioi[rng.integers(len(self.ioi))], fields), int(io)

    def draw_laundry(self, rng: np.random.Generator, n_items: int) -> tuple[list[int], int]:
        """One list of ``n_items``, all but one named again, in the same order or shuffled."""
        items = rng.choice(self.ids["objects"], n_items, replace=False)
        place = rng.integers(n_items)
        rest = np.delete(items, place)
        if rng.random() < 0.5:
            rng.shuffle(rest)
        wording = self.laundry[rng.integers(len(self.laundry))]
        return self._fill(wording, {"ITEMS": items, "REST": rest}), int(items[place])

    def batches(self, rng: np.random.Generator, spec: MiniSpec, longest: int) -> list[Batch]:
        """One training step's prompts, IOI and lists of 2 to ``longest`` items mixed, in parts of like length: padding
        short prompts to the longest would be half of the work."""
        prompts = [
            self.draw_ioi(rng)
            if rng.random() < spec.ioi_share
            else self.draw_laundry(rng, draw_length(rng, longest, spec.length_power))
            for _ in range(spec.batch)
        ]
        prompts.sort(key=lambda prompt: len(prompt[0]))
        size = -(-spec.batch // spec.parts)
        return [self.stack(prompts[i : i + size]) for i in range(0, spec.batch, size)]

    def stack(self, prompts: Sequence[tuple[list[int], int]]) -> Batch:
        """Pad prompts on the right."""
        rows, answers = zip(*prompts)
        width = max(map(len, rows))
        tokens = torch.tensor([row + [self.bos] * (width - len(row)) for row in rows])
        return Batch(tokens, torch.tensor([len(row) - 1 for row in rows]), torch.tensor(answers))


def draw_length(rng: np.random.Generator, longest: int, power: float) -> int:
    """A list's length from 2 to ``longest``, n as often as ``n ** power``: 0 draws all alike."""
    if not power:
        return int(rng.integers(2, longest + 1))
    lengths = np.arange(2, longest + 1)
    return int(rng.choice(lengths, p=lengths**power / (lengths**power).sum()))


def check_fits(spec: MiniSpec, prompts: Prompts) -> None:
    """Raises :class:`TaskError` if the longest list does not fit the model's positions or words."""
    if spec.n_items > len(prompts.ids["objects"]):
        raise TaskError(f"{spec.n_items} items need as many objects; {spec.name} knows {len(prompts.ids['objects'])}.")
    rng = np.random.default_rng(0)
    width = max(len(prompts.draw_laundry(rng, spec.n_items)[0]) for _ in range(50))
    if width > spec.n_positions:
        raise TaskError(f"Lists of {spec.n_items} take {width} tokens; {spec.name} has {spec.n_positions} positions.")
