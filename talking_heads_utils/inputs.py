"""What ablation, patching, steering and asking check of what they are given, and whose components their labels mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from talking_heads_utils.editing import weights_to_edit
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.labels import Component, Head, Mlp
from talking_heads_utils.metrics import Metric, named
from talking_heads_utils.models import as_bridge
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.words import tokenizer_hash
from talking_heads_utils.weights.heads import Processing, RawLayer, assemble

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from talking_heads_utils.weights.heads import HeadWeights

LEARNED = "standard"  # TransformerLens' word for learned positions, of which there are n_ctx and no more


@torch.no_grad()
def labelled_weights(bridge: TransformerBridge) -> HeadWeights:
    """The weights whose components labels mean: folded, and within :func:`~talking_heads_utils.editing.edit` those from
    before any edit, so that a label means the same direction inside the block as outside."""
    weights = weights_to_edit(bridge)
    wanted = Processing.default(weights.norm)
    if weights.processing == wanted:
        return weights

    def layer(n: int) -> RawLayer:
        parts = (getattr(bridge.blocks[n].ln1, name, None) for name in ("weight", "bias"))  # which no edit changes
        scale, bias = (None if part is None else part.to(weights.W_O) for part in parts)
        W_Q, W_K, W_V, W_O, b_O = (w[n] for w in (weights.W_Q, weights.W_K, weights.W_V, weights.W_O, weights.b_O))
        return RawLayer(W_Q, W_K, W_V, W_O, b_O=b_O, ln_scale=scale, ln_bias=bias)

    layers = map(layer, range(weights.n_layers))
    return assemble(
        layers, weights.n_layers, norm=weights.norm, source=weights.source, processing=wanted, rotary=weights.rotary
    )


def taken(model: Any, tokenizer: Any, metric: Any, *prompts: PromptSet | None) -> tuple[TransformerBridge, Metric]:
    """The model as a bridge and the metric, of prompts that fit them. Raises as :func:`metric_of`,
    :func:`check_prompts` and :func:`~talking_heads_utils.models.as_bridge` do."""
    bridge = as_bridge(model, tokenizer)
    found = metric_of(bridge, metric)
    check_prompts(bridge, *prompts)
    return bridge, found


def metric_of(bridge: TransformerBridge, metric: Any) -> Metric:
    """A metric that can be had of this model. Raises :class:`OptionError` for what is none, :class:`LabelError` for one
    of a head that is not there."""
    if not isinstance(metric, str | Metric) and not callable(metric):
        raise OptionError(f"A metric is one name, a Metric or a function, not of the type {type(metric).__name__}.")
    found = named(metric)
    for head in found.heads:
        check_part(bridge, head)
    return found


def check_part(bridge: TransformerBridge, part: Head | Component | Mlp) -> None:
    """Raises :class:`LabelError` for a layer or head that is not there."""
    cfg = bridge.cfg
    if part.layer >= cfg.n_layers or getattr(part, "head", 0) >= cfg.n_heads:
        raise LabelError(
            f"{part} is not in {cfg.model_name}: layers are 0..{cfg.n_layers - 1} with heads 0..{cfg.n_heads - 1}."
        )


def check_prompts(bridge: TransformerBridge, *sets: PromptSet | None) -> None:
    """Raises :class:`TaskError` for what is no prompt set, one of another tokenizer or one that is too long."""
    for prompts in sets:
        if prompts is None:
            continue
        if not isinstance(prompts, PromptSet):
            raise TaskError(
                f"Prompts are a PromptSet, as from_texts makes of texts and answers, not a {type(prompts).__name__}."
            )
        if (wanted := prompts.recipe.tokenizer_hash) and bridge.tokenizer is not None:
            if tokenizer_hash(bridge.tokenizer) != wanted:
                raise TaskError(
                    f"These prompts are of another tokenizer than {bridge.cfg.model_name}'s: build them with the "
                    "model's own, model.tokenizer."
                )
        check_length(bridge, prompts.tokens.shape[1])


def check_length(bridge: TransformerBridge, n_pos: int) -> None:
    """Raises :class:`TaskError` for more tokens than a model with learned positions has positions for."""
    cfg = bridge.cfg
    if cfg.positional_embedding_type == LEARNED and n_pos > cfg.n_ctx:
        raise TaskError(
            f"These prompts have up to {n_pos} tokens, padding included; {cfg.model_name} has positions for "
            f"{cfg.n_ctx}. Make them shorter."
        )


def check_position(name: Any, what: str) -> None:
    """Raises :class:`OptionError` for a position that is no name, such as a list of them."""
    if not isinstance(name, str):
        raise OptionError(f"{what} is 'all' or one named position, such as 'end', not {name!r}.")


def listed(values: Any, what: str) -> list:
    """A list, tuple or range as a list. Raises :class:`OptionError` for none and for a single value."""
    if not isinstance(values, Iterable) or not (found := list(values)):
        raise OptionError(f"{what} is a list of one at least, not {values!r}.")
    return found
