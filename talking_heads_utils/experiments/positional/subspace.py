"""Which components: the best of each inhibition head, fixed before lists are run; and what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column

N_COMPONENTS = 10  # that are chosen, the first three being the triple
K = 3  # dimensions that the claim speaks of
N_MATCHED = 99  # triples of other components


class Subspace(StrEnum):
    """Whose write directions span it: components of inhibition heads, of any head below the movers, other components
    matched on layer and energy; or learned ones, with their two controls; or all there is."""

    CHOSEN = "chosen"
    ANYWHERE = "anywhere"
    MATCHED = "matched"
    LEARNED = "learned"
    LEARNED_ARBITRARY = "learned_arbitrary_labels"
    LEARNED_UNTRAINED = "learned_untrained_model"
    WHOLE_HEADS = "whole_heads"
    WHOLE_STREAM = "whole_stream"


@dataclass(frozen=True)
class ComponentRow(Row):
    model: str = column("", "as the command took it")
    subspace: str = column("", "chosen: of inhibition heads; anywhere: of any head below the movers")
    rank: int = column("", "in the order in which they are taken, 1 for the first")
    component: str = column("", "such as L8H10.1")
    score: float = column("", "composition score into the movers' queries, mean over movers")
    spread: float = column("stream units", "standard deviation of its coefficient at end, on IOI prompts")
    value: float = column("stream units", "score times spread, by which it is ranked")
    outside: float = column("share", "of its direction's squared length outside the span of those taken before")
    layer_energy: float = column("share", "of its head's mean squared write that lies along it, about the mean")
    n: int = column("prompts", "IOI prompts")


def run(c: Context) -> list[ComponentRow]:
    raise NotImplementedError
