"""Which components of the S-inhibition heads carry the signal, predicted from weights alone; and how far heads write
along some of their components, wherever the model runs over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import NotApplicable, UnsupportedModelError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.layers import attention_layer, wide
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION
from talking_heads_utils.scores.distance import scores_at_distances
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class PredictionRow(Row):
    """One component of one S-inhibition head, as the queries of all movers read it."""

    head: str = column("", "the S-inhibition head")
    component: int = column("", "counted from the largest singular value")
    score: float = column("score", "mean over movers' queries and, with rotary positions, over the task's distances "
                          "from the last token to IO and S1")  # fmt: skip
    score_at_0: float = column("score", "the same at distance 0, which is the same without rotary positions")
    singular_value: float = column("", "of the component")
    rank: int = column("", "of score among the head's components, 1 for the strongest: the prediction")
    rank_at_0: int = column("", "of score_at_0")
    n_movers: int = column("heads", "movers")
    n_distances: int = column("tokens", "different distances; 0 without rotary positions")


def task_distances(prompts: PromptSet) -> Int[Tensor, "n"]:
    """Tokens from the last token back to IO and to S1, both of every prompt."""
    return (prompts.positions["end"][:, None] - item_positions(prompts)[0]).flatten()


def prediction_rows(
    weights: HeadWeights, writers: Sequence[Head], movers: Sequence[Head], distances: Int[Tensor, "n"] | None = None
) -> list[PredictionRow]:
    """Every component of every writer that writes at all, read by the movers' queries. distances: as often as the
    task has them; None where positions play no part in the product of query and key.

    Raises :class:`UnsupportedModelError` for a model whose distances change with a prompt's length, or that normalises
    queries and keys.
    """
    S = write_directions(weights)[1]
    at_0 = scores_at_distances(weights, writers, movers, "Q", torch.zeros(1, dtype=torch.long)).mean((0, 3))
    n_distances, score = 0, at_0
    if distances is not None:
        different, times = distances.unique(return_counts=True)
        each = scores_at_distances(weights, writers, movers, "Q", different).mean(3)
        n_distances, score = len(different), torch.einsum("d,dwc->wc", (times / times.sum()).to(each), each)
    rows = []
    for w, writer in enumerate(writers):
        rank, rank_at_0 = (
            rankdata(-values[w].nan_to_num(nan=-1.0).cpu().numpy(), method="ordinal") for values in (score, at_0)
        )
        rows += [
            PredictionRow(
                head=str(writer), component=i, score=score[w, i].item(), score_at_0=at_0[w, i].item(),
                singular_value=S[writer.layer, writer.head, i].item(), rank=int(rank[i]), rank_at_0=int(rank_at_0[i]),
                n_movers=len(movers), n_distances=n_distances,
            )
            for i in range(weights.d_head)
            if not score[w, i].isnan()
        ]  # fmt: skip
    return rows


def run(c: Context) -> list[PredictionRow]:
    """Distances are those of the prompts that roles are found on. Raises :class:`NotApplicable` for a model without a
    name mover after its S-inhibition heads."""
    writers = c.roles.heads(S_INHIBITION)
    movers = [mover for mover in c.roles.heads(NAME_MOVER) if writers and mover.layer > max(w.layer for w in writers)]
    if not movers:
        raise NotApplicable(f"In {c.model} no name mover comes after all S-inhibition heads.")
    try:
        distances = task_distances(c.ioi(c.n(400, 80))) if c.weights.rotary is not None else None
        return prediction_rows(c.weights, writers, movers, distances)
    except UnsupportedModelError as error:
        raise NotApplicable(str(error)) from error


def predicted_components(c: Context) -> list[Component]:
    """Of every S-inhibition head the component that weights predict. Raises :class:`NotApplicable` for a model without
    such heads."""
    return [Component.parse(f"{r.head}.{r.component}") for r in run(c) if r.rank == 1]


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

    @torch.no_grad()
    def runs(
        self, bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], block: int = 32, also: str = ""
    ) -> Iterator[tuple[slice, Mapping[str, Tensor]]]:
        """Blocks of the rows, and what :meth:`__call__` wants of them, as far up as it takes. also: a second hook of
        the same layers' attention."""
        names = {f"blocks.{head.layer}.attn.{hook}" for head in self.rows for hook in ("hook_z", also)}
        last = max(head.layer for head in self.rows)
        for rows in batches.blocks(len(tokens), block, "blocks of text"):
            some = tokens[rows].to(bridge.cfg.device)
            yield rows, bridge.run_with_cache(some, names_filter=names.__contains__, stop_at_layer=last + 1)[1]

    def __call__(self, cache: Mapping[str, Float[Tensor, "n n_pos n_heads d_head"]]) -> Float[Tensor, "n n_pos k"]:
        """At every position, value biases left out."""
        z = {head: wide(cache[f"blocks.{head.layer}.attn.hook_z"][:, :, head.head]).cpu() for head in self.rows}
        values = torch.zeros(*next(iter(z.values())).shape[:2], len(self.read))
        for head, own in self.rows.items():
            values[:, :, own] = z[head] @ self.read[own].mT - self.bias[own]
        return values


def coefficients_at_end(
    bridge: TransformerBridge, weights: HeadWeights, components: Sequence[Component], prompts: PromptSet
) -> Float[Tensor, "n k"]:
    """Coefficients of some components at ``end`` of every prompt."""
    read, end = Coefficients.of(bridge, weights, components), prompts.positions["end"]
    parts = [
        read(cache)[torch.arange(len(end[rows])), end[rows]] for rows, cache in read.runs(bridge, prompts.tokens, 64)
    ]
    return torch.cat(parts)
