"""What the experiments on movers and S-inhibition heads share: prompts that chose no role, recorded with their twins,
and the orders in which components are predicted to matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.effects import component_effects
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import prediction
from talking_heads_utils.experiments.inhibition.shifts import (
    Answers,
    Twins,
    answers,
)
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.engine import Forward, prepare
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.ioi import IOIPrompt, build_ioi, draw_ioi, swap_order
from talking_heads_utils.roles import NAME_MOVER, S_INHIBITION
from talking_heads_utils.scores.composition import reading_maps, score_directions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

PREDICTED = "predicted"  # the first k by composition scores
PREDICTED_BY_USE = "weights_times_activation"  # by scores times the mean size of the exchanged coefficient
LARGEST_SINGULAR_VALUE = "largest_singular_value"
LARGEST_VARIANCE = "largest_variance"
BEST_MEASURED = "best_measured"  # by their own measured effect on separate prompts: an upper bound
PREDICTORS = (PREDICTED, PREDICTED_BY_USE, LARGEST_SINGULAR_VALUE, LARGEST_VARIANCE)
N_ROLES = 400  # prompts that roles were found on
N_CHOICE, N_SCORED = 200, 500


@dataclass(frozen=True)
class Study:
    """movers, heads: S-inhibition heads below a mover at least, the strongest first.

    scored: prompts and twins that chose nothing. ends: the same prompts, from the lowest mover's layer on.
    orders: predictor -> head -> its components, the first first; :data:`BEST_MEASURED` and what takes activations were
        made on other prompts. energies: mean square of what is exchanged of each component, on the scored prompts.
    """

    movers: tuple[Head, ...]
    heads: tuple[Head, ...]
    scored: Twins
    ends: Forward
    orders: dict[str, dict[Head, Int[Tensor, "n_components"]]]
    energies: Float[Tensor, "layers n_heads d_head"]
    seed: int = 0
    model: str = ""

    @property
    def d_head(self) -> int:
        return int(self.scored.own.weights.d_head)

    @cached_property
    def plain(self) -> Answers:
        """The answers with nothing exchanged."""
        return answers(self.ends, self.scored.own.prompts, self.ends.final[:, None])

    def first(self, predictor: str, heads: Sequence[Head], k: int) -> tuple[Component, ...]:
        """The first ``k`` components of each head, by one order."""
        return tuple(Component(h.layer, h.head, int(i)) for h in heads for i in self.orders[predictor][h][:k])

    def nearest(
        self, c: Component, n: int, without: Sequence[Component], *, same_head: bool = False
    ) -> list[Component]:
        """The ``n`` components of the same layer, or head, whose energy is the nearest, some left out."""
        energy = self.energies[c.layer].clamp(min=1e-12).log()
        apart = (energy - energy[c.head, c.component]).abs()
        if same_head:
            apart[torch.arange(len(apart)) != c.head] = torch.inf
        for other in without:
            if other.layer == c.layer:
                apart[other.head, other.component] = torch.inf
        order = apart.flatten().argsort(stable=True)[: min(n, int(apart.isfinite().sum()))]
        return [Component(c.layer, *divmod(int(i), self.d_head)) for i in order]


def movers_and_heads(c: Context) -> tuple[tuple[Head, ...], tuple[Head, ...]]:
    """Name movers, and the S-inhibition heads below one of them. Raises :class:`NotApplicable` where there are none."""
    movers = tuple(c.roles.heads(NAME_MOVER))
    heads = tuple(h for h in c.roles.heads(S_INHIBITION) if any(h.layer < mover.layer for mover in movers))
    if not heads:
        raise NotApplicable(f"{c.model} has no S-inhibition head below a name mover, so nothing can be exchanged.")
    return movers, heads


def study_of(c: Context) -> Study:
    """The study of a context's model. Raises :class:`NotApplicable` as :func:`movers_and_heads` does."""
    movers, heads = movers_and_heads(c)
    choice, scored = fresh_prompts(c.tokenizer, (c.n(N_CHOICE), c.n(N_SCORED)), c.seed)
    return make_study(
        c.bridge, c.tokenizer, movers, heads, choice, scored, seed=c.seed, model=c.model, predicted=predicted(c)
    )


def predicted(c: Context) -> dict[Head, Float[Tensor, "d_head"]]:
    """Each S-inhibition head's scores by component, as they were predicted."""
    found = c.finished("prediction")
    table = found if found is not None else frame(prediction.run(c))
    scores = {}
    for head, rows in table.groupby("head", sort=False):
        of_head = torch.full((c.weights.d_head,), torch.nan, dtype=torch.float64)  # what writes nothing has no score
        of_head[torch.tensor(rows["component"].tolist())] = torch.tensor(rows["score"].tolist(), dtype=torch.float64)
        scores[Head.parse(str(head))] = of_head
    return scores


