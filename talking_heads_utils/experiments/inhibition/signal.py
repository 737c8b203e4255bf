"""Is it a place or a token that a component carries? Two experiments, one per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError, TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.mover import mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.halves import check_both_orders, check_enough, wording_folds
from talking_heads_utils.prompts.ioi import IOIPrompt, build_ioi, draw_ioi, swap_names, swap_order
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
ORDER, NAME, BOTH = "order of the names", "which name", "interaction"
PLACE, IDENTITY = "place of the answer", "items named twice"
WITHIN, ACROSS, SHUFFLED, VERSIONS = "within wordings", "across wordings", "shuffled", "four versions"
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-4, 9))  # of ridge regression, to choose from
N_STRONGEST = 3  # components that are asked


@dataclass(frozen=True)
class CarriesRow(Row):
    """What the strongest components of inhibition heads carry. On lists, how much of their activations' variance at
    ``end`` a regression predicts out of fold; on IOI, how much of its variation over a prompt's four versions a factor
    makes up (by chance a third)."""

    model: str = column("", "name of the model")
    components: str = column("", "on lists all that are asked, on IOI one")
    carries: str = column("", "lists: answer's place, items named twice; IOI: order of names, which name, interaction")
    split: str = column(
        "", "lists: folds at random, by wording, or at random with shuffled prompts; IOI: four versions"
    )
    share: float = column("share of variance", "below zero: worse than the mean of the other folds")
    low: float | None = column("share of variance", "lower end of its 95% interval over prompts; IOI alone")
    high: float | None = column("share of variance", "upper end")
    n: int = column("prompts", "of the held-out half")


def run(c: Context) -> list[CarriesRow]:
    """On lists for a model of the book, on IOI for every model. Raises :class:`NotApplicable` for a model without
    inhibition heads."""
    at = c.kept(mover_runs)
    chosen = at.strongest(N_STRONGEST)
    on_lists = place_or_identity(at.held_out, chosen, model=c.model, seed=c.seed) if c.is_own else []
    return [*on_lists, *_on_ioi(c, chosen, at.mover.layer)]


def _on_ioi(c: Context, chosen: Sequence[Component], layer: int) -> list[CarriesRow]:
    """Prompts of the held-out half, in four versions each."""
    drawn = draw_ioi(c.tokenizer, 2 * c.n(100), c.seed)
    sets = factorial_prompts(c.tokenizer, [p for i, p in enumerate(drawn) if i // 2 % 2])
    return place_or_name([c.record(prompts, [layer]) for prompts in sets], chosen, model=c.model)


def factorial_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[IOIPrompt]) -> list[PromptSet]:
    """Each prompt four times: as it is, in the other order, with the names exchanged in their roles, and both."""
    cells: list[Callable[[IOIPrompt], IOIPrompt]] = [
        lambda p: p, swap_order, swap_names, lambda p: swap_order(swap_names(p))
    ]  # fmt: skip
    sets = [build_ioi(tokenizer, prompts=[cell(p) for p in prompts]) for cell in cells]
    check_both_orders(sets[0])
    return sets


def factorial_shares(values: Float[Tensor, "4 n"]) -> dict[str, Float[Tensor, "n"]]:
    """Of the variation of a number over a prompt's four versions, what order, name and their interaction make up.

    values: in the order of :func:`factorial_prompts`, whose first step changes the order, the second the names. The
    three add up to the whole within each prompt; by chance each is a third. A prompt without variation is NaN.
    """
    plain, order, names, both = values.double()
    effects = {
        ORDER: (order + both - plain - names) / 2,
        NAME: (names + both - plain - order) / 2,
        BOTH: (plain + both - order - names) / 2,
    }
    total = sum(effect.square() for effect in effects.values())
    return {name: effect.square() / total for name, effect in effects.items()}


def place_or_name(
    recordings: Sequence[Recording], components: Sequence[Component], *, model: str = ""
) -> list[CarriesRow]:
    """For recordings of the four sets: the shares of each component's activation at ``end``, pooled over prompts, with
    a bootstrap interval over prompts. Raises :class:`OptionError` for other than four."""
    check_enough(recordings[0].prompts)
    if len(recordings) != 4:
        raise OptionError(f"The four versions of every prompt are needed, not {len(recordings)}.")
    rows = []
    for c in components:
        values = torch.stack([_activation(r, c) for r in recordings])
        for factor, share in factorial_shares(values).items():
            rows.append(CarriesRow(model, str(c), factor, VERSIONS, *bootstrap_mean(share[~share.isnan()].cpu())))
    return rows


def _activation(recording: Recording, c: Component) -> Float[Tensor, "n"]:
    write = recording.write(c.layer)[:, c.head]
    return write @ recording.directions[c.layer, c.head, c.component]


def activations_of(recording: Recording, components: Sequence[Component]) -> Float[Tensor, "n k"]:
    """Activations of some components at ``end``."""
    return torch.stack([_activation(recording, c) for c in components], 1)


def designs(prompts: PromptSet) -> dict[str, Float[Tensor, "n n_features"]]:
    """What might be encoded, as regressors: the answer's place in the list, and which items are named twice.

    Raises :class:`TaskError` for prompts that are no lists.
    """
    if "index" not in prompts.info:
        raise TaskError("Place and identity are told apart on Laundry List prompts.")
    place = torch.nn.functional.one_hot(torch.as_tensor(prompts.info["index"])).double()
    words, index = prompts.distractors.unique(return_inverse=True)
    identity = torch.zeros(len(prompts), len(words), dtype=torch.float64).scatter_(1, index, 1.0)
    return {PLACE: place, IDENTITY: identity}


def cross_validated_r2(
    values: Float[Tensor, "n k"], design: Float[Tensor, "n n_features"], folds: Int[Tensor, "n"]
) -> float:
    """Share of the variance of ``values``, all columns together, that a ridge regression predicts out of its fold. Its
    penalty is chosen within the other folds, one of them left out at a time, so that designs of few and of many columns
    can be compared.

    Below zero: worse than the mean of the other folds. Three folds at least.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneGroupOut

    y, X, groups = values.double().cpu().numpy(), design.double().cpu().numpy(), folds.cpu().numpy()
    error = base = 0.0
    for fitted, left in LeaveOneGroupOut().split(X, groups=groups):
        model = Ridge(choose_penalty(X[fitted], y[fitted], groups[fitted]), solver="svd")
        predicted = model.fit(X[fitted], y[fitted]).predict(X[left])
        error += ((y[left] - predicted) ** 2).sum()
        base += ((y[left] - y[fitted].mean(0)) ** 2).sum()
    return float(1 - error / base)


