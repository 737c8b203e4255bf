"""Where, in running text, the heads attend when the component that inhibits is large."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class AttendsRow(Row):
    """Where one component's head attends at the 1% of positions where the component's coefficient is largest.

    share: of the head's attention from there to earlier tokens, the first token left out. even: what attention spread
    evenly over the same tokens would give. ``first_token`` is of all attention and has no even share. ``in_list`` is of
    positions: how many of the largest stand in a list, and in ``even`` how many of all.
    """

    model: str = column("", "name of the model")
    role: str = column("", "S-inhibition, mean (over the S-inhibition heads' components), control")
    component: str = column("", "the one of its head that weights predict; mean; a control")
    matched_to: str = column("", "of a control: the component whose layer and write energy it has nearly; else empty")
    target: str = column("", "seen (either of the next two), named_twice, same_list, first_token, in_list")
    share: float = column("share", "of attention to earlier tokens that goes to the target")
    even: float | None = column("share", "the same if attention were even")
    excess: float = column("share", "share less even")
    low: float | None = column("share", "lower end of the excess' 95% interval over sections; of controls none")
    high: float | None = column("share", "upper end")
    control: float | None = column("share", "mean excess of the matched components")
    control_low: float | None = column("share", "2.5th percentile of theirs")
    control_high: float | None = column("share", "97.5th percentile")
    p: float | None = column("", "(1 + matched components with as large an excess) / (1 + all of them)")
    n_controls: int | None = column("components", "matched to it")
    n: int = column("positions", "where the coefficient is largest")
    n_sections: int = column("sections", "of the text that they stand in")
    texts: str = column("", "what the text is")


@dataclass(frozen=True)
class ContextRow(Row):
    """One of the places in the text where a component's coefficient is largest, at most one a section."""

    model: str = column("", "name of the model")
    component: str = column("", "of an S-inhibition head")
    before: str = column("", "text before the word attended to")
    attended: str = column("", "the earlier token that the head attends to most")
    between: str = column("", "text between it and the token")
    token: str = column("", "where the coefficient is so large")
    target: str = column("", "what the attended token is: same_list, named_twice, other")
    attention: float = column("share", "of attention to earlier tokens but the first, what goes to it")
    size: float = column("standard deviations", "of the coefficient, from zero")
