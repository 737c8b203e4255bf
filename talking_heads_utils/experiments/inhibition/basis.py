"""Is the basis of singular vectors privileged? The best component against the best of random bases of the same head."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column

N_BASES = 99
EVERY = "all"  # in place of a head: the row of a group
DIFFERENCE = "S-inhibition less other"  # in place of a group


@dataclass(frozen=True)
class BasisRow(Row):
    """One head of the S-inhibition heads' layers into one mover's query, or into all; rows over groups at the end."""

    head: str = column("", "the writer; 'all' in the rows of a group")
    group: str = column("", "S-inhibition, or other for another head of the same layers; 'S-inhibition less other' in "
                        "the row that compares them")  # fmt: skip
    reader: str = column("", "the mover; 'all' for the mean over movers")
    score: float | None = column("score", "of the singular component that the reader's query reads most")
    random_mean: float | None = column("score", "of the best direction of a random orthonormal basis of what the head "
                                       "writes, mean over bases")  # fmt: skip
    random_low: float | None = column("score", "2.5th percentile over bases")
    random_high: float | None = column("score", "97.5th percentile")
    ratio: float = column("", "score to random_mean; of a group the geometric mean over its heads; of two groups the "
                          "ratio of theirs")  # fmt: skip
    low: float | None = column("", "lower end of the group's 95% interval of ratio, bootstrap over heads")
    high: float | None = column("", "upper end")
    rank: int | None = column("", "of the singular vectors' basis among it and the random ones, 1 for the best")
    p: float | None = column("", "share of the bases, the singular vectors' included, that do as well; of two groups: "
                             "of choices of as many heads from the same layers")  # fmt: skip
    n: int = column("bases or heads", "random bases; of two groups, choices of heads")
