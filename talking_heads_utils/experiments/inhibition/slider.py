"""One coefficient moved by hand: what the movers look at, and what the model answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange_study import (
    N_CHOICE,
    N_SCORED,
    PREDICTED,
    fresh_prompts,
    study_of,
)
from talking_heads_utils.experiments.rows import ModelRow, column, maybe
from talking_heads_utils.forward.engine import ATTN_OUT, Change, Forward, Z, chained, prepare, reading
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.ioi import IO_FIRST, S_FIRST, build_ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.roles import NAME_MOVER
from talking_heads_utils.stats import summary

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("attention", "logit", "probability")
COMPONENT, RANDOM = "component", "random"  # what is moved along
FIRST, SECOND = "first", "second"  # the two names, as the prompt has them
N_SHOWN, N_MEAN = 20, 200
SETTINGS = tuple(round(-2 + 0.2 * i, 1) for i in range(21))


@dataclass(frozen=True)
class SliderRow(ModelRow):
    """One name of one prompt, or of the mean over prompts, with the coefficient at one setting."""

    component: str = column("", "whose coefficient is set, in what its head writes at the last token")
    direction: str = column("", "component, or random: a random direction of the head's output, moved as far")
    prompt: int | None = maybe("", "its index; empty for the mean over prompts")
    text: str = column("", "the prompt; empty for the mean")
    order: str = column("", "IO first or S first; empty for the mean")
    setting: float = column("", "-1: mean coefficient of prompts that name IO first, 1: of those that name S first")
    coefficient: float = column("", "what it is set to")
    plain: float = column("", "the setting at which the prompt is by itself")
    name: str = column("", "first or second: which of the two names")
    word: str = column("", "that name; empty for the mean")
    attention: float = column("share of attention", "to it at its first mention, mean over movers")
    attention_low: float | None = maybe("share of attention", "lower end of its 95% interval; of the mean alone")
    attention_high: float | None = maybe("share of attention", "upper end")
    logit: float = column("logits", "of the name")
    logit_low: float | None = maybe("logits", "lower end of its 95% interval; of the mean alone")
    logit_high: float | None = maybe("logits", "upper end")
    probability: float = column("probability", "of the name as the next token")
    probability_low: float | None = maybe("probability", "lower end of its 95% interval; of the mean alone")
    probability_high: float | None = maybe("probability", "upper end")
    n: int = column("prompts", "one, or those of the mean")


def run(c: Context) -> list[SliderRow]:
    """The first predicted component of the strongest S-inhibition head, on some prompts, of which :data:`N_SHOWN` are
    shown by themselves. Raises :class:`NotApplicable` for a model without such heads."""
    study = c.kept(study_of)
    (component,) = study.first(PREDICTED, study.heads[:1], 1)
    drawn = fresh_prompts(c.tokenizer, (c.n(N_CHOICE), c.n(N_SCORED), c.n(N_MEAN)), c.seed)[2]
    return _rows(c, build_ioi(c.tokenizer, prompts=drawn), component)


def text_rows(c: Context, table: pd.DataFrame, text: str, answer: str, other: str) -> list[SliderRow]:
    """A prompt of one's own, which ends before the answer, under the settings of a table of these rows. answer, other:
    the two names. Raises :class:`TaskError` for a text without them."""
    order = {"order": [IO_FIRST if text.find(answer) < text.find(other) else S_FIRST]}
    at = {"IO": [(answer, 0)], "S1": [(other, 0)]}
    prompts = from_texts([text], [answer], [other], c.tokenizer, positions=at, info=order)
    component = Component.parse(table["component"].iloc[0])
    return _rows(c, prompts, component, table.groupby("setting")["coefficient"].first().to_dict())


def _rows(
    c: Context, prompts: PromptSet, component: Component, coefficients: dict[float, float] | None = None
) -> list[SliderRow]:
    """coefficients: what the coefficient is set to, by setting; every prompt is shown then. Else some are, and the mean
    over all of them, and the scale is made of the prompts."""
    head, rows = component.of_head, []
    ends = prepare(c.bridge, prompts, head.layer, keep=(Z,))
    span = write_directions(c.weights)[0][head.layer, head.head].nan_to_num().to(ends.final)
    random = span.T @ torch.randn(len(span), generator=torch.Generator().manual_seed(c.seed)).to(span)
    own, is_mean = along(ends, head, span[component.component]).cpu(), coefficients is None
    shown: Sequence[int] = range(len(prompts))
    if coefficients is None:
        first = torch.tensor([order == IO_FIRST for order in prompts.info["order"]])
        low, high = own[first].mean().item(), own[~first].mean().item()
        at = torch.tensor([low + (setting + 1) / 2 * (high - low) for setting in SETTINGS])
        coefficients = dict(zip(SETTINGS, at.tolist()))
        shown = [i for some in (first, ~first) for i in some.nonzero().flatten().tolist()[: N_SHOWN // 2]]
    low, high = coefficients[-1.0], coefficients[1.0]
    plain, tokens = (2 * (own - low) / (high - low) - 1).tolist(), names(prompts)[1]
    shift = (torch.tensor([*coefficients.values()]) - own[:, None]).to(span)
    for direction, v in ((COMPONENT, span[component.component]), (RANDOM, random / random.norm())):
        about: dict[str, Any] = {"model": c.model, "component": str(component), "direction": direction}
        measured = moved(ends, prompts, head, c.roles.heads(NAME_MOVER), v, shift)
        places = [(s, setting, w) for s, setting in enumerate(coefficients) for w in (0, 1)]
        rows += [
            SliderRow(
                **about, prompt=index, text=prompts.texts[i], order=prompts.info["order"][i], setting=setting,
                coefficient=coefficients[setting], plain=plain[i], name=(FIRST, SECOND)[w],
                word=c.tokenizer.decode([int(tokens[i, w])]), n=1, **dict(zip(MEASURES, measured[:, i, s, w].tolist())),
            )
            for index, i in enumerate(shown) for s, setting, w in places
        ]  # fmt: skip
        if is_mean:
            rows += _mean_rows(measured, coefficients, about | {"plain": sum(plain) / len(plain), "n": len(plain)})
    return rows


def _mean_rows(measured: Tensor, coefficients: dict[float, float], about: dict[str, Any]) -> Iterator[SliderRow]:
    """Means over prompts with their intervals. measured: ``[measures, n, settings, names]``."""
    found = [summary(part.flatten(1)) for part in measured]
    for i, (setting, name) in enumerate(product(coefficients, (FIRST, SECOND))):
        cells = dict[str, Any]()
        for what, of in zip(MEASURES, found):
            cells |= {what: of.mean[i].item(), f"{what}_low": of.low[i].item(), f"{what}_high": of.high[i].item()}
        coefficient = coefficients[setting]
        yield SliderRow(
            **about, text="", order="", setting=setting, coefficient=coefficient, name=name, word="", **cells
        )


def names(prompts: PromptSet) -> tuple[Int[Tensor, "n 2"], Int[Tensor, "n 2"]]:
    """Where the two names stand, the first first, and their tokens."""
    places = torch.stack([prompts.positions["IO"], prompts.positions["S1"]], 1).sort(1).values
    return places, prompts.tokens.gather(1, places)


def along(ends: Forward, head: Head, v: Float[Tensor, "d_model"]) -> Float[Tensor, "n"]:
    """How far along a direction a head of the first kept layer writes at ``end``, biases left out."""
    at = ends.layers[head.layer - ends.start].attention
    z = ends.plain(Z, head.layer, ends.at_end())[:, 0, head.head] - at.b_V[at.kv_index[head.head]]
    return z @ (at.W_O[head.head] @ v)


def moving(layer: int, shift: Float[Tensor, "n k d_model"]) -> Change:
    """A change that adds to what a layer's attention writes at ``end``."""

    def change(site: str, at: int, value: Tensor) -> Tensor:
        return value + shift[:, :, None] if site == ATTN_OUT and at == layer else value

    return change


