"""Chapter 2's experiments on one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.positional.coordinates import (
    CARRIED,
    choose_writers,
    decode,
    discriminant_directions,
    points,
    separability,
    writes_of,
)
from talking_heads_utils.experiments.positional.gains import Gain, gains, zero_setting
from talking_heads_utils.experiments.positional.sweep_results import Finished, Result
from talking_heads_utils.forward.recording import Recording, record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import correct
from talking_heads_utils.models import load_with_tokenizer, shown_as
from talking_heads_utils.prompts.halves import halves, in_selection, random_folds, wording_folds
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.roles.lists import roles_on_lists
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, share
from talking_heads_utils.steer import ATTENTION, LOGITS, Steering, grid, prepare, random_directions, steer

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

COMPONENTS, RANDOM, BEST = "the three components", "random triples", "best triple of the same heads"
N_RANDOM_TRIPLES = 10
AT_RANDOM = "apart at random"
REACH = 2.0  # of a steering axis: so many times the largest coordinate that prompts have by themselves


@dataclass(frozen=True)
class Channel:
    """A model, its mover, and the three components that the mover's query reads most, by weights alone.

    directions: of those components, unit vectors, in the order of ``writers``. seed: of all prompts and random choices.
    """

    name: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    mover: Head
    writers: tuple[Component, ...]
    directions: Float[Tensor, "3 d_model"]
    seed: int
    _kept: dict[tuple[int, int], Recording] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shows(self) -> str:
        return shown_as(self.name)

    def lists(self, n_items: int, n_prompts: int) -> PromptSet:
        return build_laundry(self.tokenizer, n_items, n_prompts, self.seed)

    def record(self, prompts: PromptSet) -> Recording:
        return record(self.bridge, prompts, [self.mover.layer])

    def on_lists(self, n_items: int, n_prompts: int) -> Recording:
        """A recording on lists of one length, kept: several tables read the same prompts."""
        key = (n_items, n_prompts)
        if key not in self._kept:
            self._kept[key] = self.record(self.lists(n_items, n_prompts))
        return self._kept[key]

    @cached_property
    def heads(self) -> list[Head]:
        return list(dict.fromkeys(w.of_head for w in self.writers))


def channel(
    name: str, *, n_items: int = 5, seed: int = SEED, device: str = "cpu", dtype: torch.dtype = torch.float32,
    mover: Head | None = None,
) -> Channel:  # fmt: skip
    """Take a mover's writers from weights alone; without ``mover``, of the one found on half of the short lists."""
    bridge, tokenizer = load_with_tokenizer(name, device, dtype)
    prompts = build_laundry(tokenizer, n_items, 100, seed)
    mover = mover or roles_on_lists(bridge, prompts, seed=seed).movers[0]
    recording = record(bridge, halves(prompts)[0], [mover.layer])
    scores = compute_scores(recording.weights, "Q", seed=seed)
    writers = tuple(choose_writers(scores, mover, recording.directions))
    found = prepare(bridge, prompts.select([0]), writers).directions
    return Channel(name, bridge, tokenizer, mover, writers, found, seed)


def decoding_table(at: Channel, n_items: int, n_prompts: int = 400) -> pd.DataFrame:
    """How well place and identity are decoded on the held-out half, from which subspace: share right with its interval
    over prompts. Of random triples that is their mean: ``smallest`` and ``largest`` say how far single ones lie apart.
    Columns: model, n_items, subspace, carries, split, right, low, high, smallest, largest, chance, n."""
    import pandas as pd

    selection, held_out = halves(at.lists(n_items, n_prompts))
    recording = at.record(held_out)
    best = discriminant_directions(
        writes_of(at.record(selection), at.heads), torch.as_tensor(selection.info["index"])
    )  # fmt: skip
    random = random_directions(N_RANDOM_TRIPLES, 3, at.directions.shape[1], at.seed)
    subspaces = {COMPONENTS: [at.directions], BEST: [best], RANDOM: list(random)}
    splits = {"within wordings": random_folds(len(held_out), seed=at.seed), "across wordings": wording_folds(held_out)}
    rows = []
    for subspace, sets in subspaces.items():
        for carries in CARRIED:
            for split, folds in splits.items():
                right = torch.stack([
                    decode(points(recording, at.mover.layer, d), held_out, carries, folds) for d in sets
                ])  # fmt: skip
                found = share(right[0]) if len(sets) == 1 else bootstrap_mean(right.double().mean(0))
                row = dict(model=at.name, n_items=n_items, subspace=subspace, carries=carries, split=split)
                row |= dict(right=found.mean, low=found.low, high=found.high)
                smallest, largest = right.double().mean(1).aminmax()
                row |= dict(smallest=smallest.item(), largest=largest.item())
                rows.append(row | dict(chance=1 / n_items, n=found.n))
    return pd.DataFrame(rows)


