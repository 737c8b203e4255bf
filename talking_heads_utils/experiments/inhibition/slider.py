"""One coefficient moved by hand: what the movers look at, and what the model answers."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column

COMPONENT, RANDOM = "component", "random"  # what is moved along
FIRST, SECOND = "first", "second"  # the two names, as the prompt has them
N_SHOWN, N_MEAN = 20, 200
SETTINGS = tuple(round(-2 + 0.2 * i, 1) for i in range(21))


@dataclass(frozen=True)
class SliderRow(Row):
    """One name of one prompt, or of the mean over prompts, with the coefficient at one setting."""

    model: str = column("", "name of the model")
    component: str = column("", "whose coefficient is set, in what its head writes at the last token")
    direction: str = column("", "component, or random: a random direction of the head's output, moved as far")
    prompt: int | None = column("", "its index; empty for the mean over prompts")
    text: str = column("", "the prompt; empty for the mean")
    order: str = column("", "IO first or S first; empty for the mean")
    setting: float = column("", "-1: mean coefficient of prompts that name IO first, 1: of those that name S first")
    coefficient: float = column("", "what it is set to")
    plain: float = column("", "the setting at which the prompt is by itself")
    name: str = column("", "first or second: which of the two names")
    word: str = column("", "that name; empty for the mean")
    attention: float = column("share of attention", "to it at its first mention, mean over movers")
    attention_low: float | None = column("share of attention", "lower end of its 95% interval; of the mean alone")
    attention_high: float | None = column("share of attention", "upper end")
    logit: float = column("logits", "of the name")
    logit_low: float | None = column("logits", "lower end of its 95% interval; of the mean alone")
    logit_high: float | None = column("logits", "upper end")
    probability: float = column("probability", "of the name as the next token")
    probability_low: float | None = column("probability", "lower end of its 95% interval; of the mean alone")
    probability_high: float | None = column("probability", "upper end")
    n: int = column("prompts", "one, or those of the mean")