@torch.no_grad()
def moved(
    ends: Forward, prompts: PromptSet, head: Head, movers: Sequence[Head], v: Float[Tensor, "d_model"],
    amounts: Float[Tensor, "n k"],
) -> Float[Tensor, "3 n k 2"]:  # fmt: skip
    """Attention, logit and probability of both names when a head writes ``amounts`` more along ``v`` at ``end``, all
    that stands above it taking part."""
    places, tokens = (part.to(amounts.device) for part in names(prompts))
    found, k = [], amounts.shape[1]
    for rows in batches.blocks(len(amounts), max(1, 256 // k)):
        seen: dict[Head, Tensor] = {}
        change = chained(moving(head.layer, amounts[rows, :, None] * v), reading(movers, seen))
        x = ends.resid[rows, None, None].expand(-1, k, -1, -1)
        final = ends.run(x, ends.at_end(), change=change, rows=rows)[:, :, 0]
        logits = ends.logits(final)
        pattern = torch.stack([part[:, :, 0] for part in seen.values()]).mean(0)
        attention, own = (
            values.gather(2, at[rows, None].expand(-1, k, -1)) for values, at in ((pattern, places), (logits, tokens))
        )
        found.append(torch.stack([attention, own, (own - logits.logsumexp(-1, keepdim=True)).exp()]))
    return torch.cat(found, 1).cpu()
