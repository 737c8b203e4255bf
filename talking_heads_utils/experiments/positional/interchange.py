"""How many dimensions behaviour needs: a donor's coordinates are put into a recipient."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column


class Donor(StrEnum):
    """Whose coordinates: a list of other items whose answer stands at another index; one whose answer stands at the
    same index; the recipient's own items with the answer at the other index."""

    OTHER_ITEMS = "other_items"
    SAME_INDEX = "same_index"
    SAME_ITEMS = "same_items"


LOGIT_DIFFERENCE, LOG_ODDS, MOVED = "logit_difference", "log_odds", "moved"  # what is measured


@dataclass(frozen=True)
class InterchangeRow(Row):
    """What a donor's coordinates at end, entering the lowest mover's layer, do to the recipient's own item at the
    donor's index j, against its item at its own index i. Of drawn subspaces: mean over draws, and the draws' 2.5% and
    97.5% points."""

    model: str = column("", "as the command took it")
    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "whose coordinates are interchanged")
    k: int = column("dimensions", "of it; 0 for whole heads and the whole stream")
    donor: str = column("", "other_items, same_index, same_items")
    measure: str = column(
        "",
        "logit_difference: item at j less item at i, logits; log_odds: of the movers' attention, j to i, "
        "nats; moved: share of lists answered with the item at j less the same without interchange",
    )
    effect: float = column("", "change of the measure, mean over pairs")
    low: float = column("", "95% interval over pairs, of drawn subspaces over draws, lower end")
    high: float = column("", "upper end")
    of_stream: float = column("share", "of what the whole stream does")
    of_stream_low: float = column("share", "95% interval, lower end")
    of_stream_high: float = column("share", "upper end")
    of_ten: float = column("share", "of what ten dimensions of the same kind do")
    of_ten_low: float = column("share", "95% interval, lower end")
    of_ten_high: float = column("share", "upper end")
    matched: float | None = column("", "95% point of the matched triples' effects; of chosen at k = 3 alone")
    p: float | None = column("", "share of matched triples, this one included, with as large an effect")
    n_draws: int | None = column("subspaces", "drawn ones behind p, or behind the row")
    n: int = column("pairs", "recipient and donor")


def run(c: Context) -> list[InterchangeRow]:
    raise NotImplementedError
