"""How far heads write along some of their components, wherever the model runs over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import prediction
from talking_heads_utils.forward.layers import attention_layer, wide
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def predicted_components(c: Context) -> list[Component]:
    """Of every S-inhibition head the component that weights predict. Raises :class:`NotApplicable` for a model without
    such heads."""
    return [Component.parse(f"{r.head}.{r.component}") for r in prediction.run(c) if r.rank == 1]


@dataclass(frozen=True)
class Coefficients:
    """What reads the coefficients of k components off a run's ``z``.

    rows: head -> which of the k are its. read: takes a head's z to the coefficient. bias: what the value bias adds.
    """

    rows: Mapping[Head, list[int]]
    read: Float[Tensor, "k d_head"]
    bias: Float[Tensor, "k"]

    @classmethod
    def of(cls, bridge: TransformerBridge, weights: HeadWeights, components: Sequence[Component]) -> Coefficients:
        """Along the unit write directions of some components; 0 for one that writes nothing."""
        directions, rows = write_directions(weights)[0].nan_to_num(), dict[Head, list[int]]()
        for i, c in enumerate(components):
            rows.setdefault(c.of_head, []).append(i)
        at = {layer: attention_layer(bridge, layer) for layer in {head.layer for head in rows}}
        read, bias = torch.zeros(len(components), weights.d_head), torch.zeros(len(components))
        for head, own in rows.items():
            layer = at[head.layer]
            v = directions[head.layer, head.head, [components[i].component for i in own]].to(layer.W_O)
            found = v @ layer.W_O[head.head].mT
            read[own], bias[own] = found.cpu(), (found @ layer.b_V[layer.kv_index[head.head]]).cpu()
        return cls(rows, read, bias)

    @property
    def hooks(self) -> set[str]:
        """The hooks that :meth:`__call__` wants the values of."""
        return {_hook(head) for head in self.rows}

    @property
    def stop_at(self) -> int:
        """The first layer that need not be run."""
        return max(head.layer for head in self.rows) + 1

    def __call__(self, cache: Mapping[str, Float[Tensor, "n n_pos n_heads d_head"]]) -> Float[Tensor, "n n_pos k"]:
        """At every position, value biases left out."""
        n, n_pos = cache[next(iter(self.hooks))].shape[:2]
        values = torch.zeros(n, n_pos, len(self.read))
        for head, own in self.rows.items():
            values[:, :, own] = wide(cache[_hook(head)][:, :, head.head]).cpu() @ self.read[own].mT - self.bias[own]
        return values


def _hook(head: Head) -> str:
    return f"blocks.{head.layer}.attn.hook_z"


@torch.no_grad()
def coefficients_at_end(
    bridge: TransformerBridge, weights: HeadWeights, components: Sequence[Component], prompts: PromptSet,
    *, batch: int = 64,
) -> Float[Tensor, "n k"]:  # fmt: skip
    """Coefficients of some components at ``end`` of every prompt."""
    read, parts = Coefficients.of(bridge, weights, components), []
    for rows in batches.blocks(len(prompts), batch):
        part = prompts.select(rows)
        _, cache = bridge.run_with_cache(
            part.tokens.to(bridge.cfg.device), names_filter=read.hooks.__contains__, stop_at_layer=read.stop_at
        )
        parts.append(read(cache)[torch.arange(len(part)), part.positions["end"]])
    return torch.cat(parts)
