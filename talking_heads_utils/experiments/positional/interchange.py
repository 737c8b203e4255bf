"""How many dimensions behaviour needs: a donor's coordinates are put into a recipient.

At ``end``, where the stream enters the lowest mover's layer, the recipient's coordinates in a subspace become the
donor's: ``h' = h + (donor - h) B B^T``. The candidates stay the recipient's own items throughout, so that nothing
follows from a donor's items. Source: interchange interventions of Geiger et al. (2021).

Beside what weights chose stand the best subspaces that can be learned: fitted so that the interchange moves the answer,
by distributed alignment search (Geiger et al. 2024) with TransformerLens' trainable bases, through the layers from the
lowest mover's on, for the last token alone. It finds effects in anything (Arora et al. 2024), so the same is fitted to
items without meaning, and in a model without training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.exchange import LEAST
from talking_heads_utils.experiments.inhibition.shifts import MOST
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.ends import Ends, ends, make_ends
from talking_heads_utils.experiments.positional.grid import answer
from talking_heads_utils.experiments.positional.pairs import Donor, Pairs, make_pairs, same_items
from talking_heads_utils.experiments.positional.subspace import Chosen, K, Subspace, basis, chosen, nearest_lengths
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.models import as_bridge
from talking_heads_utils.stats import middle, resamples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_PAIRS = 400  # of each list length
RANKS = (1, 2, 3, 4, 6, 8, 10)  # dimensions of learned subspaces
N_LEARN, N_UNTRAINED = 400, 200  # lists to learn on; in the untrained model, to learn on and to score
STEPS, BATCH, RATE = 100, 32, 1e-2  # of Adam; recipients a step
LENGTHS = (4, 6)  # that are asked about, or the nearest
LOGIT_DIFFERENCE, LOG_ODDS, MOVED = "logit_difference", "log_odds", "moved"  # what is measured
MEASURES = (LOGIT_DIFFERENCE, LOG_ODDS, MOVED)
LEARNED = (Subspace.LEARNED, Subspace.LEARNED_ARBITRARY, Subspace.LEARNED_UNTRAINED)


class Key(NamedTuple):
    """Whose coordinates are interchanged, in how many dimensions, and who gives them."""

    subspace: Subspace
    k: int
    donor: Donor


JUDGED, MATCHED = (Key(kind, K, Donor.OTHER_ITEMS) for kind in (Subspace.CHOSEN, Subspace.MATCHED))
TEN = dict.fromkeys(LEARNED, Subspace.LEARNED) | {Subspace.ANYWHERE: Subspace.ANYWHERE}  # whose ten others are held to


@dataclass(frozen=True)
class InterchangeRow(ModelRow):
    """What a donor's coordinates at end, entering the lowest mover's layer, do to the recipient's own item at the
    donor's index j, against its item at its own index i; of donors with the same index j is another one all the same,
    of a subspace learned for arbitrary labels it is the index that was drawn for i and j.
    Of drawn subspaces: mean over draws, and the draws' 2.5% and 97.5% points. Shares are of what donors with other
    items do, empty where that is nothing: where its interval holds zero."""

    n_items: int = column("items", "length of the lists")
    subspace: str = column("", "whose coordinates are interchanged")
    k: int = column("dimensions", "of it; 0 for whole heads and the whole stream")
    donor: str = column("", "other_items, same_index, same_items")
    measure: str = column(
        "",
        "logit_difference: item at j less item at i, logits; log_odds: of the movers' attention, j to i, "
        "nats; moved: share of lists answered with the item at j less the same without interchange",
    )
    effect: float = column("", "change of the measure, mean over pairs")
    low: float = column("", "95% interval over pairs, of drawn subspaces over draws, lower end")
    high: float = column("", "upper end")
    of_stream: float = column("share", "of what the whole stream does, in the trained model")
    of_stream_low: float = column("share", "95% interval, lower end")
    of_stream_high: float = column("share", "upper end")
    of_ten: float = column(
        "share",
        "of what ten chosen dimensions do, or as many as there are; of anywhere: its own ten; of learned ones "
        "and their controls: ten learned ones",
    )
    of_ten_low: float = column("share", "95% interval, lower end")
    of_ten_high: float = column("share", "upper end")
    matched: float | None = column("", "95% point of the matched triples' effects; of chosen at k = 3 alone")
    p: float | None = column("", "share of matched triples, this one included, with as large an effect")
    n_draws: int | None = column("subspaces", "drawn ones behind p, or behind the row")
    n: int = column("pairs", "recipient and donor")


Shift = Float[Tensor, "n m d_model"]  # of the recipients' streams
Change = dict[str, Float[Tensor, "n m"]]  # of each pair's measures; m draws of one subspace, else one column


def run(c: Context) -> list[InterchangeRow]:
    """Raises :class:`NotApplicable` as :func:`~subspace.chosen` and :func:`~subspace.lengths` do."""
    return [row for n_items in nearest_lengths(c, *LENGTHS) for row in rows_of(c, n_items)]


def rows_of(c: Context, n_items: int, *, with_learned: bool = True) -> list[InterchangeRow]:
    """Of lists of one length. with_learned: whether learned subspaces, which take longest, are among them."""
    pairs = held_out_pairs(c, n_items)
    found = changes(pairs, tried(pairs, c.kept(chosen)))
    for kind, bases, of in learned(c, pairs) if with_learned else ():
        difference = of.donors[Donor.OTHER_ITEMS] - of.ends.stream
        keys = [Key(kind, len(B), Donor.OTHER_ITEMS) for B in bases]
        found |= changes(of, [(keys, torch.stack([(difference @ B.T) @ B for B in bases], 1))])
    return [row for measure in MEASURES for row in _rows(found, measure, c.model, n_items)]


def held_out_pairs(c: Context, n_items: int) -> Pairs:
    """Recipients with donors of all three kinds."""
    lists = c.kept(ends, Lists(Part.HELD_OUT, n_items, c.n(N_PAIRS, 10 * n_items)))
    pairs = make_pairs(lists, c.seed)
    own = same_items(lists, pairs.j, c.bridge, c.tokenizer, c.seed)
    return replace(pairs, donors={**pairs.donors, Donor.SAME_ITEMS: own})


# --- what is interchanged ----------------------------------------------------------------------------------------


def tried(pairs: Pairs, own: Chosen) -> Iterator[tuple[list[Key], Shift]]:
    """Every subspace that weights and IOI prompts chose, what it is compared with, and all there is: shifts that run
    together, one of each key, or all draws of one."""
    for donor, there in pairs.donors.items():
        difference = there - pairs.ends.stream
        keys, shift = nested(Subspace.CHOSEN, own.directions, difference, donor)
        if donor == Donor.OTHER_ITEMS:
            yield keys, shift
            yield nested(Subspace.ANYWHERE, own.anywhere_directions, difference, donor)
            yield [MATCHED], matched(own, difference)
            yield [Key(Subspace.WHOLE_HEADS, 0, donor)], (pairs.written - pairs.ends.written)[:, None]
        else:
            some = [i for i, key in enumerate(keys) if key.k in (K, len(keys))]
            yield [keys[i] for i in some], shift[:, some]
        yield [Key(Subspace.WHOLE_STREAM, 0, donor)], difference[:, None]


def nested(
    kind: Subspace, directions: Float[Tensor, "k d_model"], difference: Float[Tensor, "n d_model"], donor: Donor
) -> tuple[list[Key], Shift]:
    """Shifts in the spans of the first 1, 2, ... directions."""
    B = basis(directions)
    return [Key(kind, k + 1, donor) for k in range(len(B))], ((difference @ B.T)[..., None] * B).cumsum(1)


def matched(own: Chosen, difference: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_draws d_model"]:
    """Shifts in the matched triples, each as long as the chosen triple's in mean square, at most :data:`MOST` times
    longer than it is."""
    triple, others = basis(own.directions[:K]), basis(own.matched)
    shift = torch.einsum("nd,mkd,mke->nme", difference, others, others)
    wanted = (difference @ triple.T).square().sum(-1).mean()
    return shift * (wanted / shift.square().sum(-1).mean(0)).sqrt().clamp(max=MOST)[:, None]


# --- the best that can be learned --------------------------------------------------------------------------------


def learned(c: Context, pairs: Pairs) -> Iterator[tuple[Subspace, list[Float[Tensor, "k d_model"]], Pairs]]:
    """Orthonormal bases of several dimensions, and the pairs that they are scored on, j being what is asked for. Fitted
    on selection lists: to the recipient's item at the donor's index; to an item that is drawn once for each pair of
    indices; and to the former in a model whose weights are drawn anew."""
    n_items = pairs.ends.candidates.shape[1]
    lists, steps = c.kept(ends, Lists(Part.SELECTION, n_items, c.n(N_LEARN, 10 * n_items))), c.n(STEPS, 40)
    true, drawn = (table.to(pairs.j) for table in (true_targets(n_items), drawn_targets(n_items, c.seed)))
    yield Subspace.LEARNED, fit(lists, true, steps=steps, seed=c.seed), pairs
    asked = replace(pairs, j=drawn[pairs.i, pairs.j])
    yield Subspace.LEARNED_ARBITRARY, fit(lists, drawn, steps=steps, seed=c.seed), asked
    fitted, scored = (
        make_ends(c.kept(untrained), c.kept(Lists(part, n_items, c.n(N_UNTRAINED, 10 * n_items))), pairs.ends.movers)
        for part in (Part.SELECTION, Part.HELD_OUT)
    )
    yield Subspace.LEARNED_UNTRAINED, fit(fitted, true, steps=steps, seed=c.seed), make_pairs(scored, c.seed)


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
    lists: Ends, targets: Int[Tensor, "n_items n_items"], ranks: Sequence[int] = RANKS, *, steps: int, seed: int = 0
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


def untrained(c: Context) -> TransformerBridge:
    """The context's architecture with weights by its own rule of initialisation, in evaluation mode."""
    from transformer_lens.tools.analysis.interchange import reinitialized
    from transformers import AutoModelForCausalLM, PreTrainedModel

    bridge = c.bridge
    if not isinstance(bridge.original_model, PreTrainedModel):
        return reinitialized(bridge, c.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(c.seed)
        model = AutoModelForCausalLM.from_config(bridge.original_model.config, attn_implementation="eager").eval()
    return as_bridge(model.to(bridge.cfg.device, bridge.W_U.dtype), copy.deepcopy(bridge.tokenizer))


# --- what it does ------------------------------------------------------------------------------------------------


def changes(pairs: Pairs, tried: Iterable[tuple[list[Key], Shift]]) -> dict[Key, Change]:
    """What each shift changes."""
    before, found = outcome(pairs, torch.zeros_like(pairs.ends.stream)[:, None]), dict[Key, Change]()
    for keys, shift in tried:
        after = outcome(pairs, shift)
        change = {measure: (after[measure] - before[measure]).double().cpu() for measure in MEASURES}
        for at, key in enumerate(keys):
            columns = slice(None) if len(keys) == 1 else slice(at, at + 1)
            found[key] = {measure: values[:, columns] for measure, values in change.items()}
    return found


def outcome(pairs: Pairs, shift: Float[Tensor, "n m d_model"]) -> dict[str, Float[Tensor, "n m"]]:
    """Each measure with the streams shifted."""
    logits, attention = pairs.ends.both(pairs.ends.stream[:, None] + shift)
    moved = answer(logits) == pairs.j[:, None]
    toward = [_at(logits, pairs.j) - _at(logits, pairs.i), _at(attention, pairs.j) - _at(attention, pairs.i)]
    return {LOGIT_DIFFERENCE: toward[0], LOG_ODDS: toward[1].mean(2), MOVED: moved.float()}


def _at(values: Float[Tensor, "n *k n_items"], index: Tensor) -> Float[Tensor, "n *k"]:
    """Each list's value at its own index."""
    return values[torch.arange(len(values), device=values.device), ..., index]


def _rows(found: Mapping[Key, Change], measure: str, model: str, n_items: int) -> Iterator[InterchangeRow]:
    """One measure of all that was tried, with shares of the whole stream's and of ten dimensions' effects."""
    weights = {n: resamples(n) for n in {len(change[measure]) for change in found.values()}}
    sums = {
        key: Sums(change[measure].mean(0), weights[len(change[measure])] @ change[measure])
        for key, change in found.items()
    }
    largest = {kind: max(key.k for key in found if key.subspace == kind) for kind, _, _ in found}
    stream, draws = sums[Key(Subspace.WHOLE_STREAM, 0, Donor.OTHER_ITEMS)], sums[MATCHED].mean
    for key, own in sums.items():
        ten = TEN.get(key.subspace, Subspace.CHOSEN)
        of_ten = own.share(sums[Key(ten, largest[ten], Donor.OTHER_ITEMS)])
        judged = key == JUDGED
        yield InterchangeRow(
            model, n_items, *key, measure, own.mean.mean().item(), *own.interval, *own.share(stream), *of_ten,
            draws.quantile(0.95).item() if judged else None, rank_p(own.mean.item(), draws) if judged else None,
            len(draws) if key in (JUDGED, MATCHED) else None,
            len(found[key][measure]),
        )  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """Means over pairs of one subspace's effect, or of m drawn ones', and the same in bootstrap samples of the
    pairs."""

    mean: Float[Tensor, "m"]
    samples: Float[Tensor, "n_boot m"]

    @property
    def interval(self) -> tuple[float, float]:
        """Over pairs, of drawn ones over draws."""
        return middle(self.mean if len(self.mean) > 1 else self.samples[:, 0])

    @property
    def is_there(self) -> bool:
        """Whether it does something, so that a share of it means something."""
        low, high = middle(self.samples[:, 0])
        return self.mean[0].abs().item() > LEAST and (low > 0 or high < 0)

    def share(self, whole: Sums) -> tuple[float, float, float]:
        """Of what another one does, with its interval."""
        if not whole.is_there:
            return (torch.nan,) * 3
        of = Sums(self.mean / whole.mean, self.samples[:, :1] / whole.samples[:, :1])
        return of.mean.mean().item(), *of.interval