def choose_penalty(
    X: Float[np.ndarray, "n n_features"], y: Float[np.ndarray, "n k"], groups: Int[np.ndarray, "n"]
) -> float:
    """The one of :data:`PENALTIES` on the squared weights of a ridge regression with the smallest squared error, of all
    columns together, on each group in turn, fitted on the others."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    repeated = np.tile(y, len(PENALTIES))  # one decomposition for all penalties
    model = Ridge(np.repeat(PENALTIES, y.shape[1]), solver="svd")
    predicted = cross_val_predict(model, X, repeated, groups=groups, cv=LeaveOneGroupOut())
    errors = np.square(repeated - predicted).sum(0).reshape(len(PENALTIES), -1).sum(1)
    return PENALTIES[errors.argmin()]


def place_or_identity(
    recording: Recording, components: Sequence[Component], *, n_folds: int = 5, seed: int = SEED, model: str = ""
) -> list[CarriesRow]:
    """How well each design predicts the components' activations on lists, out of fold: within wordings (random folds)
    and across (each wording in turn left out), and with the design's rows shuffled."""
    check_enough(recording.prompts)
    values, n, names = activations_of(recording, components), len(recording.prompts), ", ".join(map(str, components))
    generator = torch.Generator().manual_seed(seed)
    folds = torch.randperm(n, generator=generator) % n_folds
    order = torch.randperm(n, generator=generator)
    rows = []
    for carries, design in designs(recording.prompts).items():
        for split, used, rows_of in ((WITHIN, folds, design), (ACROSS, wording_folds(recording.prompts), design),
                                     (SHUFFLED, folds, design[order])):  # fmt: skip
            found = cross_validated_r2(values, rows_of, used)
            rows.append(CarriesRow(model, names, carries, split, found, None, None, n))
    return rows
