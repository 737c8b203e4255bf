"""One coefficient moved by hand: what the movers look at, and what the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    Study,
    fresh_prompts,
    study_of,
)
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.engine import ATTN_OUT, Change, Forward, Z, chained, prepare, reading
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.ioi import IO_FIRST, S_FIRST, IOIPrompt, build_ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.roles import NAME_MOVER
from talking_heads_utils.stats import summary

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

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


def run(c: Context) -> list[SliderRow]:
    """The first predicted component of the strongest S-inhibition head. Raises :class:`NotApplicable` for a model
    without such heads."""
    study = c.kept(study_of)
    prompts = fresh_prompts(c.tokenizer, (c.n(N_CHOICE), c.n(N_SCORED), c.n(N_MEAN)), c.seed)[2]
    return slider_rows(c.bridge, c.tokenizer, study, prompts, model=c.model)


def slider_rows(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, study: Study, drawn: Sequence[IOIPrompt], *,
    model: str = "", settings: Sequence[float] = SETTINGS,
) -> list[SliderRow]:  # fmt: skip
    """The rows of some prompts, of which :data:`N_SHOWN` are shown by themselves."""
    head = study.heads[0]
    component = Component(head.layer, head.head, int(study.orders[PREDICTED][head][0]))
    span = study.scored.directions(head)
    random = span.T @ torch.randn(len(span), generator=torch.Generator().manual_seed(study.seed)).to(span)
    prompts = build_ioi(tokenizer, prompts=drawn)
    ends = prepare(bridge, prompts, head.layer, keep=(Z,))
    own = coefficients(ends, head, span[component.component]).cpu()
    first = torch.tensor([order == IO_FIRST for order in prompts.info["order"]])
    low, high = own[first].mean().item(), own[~first].mean().item()
    at = torch.tensor([low + (setting + 1) / 2 * (high - low) for setting in settings])
    scale = {"coefficients": at.tolist(), "plain": (2 * (own - low) / (high - low) - 1).tolist()}
    shown = [i for is_first in (True, False) for i in (first == is_first).nonzero().flatten().tolist()[: N_SHOWN // 2]]
    words = [[tokenizer.decode([int(t)]) for t in pair] for pair in names(prompts)[1]]
    rows = []
    for direction, v in ((COMPONENT, span[component.component]), (RANDOM, random / random.norm())):
        measured = moved(ends, prompts, head, study.movers, v, (at - own[:, None]).to(v))
        about: dict[str, Any] = {"model": model, "component": str(component), "direction": direction}
        rows += _rows_of_prompts(measured, prompts, words, shown, settings, scale, about)
        rows += _rows_of_mean(measured, settings, scale, about)
    return rows


def text_rows(c: Context, table: pd.DataFrame, text: str, answer: str, other: str) -> list[SliderRow]:
    """A prompt of one's own, which ends before the answer, under the settings of a table of these rows. answer, other:
    the two names. Raises :class:`TaskError` for a text without them."""
    component = Component.parse(table["component"].iloc[0])
    head, at = component.of_head, {"IO": [(answer, 0)], "S1": [(other, 0)]}
    order = {"order": [IO_FIRST if text.find(answer) < text.find(other) else S_FIRST]}
    prompts = from_texts([text], [answer], [other], c.tokenizer, positions=at, info=order)
    ends = prepare(c.bridge, prompts, head.layer, keep=(Z,))
    span = write_directions(c.weights)[0][head.layer, head.head].nan_to_num().to(ends.final)
    random = span.T @ torch.randn(len(span), generator=torch.Generator().manual_seed(c.seed)).to(span)
    own = coefficients(ends, head, span[component.component]).cpu()
    by_setting = table.groupby("setting")["coefficient"].first()
    low, high, settings = by_setting[-1.0], by_setting[1.0], by_setting.index.tolist()
    scale = {"coefficients": by_setting.tolist(), "plain": (2 * (own - low) / (high - low) - 1).tolist()}
    words, rows = [[c.tokenizer.decode([int(t)]) for t in names(prompts)[1][0]]], []
    shift = (torch.tensor(by_setting.tolist()) - own[:, None]).to(span)
    for direction, v in ((COMPONENT, span[component.component]), (RANDOM, random / random.norm())):
        measured = moved(ends, prompts, head, c.roles.heads(NAME_MOVER), v, shift)
        about = {"model": c.model, "component": str(component), "direction": direction}
        rows += _rows_of_prompts(measured, prompts, words, [0], settings, scale, about)
    return rows


def names(prompts: PromptSet) -> tuple[Int[Tensor, "n 2"], Int[Tensor, "n 2"]]:
    """Where the two names stand, the first first, and their tokens."""
    places = torch.stack([prompts.positions["IO"], prompts.positions["S1"]], 1).sort(1).values
    return places, prompts.tokens.gather(1, places)


def coefficients(ends: Forward, head: Head, v: Float[Tensor, "d_model"]) -> Float[Tensor, "n"]:
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
    amounts: Float[Tensor, "n k"], block: int = 256,
) -> Float[Tensor, "3 n k 2"]:  # fmt: skip
    """Attention, logit and probability of both names when a head writes ``amounts`` more along ``v`` at ``end``, all
    that stands above it taking part."""
    places, tokens = (part.to(amounts.device) for part in names(prompts))
    found, k = [], amounts.shape[1]
    for rows in batches.blocks(len(amounts), max(1, block // k)):
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


def _rows_of_prompts(
    measured: Float[Tensor, "3 n k 2"], prompts: PromptSet, words: Sequence[Sequence[str]], shown: Sequence[int],
    settings: Sequence[float], scale: dict[str, list[float]], about: dict[str, Any],
) -> list[SliderRow]:  # fmt: skip
    none: dict[str, Any] = {
        f"{name}_{end}": None for name in ("attention", "logit", "probability") for end in ("low", "high")
    }
    return [
        SliderRow(
            **about, prompt=index, text=prompts.texts[i], order=prompts.info["order"][i], setting=setting,
            coefficient=scale["coefficients"][s], plain=scale["plain"][i], name=name, word=words[i][w],
            attention=measured[0, i, s, w].item(), logit=measured[1, i, s, w].item(),
            probability=measured[2, i, s, w].item(), n=1, **none,
        )
        for index, i in enumerate(shown) for s, setting in enumerate(settings) for w, name in enumerate((FIRST, SECOND))
    ]  # fmt: skip


def _rows_of_mean(
    measured: Float[Tensor, "3 n k 2"], settings: Sequence[float], scale: dict[str, list[float]], about: dict[str, Any]
) -> list[SliderRow]:
    n = measured.shape[1]
    found = [summary(part.flatten(1)) for part in measured]
    rows, plain = [], sum(scale["plain"]) / n
    for s, setting in enumerate(settings):
        for w, name in enumerate((FIRST, SECOND)):
            i, cells = 2 * s + w, dict[str, Any]()
            for what, of in zip(("attention", "logit", "probability"), found):
                cells |= {what: of.mean[i].item(), f"{what}_low": of.low[i].item(), f"{what}_high": of.high[i].item()}
            rows.append(SliderRow(
                **about, prompt=None, text="", order="", setting=setting, coefficient=scale["coefficients"][s],
                plain=plain, name=name, word="", n=n, **cells,
            ))  # fmt: skip
    return rows
