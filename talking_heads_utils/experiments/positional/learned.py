"""The best that can be learned beside what weights chose: subspaces fitted so that the interchange moves the answer.

Distributed alignment search (Geiger et al. 2024) with TransformerLens' trainable bases, through the layers from the
lowest mover's on, for the last token alone. It finds effects in anything (Arora et al. 2024), so the same is fitted to
items without meaning, and in a model without training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.ends import Ends, ends, make_ends
from talking_heads_utils.experiments.positional.pairs import Donor, Pairs, make_pairs
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.models import as_bridge

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RANKS = (1, 2, 3, 4, 6, 8, 10)  # dimensions of the subspaces
N_LISTS, N_UNTRAINED = 400, 200  # to learn on; in the untrained model, to learn on and to score
STEPS, BATCH, RATE = 100, 32, 1e-2  # of Adam; recipients a step


@dataclass(frozen=True)
class Learned:
    """Orthonormal bases of several dimensions, and the pairs that they are scored on, j being what is asked for."""

    subspace: Subspace
    bases: Sequence[Float[Tensor, "k d_model"]]
    pairs: Pairs


def learned(c: Context, pairs: Pairs) -> Iterator[Learned]:
    """Fitted on selection lists: to the recipient's item at the donor's index; to an item that is drawn once for each
    pair of indices; and to the former in a model whose weights are drawn anew."""
    n_items = pairs.ends.candidates.shape[1]
    lists, steps = ends(c, Lists(Part.SELECTION, n_items, c.n(N_LISTS, 10 * n_items))), c.n(STEPS, 40)
    true, drawn = (table.to(pairs.j) for table in (true_targets(n_items), drawn_targets(n_items, c.seed)))
    yield Learned(Subspace.LEARNED, fit(lists, true, steps=steps, seed=c.seed), pairs)
    asked = replace(pairs, j=drawn[pairs.i, pairs.j])
    yield Learned(Subspace.LEARNED_ARBITRARY, fit(lists, drawn, steps=steps, seed=c.seed), asked)
    fitted, scored = (_untrained_ends(c, part, n_items, pairs.ends) for part in (Part.SELECTION, Part.HELD_OUT))
    bases = fit(fitted, true, steps=steps, seed=c.seed)
    yield Learned(Subspace.LEARNED_UNTRAINED, bases, make_pairs(scored, c.seed))


def true_targets(n_items: int) -> Int[Tensor, "n_items n_items"]:
    """``[i, j]``: the index to answer with where the recipient's is i and the donor's j."""
    return torch.arange(n_items).expand(n_items, -1)


def drawn_targets(n_items: int, seed: int) -> Int[Tensor, "n_items n_items"]:
    """The same without meaning: for each i and j one of the other indices, drawn once."""
    from transformer_lens.tools.analysis.interchange import arbitrary_targets

    targets = true_targets(n_items).clone()
    keys = [(i, j) for i in range(n_items) for j in range(n_items) if i != j]
    for (i, j), which in zip(keys, arbitrary_targets(keys, n_items - 2, seed).tolist()):
        targets[i, j] = [other for other in range(n_items) if other not in (i, j)][which]
    return targets


def fit(
    lists: Ends,
    targets: Int[Tensor, "n_items n_items"],
    ranks: Sequence[int] = RANKS,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> list[Float[Tensor, "k d_model"]]:
    """Orthonormal bases with which the interchange makes recipients answer with the item at ``targets[i, j]``. Each is
    fitted by itself; they share batches, and donors are drawn anew for every pass over the lists."""
    from transformer_lens.tools.analysis.interchange import LearnedSubspace, SubspaceInterchange

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        subspaces = [LearnedSubspace(lists.stream.shape[1], k).to(lists.stream) for k in ranks]
    weights = [weight for subspace in subspaces for weight in subspace.parameters()]
    optimizer = torch.optim.Adam(weights, lr=RATE)
    for rows, source, j in _batches(lists, steps, seed):
        with torch.enable_grad():
            base = lists.stream[rows]
            moved = torch.stack([SubspaceInterchange(subspace)(base, source) for subspace in subspaces], 1)
            logits, _ = lists.traced(moved, rows, attention=False)
            wanted = targets[lists.index[rows], j][:, None].expand(-1, len(ranks))
            loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / len(rows)
            gradients = torch.autograd.grad(loss, weights)  # of nothing else: the model stays as it is
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()
    return [subspace.basis.detach().T.to(lists.stream) for subspace in subspaces]


def _batches(
    lists: Ends, steps: int, seed: int
) -> Iterator[tuple[Int[Tensor, "b"], Float[Tensor, "b d_model"], Int[Tensor, "b"]]]:
    """Recipients, their donors' streams, and the donors' indices."""
    generator, done, passes = torch.Generator().manual_seed(seed), 0, 0
    while done < steps:
        pairs = make_pairs(lists, seed + passes)
        order = torch.randperm(len(lists), generator=generator).to(lists.index.device)
        for rows in order.split(BATCH)[: steps - done]:
            yield rows, pairs.donors[Donor.OTHER_ITEMS][rows], pairs.j[rows]
            done += 1
        passes += 1


def _untrained_ends(c: Context, part: Part, n_items: int, like: Ends) -> Ends:
    """Lists run through the model without training."""
    prompts = c.kept(Lists(part, n_items, c.n(N_UNTRAINED, 10 * n_items)))
    return make_ends(c.kept(untrained), prompts, like.movers)


def untrained(c: Context) -> TransformerBridge:
    """A model built as the context's is, its weights drawn as before training."""
    return untrained_copy(c.bridge, c.seed)


def untrained_copy(bridge: TransformerBridge, seed: int = 0) -> TransformerBridge:
    """The same architecture with weights by its own rule of initialisation, in evaluation mode."""
    from transformer_lens.tools.analysis.interchange import reinitialized
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if not isinstance(bridge.original_model, PreTrainedModel):
        return reinitialized(bridge, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(bridge.original_model.config, attn_implementation="eager").eval()
    return as_bridge(model.to(bridge.cfg.device, bridge.W_U.dtype), copy.deepcopy(bridge.tokenizer))