def dimension_table(at: Channel, n_items: int, ks: Sequence[int], n_prompts: int = 400) -> pd.DataFrame:
    """How many components it takes: place and identity decoded on the held-out half from the first k that weights
    choose, and from k random directions. Columns: model, k, place, identity, place by chance directions, identity by
    chance directions, n. Raises :class:`OptionError` for no k, or one below 1."""
    import pandas as pd

    if not ks or min(ks) < 1:
        raise OptionError(f"Name the numbers of components to decode from, each 1 or more, not {list(ks)}.")
    held_out = halves(at.lists(n_items, n_prompts))[1]
    recording = at.record(held_out)
    scores = compute_scores(recording.weights, "Q", seed=at.seed)
    folds = random_folds(len(held_out), seed=at.seed)
    writers = choose_writers(scores, at.mover, recording.directions, k=max(ks))
    chosen = torch.stack([recording.directions[w.layer, w.head, w.component] for w in writers])
    random = random_directions(1, max(ks), chosen.shape[1], at.seed)[0]
    rows = []
    for k in ks:
        row = dict(model=at.name, k=k)
        for label, directions in (("", chosen[:k]), (" by random directions", random[:k])):
            values = points(recording, at.mover.layer, directions)
            row |= {c + label: decode(values, held_out, c, folds).double().mean().item() for c in CARRIED}
        rows.append(row | dict(n=len(held_out)))
    return pd.DataFrame(rows)


def cloud(at: Channel, n_items: int, n_prompts: int = 120) -> pd.DataFrame:
    """Prompts as points: columns ``x, y, z``, the answer's ``place`` and ``word``, and a number per word, ``code``."""
    import pandas as pd

    recording = at.on_lists(n_items, n_prompts)
    prompts = recording.prompts
    values = points(recording, at.mover.layer, at.directions).cpu()
    words = [at.tokenizer.decode([token]).strip() for token in prompts.answers.tolist()]
    codes = {word: i for i, word in enumerate(sorted(set(words)))}
    frame = pd.DataFrame(values.numpy(), columns=["x", "y", "z"])
    return frame.assign(place=prompts.info["index"], word=words, code=[codes[word] for word in words])


def gains_table(results: Mapping[str, tuple[dict[str, Gain], list[dict[str, Gain]]]]) -> pd.DataFrame:
    """Held-out accuracy and gain by strategy, beside what the same search gains along random directions.

    results: label -> what :func:`steering_gains` gives. Columns: model (the label), strategy, accuracy, then in
    percentage points gain, low, high (paired 95% interval), the mean gain along random directions, the gain on the
    prompts that chose the settings; n.
    """
    import pandas as pd

    rows = []
    for label, (ours, random) in results.items():
        for name, found in ours.items():
            others = [r[name].gain.mean for r in random]
            rows.append({
                "model": label, "strategy": name, "accuracy": found.accuracy.mean,
                "gain, points": 100 * found.gain.mean,
                "low": 100 * found.gain.low, "high": 100 * found.gain.high,
                "random directions, points": 100 * sum(others) / len(others),
                "where chosen, points": 100 * found.where_chosen, "n": found.gain.n,
            })  # fmt: skip
    return pd.DataFrame(rows)


def crowding_table(at: Channel, lengths: Sequence[int], n_prompts: int = 120) -> pd.DataFrame:
    """By list length, on the same prompts: accuracy, place and identity decoded from the three coordinates (out of
    fold), and how far apart the places are, there and at most along any of some random triples. Columns: model,
    n_items, accuracy, low, high, place, identity, apart, apart at random, n."""
    import pandas as pd

    rows = []
    random = random_directions(N_RANDOM_TRIPLES, 3, at.directions.shape[1], at.seed)
    for n_items in lengths:
        recording = at.on_lists(n_items, n_prompts)
        prompts = recording.prompts
        right = share(correct(recording.logits, prompts))
        place, folds = torch.as_tensor(prompts.info["index"]), random_folds(len(prompts), seed=at.seed)
        values, *others = (points(recording, at.mover.layer, d) for d in (at.directions, *random))
        shares = {c: decode(values, prompts, c, folds).double().mean().item() for c in CARRIED}
        row = dict(model=at.name, n_items=n_items, accuracy=right.mean, low=right.low, high=right.high, **shares)
        row |= {"apart": separability(values, place), AT_RANDOM: max(separability(o, place) for o in others)}
        rows.append(row | dict(n=right.n))
    return pd.DataFrame(rows)


def accuracy_by_place(at: Channel, lengths: Sequence[int], n_prompts: int = 120) -> pd.DataFrame:
    """Accuracy by list length and by the answer's place in the list, counted from 0. Columns: model, n_items, place,
    accuracy, n (prompts whose answer has that place)."""
    import pandas as pd

    rows = []
    for n_items in lengths:
        recording = at.on_lists(n_items, n_prompts)
        prompts = recording.prompts
        right = correct(recording.logits, prompts)
        place = torch.as_tensor(prompts.info["index"])
        for p in range(n_items):
            rows.append(dict(model=at.name, n_items=n_items, place=p, accuracy=right[place == p].double().mean().item(),
                             n=int((place == p).sum())))  # fmt: skip
    return pd.DataFrame(rows)


