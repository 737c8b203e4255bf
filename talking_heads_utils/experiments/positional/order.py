"""Accuracy by the answer's index, in kept and in shuffled order, beside what recency and induction alone would give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import drawn_test
from talking_heads_utils.experiments.gate import last_named, next_in_order
from talking_heads_utils.experiments.positional.crowding import (
    SCALES,
    Scaled,
    by_index,
    lengths,
    scaled,
    spread_over,
)
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.stats import share

N_PERMUTATIONS = 999
PLAIN, REMOVED = SCALES.index(1), SCALES.index(0)


@dataclass(frozen=True)
class OrderRow(ModelRow):
    n_items: int = column("items", "length of the lists")
    order: str = column("", "kept, shuffled: in which the others are named again")
    list_index: int = column("", "of the answer, from 0")
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    last_named: float = column("share", "the same by always taking the last item")
    next_in_order: float = column("share", "the same by taking the item after the one named last, which induction "
                                  "would")  # fmt: skip
    least_recent: float = column("share", "the same by taking the item whose last mention lies furthest back: all, as "
                                 "only the answer is not named again")  # fmt: skip
    says_last_named: float = column("share", "lists in which the model takes the last item")
    says_next_in_order: float = column("share", "in which it takes the item after the one named last")
    removed: float = column("share", "accuracy with all lists' coordinates at one point")
    matched_removed: float = column("share", "the same with as long a shift along matched triples, mean over draws, on "
                                    "the lists that these were run on")  # fmt: skip
    range_p: float = column("", "of so large a range of accuracy over indices in this order; right answers dealt anew "
                            "over indices; alike in all rows of an order and length")  # fmt: skip
    through_p: float = column("", "share of matched triples, this one included, whose removal narrows the range of "
                              "accuracy over indices as much, on the lists that these were run on; alike in all rows "
                              "of an order and length")  # fmt: skip
    n: int = column("prompts", "lists")


def run(c: Context) -> list[OrderRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` does."""
    return [row for n_items in lengths(c) for row in order_rows(c.model, c.kept(scaled, n_items), c.seed)]


def least_recent(prompts: PromptSet) -> Int[Tensor, "n_prompts"]:
    """The token of the item whose last mention lies furthest back."""
    _, tokens = item_positions(prompts)
    mentions = [
        torch.stack([prompts.positions[f"item_{k} {which}"] for k in range(tokens.shape[1])], 1)
        for which in ("first", "second")
    ]
    return tokens.gather(1, torch.maximum(*mentions).argmin(1, keepdim=True))[:, 0]


def order_rows(model: str, of: Scaled, seed: int) -> list[OrderRow]:
    """Both orders, every index."""
    prompts, index, right = of.prompts, of.index, of.right
    plain, removed = right[:, PLAIN], right[:, REMOVED]
    _, tokens = item_positions(prompts)
    taken = tokens.gather(1, of.logits[:, PLAIN].argmax(1, keepdim=True))[:, 0]
    plans = [plan(prompts) for plan in (last_named, next_in_order, least_recent)]
    hits = [plan == prompts.answers for plan in plans] + [plan == taken for plan in plans[:2]] + [removed]
    some, rows = slice(len(of.matched)), list[OrderRow]()  # the lists that matched triples were run on
    for order in sorted(set(prompts.info["order"])):
        here = torch.tensor([o == order for o in prompts.info["order"]])
        range_p, few = dealt_p(plain[here], index[here], seed), here[some]
        before, of_few, drawn = plain[some][few], index[some][few], of.matched[few, :, REMOVED]
        own = narrowing(before, removed[some][few], of_few).item()
        through_p = drawn_test(own, narrowing(before, drawn, of_few)).p
        matched = by_index(drawn, of_few).mean(1)
        for i in index.unique().tolist():
            cell = here & (index == i)
            found = share(plain[cell])
            last, following, least, says_last, says_next, gone = (hit[cell].double().mean().item() for hit in hits)
            rows.append(
                OrderRow(model, of.logits.shape[2], order, i, *found[:3], last, following, least, says_last, says_next,
                         gone, matched[i].item(), range_p, through_p, found.n)
            )  # fmt: skip
    return rows


def dealt_p(right: Bool[Tensor, "n"], index: Int[Tensor, "n"], seed: int = 0) -> float:
    """Of so large a range of accuracy over indices, right answers dealt anew over all lists."""
    generator = torch.Generator().manual_seed(seed)
    dealt = right[torch.rand(N_PERMUTATIONS, len(right), generator=generator).argsort(1)]
    return drawn_test(spread_over(right, index).item(), spread_over(dealt.T, index)).p


def narrowing(
    plain: Bool[Tensor, "n"], removed: Bool[Tensor, "n *sets"], index: Int[Tensor, "n"]
) -> Float[Tensor, "*sets"]:
    """How much smaller the range of accuracy over indices is with what was removed."""
    return spread_over(plain, index) - spread_over(removed, index)
