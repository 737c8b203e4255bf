"""Recipients and donors: lists in pairs, so that something of the donor can be put into the recipient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.experiments.dealt import numbered
from talking_heads_utils.experiments.positional.ends import Ends
from talking_heads_utils.forward import engine
from talking_heads_utils.prompts.encoding import encode
from talking_heads_utils.prompts.lists import laundry_prompt, others

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.prompts.sets import PromptSet


class Donor(StrEnum):
    """Whose coordinates: a list of other items whose answer stands at another index; one whose answer stands at the
    same index; the recipient's own items with the answer at the other index."""

    OTHER_ITEMS = "other_items"
    SAME_INDEX = "same_index"
    SAME_ITEMS = "same_items"


@dataclass(frozen=True)
class Pairs:
    """n recipients, each with donors.

    i: list index of the recipient's answer. j: another one, every pair of indices as often as any other, up to one.
    donors: by kind the stream that enters the lowest mover's layer at ``end``. written: what the S-inhibition heads of
    donors with other items wrote there together. All donors share wording and order with their recipient where there
    are such lists.
    """

    ends: Ends
    j: Int[Tensor, "n"]
    donors: Mapping[Donor, Float[Tensor, "n d_model"]]
    written: Float[Tensor, "n d_model"]

    @property
    def i(self) -> Int[Tensor, "n"]:
        return self.ends.index

    def __len__(self) -> int:
        return len(self.j)


def make_pairs(ends: Ends, seed: int = 0) -> Pairs:
    """Every list once as recipient; donors are others of them, with as few items of the recipient's as there are."""
    generator = torch.Generator().manual_seed(seed)
    j = other_index(ends.index.cpu(), ends.candidates.shape[1], generator)
    rows = {
        Donor.OTHER_ITEMS: donor_rows(ends.prompts, ends.candidates.cpu(), j, generator),
        Donor.SAME_INDEX: donor_rows(ends.prompts, ends.candidates.cpu(), ends.index.cpu(), generator),
    }
    streams = {donor: ends.stream[which] for donor, which in rows.items()}
    return Pairs(ends, j.to(ends.index), streams, ends.written[rows[Donor.OTHER_ITEMS]])


def other_index(index: Int[Tensor, "n"], n_items: int, generator: torch.Generator) -> Int[Tensor, "n"]:
    """Another index for each, all others equally often among those with the same one, up to one."""
    found = index.clone()
    for i in index.unique():
        rows = (index == i).nonzero()[:, 0]
        offsets = 1 + torch.arange(len(rows)) % (n_items - 1)
        found[rows] = (i + offsets[torch.randperm(len(rows), generator=generator)]) % n_items
    return found


def donor_rows(
    prompts: PromptSet, items: Int[Tensor, "n n_items"], wanted: Int[Tensor, "n"], generator: torch.Generator
) -> Int[Tensor, "n"]:
    """For each list another one whose answer stands at the ``wanted`` index: of the same wording and order before one
    that is not, then with the fewest items in common, then the least used, then at random."""
    index = torch.as_tensor(prompts.info["index"])
    kind = numbered(zip(prompts.info["wording"], prompts.info["order"]))
    used, found = torch.zeros(len(items)), []
    for row, at in enumerate(wanted.tolist()):
        common = (items[row, :, None, None] == items[None]).any(0).sum(-1)
        chance = torch.rand(len(items), generator=generator, dtype=torch.float64)
        cost = 1e6 * (kind != kind[row]) + 1e3 * common + used + chance
        cost[(index != at) | (torch.arange(len(items)) == row)] = torch.inf
        found.append(int(cost.argmin()))
        used[found[-1]] += 1
    return torch.tensor(found)


def same_items(
    ends: Ends, j: Int[Tensor, "n"], bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Float[Tensor, "n d_model"]:
    """The stream that enters the lowest mover's layer at ``end`` of the same lists, wordings and orders, but with the
    answer at j."""
    rng, info, texts = np.random.default_rng(seed), ends.prompts.info, []
    for tokens, at, wording, order in zip(ends.candidates.tolist(), j.tolist(), info["wording"], info["order"]):
        items = [tokenizer.decode([token]).strip() for token in tokens]
        texts.append(laundry_prompt(str(wording), items, at, str(order), others(items, at, str(order), rng), ""))
    return engine.prepare(bridge, encode(texts, tokenizer, ends.prompts.recipe), ends.layer).resid
