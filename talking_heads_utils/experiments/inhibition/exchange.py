"""How much of an S-inhibition head's effect a few of its components carry: their coefficients at ``end`` are exchanged
with those of the same prompt with its names in the other order, in all movers' queries at once."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column

ALL = "all"  # heads together
QUERY, KEY, VALUE = "query", "key", "value"  # inputs of the movers
LOG_ODDS, LOGIT_DIFFERENCE, PROBABILITY = "log_odds", "logit_difference", "probability"  # what is measured

PREDICTED = "predicted"  # the first k by composition scores
PREDICTED_BY_USE = "weights_times_activation"  # by scores times the mean size of the exchanged coefficient
LARGEST_SINGULAR_VALUE = "largest_singular_value"
LARGEST_VARIANCE = "largest_variance"
BEST_MEASURED = "best_measured"  # by their own measured effect on separate prompts: an upper bound
WHOLE_HEAD = "whole_head"
OTHER_COMPONENT = "other_component"  # of the same head, of like energy
MATCHED_SETS = "matched_sets"  # drawn from the same layers, of like energy
RANDOM_DIRECTIONS = "random_directions"  # drawn in the head's output space
DRAWN = (MATCHED_SETS, RANDOM_DIRECTIONS)
PREDICTORS = (PREDICTED, PREDICTED_BY_USE, LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE)


@dataclass(frozen=True)
class ExchangeRow(Row):
    """What the exchange of one set of components does to one measure, mean over prompts. The shift of every control is
    scaled to the energy of the predicted set's. Of drawn sets: the mean over draws, and the draws' 2.5% and 97.5%
    points."""

    model: str = column("", "name of the model")
    head: str = column("", "S-inhibition head, or all of them together")
    into: str = column("", "query, key or value: which input of the movers sees the exchange")
    set: str = column("", "how the components were chosen")
    k: int = column("components", "how many of each head")
    components: str = column("", "their names, up to eight of a head; empty for drawn sets and whole heads")
    measure: str = column("", "log_odds: of the movers' attention, IO to S1, in nats; logit_difference; probability: "
                          "of IO")  # fmt: skip
    effect: float = column("", "change of the measure, mean over prompts")
    low: float = column("", "lower end of its 95% interval over prompts, of drawn sets over draws")
    high: float = column("", "upper end")
    share: float = column("share", "of what the exchange of the whole head's write into the query does")
    share_low: float = column("share", "lower end of its 95% interval over prompts, of drawn sets over draws")
    share_high: float = column("share", "upper end")
    energy: float | None = column("share", "of the whole exchanged write's squared length; empty for controls")
    matched_share: float | None = column("share", "95% point of the matched sets' shares; of predicted sets alone")
    p: float | None = column("", "share of matched sets, the set itself included, with as large an effect")
    n_draws: int | None = column("sets", "how many were drawn")
    n: int = column("prompts", "each with its twin")


@dataclass(frozen=True)
class HitRow(Row):
    """Where a predictor has the component of a head whose exchange does most to the movers' log-odds."""

    model: str = column("", "name of the model")
    head: str = column("", "S-inhibition head")
    predictor: str = column("", "what the head's components were ranked by, on other prompts or on none")
    strongest: str = column("", "the component whose exchange does most")
    first: str = column("", "the predictor's first")
    rank: int = column("", "of the strongest under the predictor, 1 for the first")
    hit_at_1: bool = column("", "whether it is the first")
    hit_at_3: bool = column("", "whether it is among the first three")
    p: float = column("", "chance of so good a rank by a random order")
    first_share: float = column("share", "effect of the predictor's first over that of the strongest")
    certain: float = column("share", "of bootstrap samples of the prompts in which the same component is the strongest")
    n_components: int = column("components", "of the head, those that write anything")
    n: int = column("prompts", "each with its twin")
