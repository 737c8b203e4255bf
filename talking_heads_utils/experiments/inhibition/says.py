"""What the component that inhibits says at ``end``: a place or a token, and how much of it each feature explains."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class SaysRow(Row):
    """One number about a component's coefficient at ``end`` of held-out prompts. ``statistic`` says which.

    variance_share: of the coefficient's variance, what ridge regression on ``feature`` predicts out of its fold.
    version_share: of its variation over the four versions of a prompt, what ``feature`` makes up; the three features
    add up to one. group_mean: its mean in ``group``, less the mean over prompts with a duplicate, in standard
    deviations over those.
    """

    model: str = column("", "name of the model")
    task: str = column("", "ioi, or laundry for lists")
    component: str = column("", "the one of an S-inhibition head that weights predict")
    statistic: str = column("", "variance_share, version_share, group_mean")
    feature: str = column(
        "", "ioi: name_order, which_name, order_by_name, template, no_duplicate; lists: list_index, items"
    )
    split: str = column("", "of variance_share: within_templates, across_templates, shuffled; else empty")
    group: str = column("", "of group_mean: IO first, S first, no duplicate; else empty")
    template: str = column("", "of group_mean: one template, or empty for all; else empty")
    value: float = column("share, or standard deviations", "a share below zero is worse than the mean of other folds")
    low: float = column("share, or standard deviations", "lower end of its 95% interval over prompts; over shuffles")
    high: float = column("share, or standard deviations", "upper end")
    n: int = column("prompts", "drawn prompts, each in all its versions; of shuffled the shuffles")