def make_study(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, movers: Sequence[Head], heads: Sequence[Head],
    choice: Sequence[IOIPrompt], scored: Sequence[IOIPrompt], *, seed: int = 0, model: str = "",
    predicted: dict[Head, Float[Tensor, "d_head"]] | None = None,
) -> Study:  # fmt: skip
    """The same for given heads and prompts. predicted: scores of the heads' components; by default composition scores
    at distance 0, mean over movers."""
    twins = twins_of(bridge, tokenizer, movers, scored)
    start = min(mover.layer for mover in movers)
    ends = prepare(bridge, twins.own.prompts, start)
    orders = orders_of(twins_of(bridge, tokenizer, movers, choice), heads, predicted)
    layers = range(max(mover.layer for mover in movers))
    change = twins.twin.activations(layers) - twins.own.activations(layers)
    return Study(tuple(movers), tuple(heads), twins, ends, orders, change.square().mean(0).cpu(), seed, model)


def fresh_prompts(tokenizer: PreTrainedTokenizerBase, sizes: Sequence[int], seed: int) -> list[list[IOIPrompt]]:
    """Prompts about other people, places and things than those that roles were found on, in lists of these sizes, none
    about the same in two lists."""
    taken, found = {_about(p) for p in draw_ioi(tokenizer, N_ROLES, seed)}, []
    for prompt in draw_ioi(tokenizer, 2 * (sum(sizes) + N_ROLES), seed + 1):
        if _about(prompt) not in taken:
            taken.add(_about(prompt))
            found.append(prompt)
    return [found[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]


def _about(prompt: IOIPrompt) -> tuple[str, ...]:
    return prompt.template, *sorted((prompt.io, prompt.s)), prompt.place, prompt.thing


def twins_of(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, movers: Sequence[Head], drawn: Sequence[IOIPrompt]
) -> Twins:
    """Prompts and the same with their names in the other order, recorded."""
    layers = sorted({mover.layer for mover in movers})
    own, twin = (
        record(bridge, build_ioi(tokenizer, prompts=some), layers)
        for some in (drawn, [swap_order(prompt) for prompt in drawn])
    )
    return Twins(own, twin, tuple(movers))


def orders_of(
    twins: Twins, heads: Sequence[Head], predicted: dict[Head, Float[Tensor, "d_head"]] | None = None
) -> dict[str, dict[Head, Int[Tensor, "n_components"]]]:
    """Each head's components in the order of every predictor, those that write nothing left out."""
    layers = range(max(head.layer for head in heads) + 1)
    own, twin = (r.activations(layers) for r in (twins.own, twins.twin))
    effects = component_effects(twins.own, twins.movers, donor=twins.twin, inhibition=False).odds.nanmean(1).mean(0)
    found: dict[str, dict[Head, Tensor]] = {name: {} for name in (*PREDICTORS, BEST_MEASURED)}
    for head in heads:
        at = (head.layer, head.head)
        score = composition(twins, head) if predicted is None else predicted[head].cpu()
        size = (twin - own)[:, *at].abs().mean(0).cpu()
        measured = effects[at].cpu()
        values = {
            PREDICTED: score,
            PREDICTED_BY_USE: score * size,
            LARGEST_SINGULAR_VALUE: twins.own.singular_values[at].cpu(),
            LARGEST_VARIANCE: torch.cat([own, twin])[:, *at].var(0).cpu(),
            BEST_MEASURED: measured * measured.sum().sign(),
        }
        writes = (~twins.own.directions[at].isnan().any(-1)).cpu()
        for name, value in values.items():
            order = value.nan_to_num(-torch.inf).masked_fill(~writes, -torch.inf).argsort(descending=True, stable=True)
            found[name][head] = order[: int(writes.sum())]
    return found


def composition(twins: Twins, head: Head) -> Float[Tensor, "d_head"]:
    """Composition scores of a head's components into the movers' queries at distance 0, mean over the movers above."""
    weights, directions = twins.own.weights, twins.directions(head)
    above = [mover for mover in twins.movers if mover.layer > head.layer]
    maps = torch.stack([reading_maps(weights, mover.layer, "Q")[mover.head] for mover in above])
    return score_directions(directions, maps.to(directions)).mean(1).cpu()