def axis(at: Channel, n_items: int, n_values: int) -> list[float]:
    """Values of a steering axis for this model, zero among them: :data:`REACH` times the largest centred coordinate of
    prompts on the selection half, to both sides. Raises :class:`OptionError` for an even number of values or fewer than
    three."""
    if n_values < 3 or n_values % 2 != 1:
        raise OptionError(f"An axis has an odd number of values, three at least, zero in their middle; not {n_values}.")
    selection, _ = halves(at.lists(n_items, 100))
    values = points(at.record(selection), at.mover.layer, at.directions)
    reach = REACH * (values - values.mean(0)).abs().max().item()
    return [reach * (2 * i / (n_values - 1) - 1) for i in range(n_values)]


def traversal(at: Channel, n_items: int, values: Sequence[float], n_prompts: int = 40) -> Float[Tensor, "v v v items"]:
    """Mean attention of the mover to each place of the list, over the whole grid of three alphas."""
    prompts = at.lists(n_items, n_prompts)
    found = steer(prepare(at.bridge, prompts, at.writers), grid(values), movers=[at.mover])[ATTENTION]
    return found[:, :, 0].mean(0).view(*[len(values)] * 3, n_items).cpu()


def reach_table(
    at: Channel, n_items: int, values: Sequence[float], n_prompts: int = 100, n_random: int = 3
) -> pd.DataFrame:
    """Can the mover be brought to a place of the list by hand? For each place the setting that brings most of its
    attention there, chosen on the selection half, scored on the other; also along random directions of equal norm.

    Columns: model, n_items, along, place, plain, steered (attention to the place), low, high, n. Raises
    :class:`OptionError` for values without zero, or for no random directions.
    """
    import pandas as pd

    prompts, settings = at.lists(n_items, n_prompts), grid(values)
    plain, selection = zero_setting(settings), in_selection(prompts)
    random = random_directions(n_random, 3, at.directions.shape[1], at.seed)
    along = {COMPONENTS: None} | {f"random {i}": directions for i, directions in enumerate(random, 1)}
    rows = []
    for name, directions in along.items():
        steering = prepare(at.bridge, prompts, at.writers, directions)
        found = steer(steering, settings, movers=[at.mover])[ATTENTION][:, :, 0].cpu()
        best = found[selection].mean(0).argmax(0)
        for place, setting in enumerate(best.tolist()):
            steered = bootstrap_mean(found[~selection, setting, place], n_boot=1000)
            rows.append(dict(model=at.name, n_items=n_items, along=name, place=place,
                             plain=found[~selection, plain, place].mean().item(), steered=steered.mean,
                             low=steered.low, high=steered.high, n=steered.n))  # fmt: skip
    return pd.DataFrame(rows)


def steering_gains(
    at: Channel, n_items: int, values: Sequence[float], n_prompts: int = 200, n_random: int = 3
) -> tuple[dict[str, Gain], list[dict[str, Gain]]]:
    """``(ours, random)``: what steering along the three components buys, and along random directions of equal norm
    with the same grid and the same search. Raises :class:`OptionError` for values without zero, or for no random
    directions."""
    prompts = at.lists(n_items, n_prompts)
    settings = grid(values)
    random = random_directions(n_random, 3, at.directions.shape[1], at.seed)
    found = [
        _gains(prepare(at.bridge, prompts, at.writers, directions), prompts, settings)
        for directions in (None, *random)
    ]  # fmt: skip
    return found[0], found[1:]


def _gains(steering: Steering, prompts: PromptSet, settings: Tensor) -> dict[str, Gain]:
    right = right_under(steering, prompts, settings)
    place = torch.as_tensor(prompts.info["index"])
    return gains(right, in_selection(prompts), place, settings)


def right_under(steering: Steering, prompts: PromptSet, settings: Tensor) -> Bool[Tensor, "n n_settings"]:
    """Whether each list is answered under each setting."""
    logits = steer(steering, settings, logits=True)[LOGITS].cpu()
    place = torch.as_tensor(prompts.info["index"])
    own = logits.gather(2, place[:, None, None].expand(-1, len(settings), 1))
    others = logits.scatter(2, place[:, None, None].expand(-1, len(settings), 1), -torch.inf)
    return (own > others).all(-1)


def finished_gains(finished: Finished) -> dict[str, tuple[dict[str, Gain], list[dict[str, Gain]]]]:
    """What :func:`steering_gains` gives, out of a finished sweep and its controls, by list length; empty where no
    logits were read or no control was run."""

    def of(result: Result, n_items: int) -> dict[str, Gain]:
        right, selection = torch.from_numpy(result.right(n_items)), torch.from_numpy(~result.held_out(n_items))
        settings = grid(result.plan.values, len(result.plan.writers))
        return gains(right, selection, torch.from_numpy(result.places(n_items)), settings)

    own, controls = finished.own, finished.controls
    if not controls or any(LOGITS not in result.plan.read for result in (own, *controls)):
        return {}
    return {
        f"{own.plan.model}, {n} items": (of(own, n), [of(control, n) for control in controls])
        for n in sorted(own.plan.n_items)
    }
