"""Is it a place or a token that a component carries? Two experiments, one per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError, TaskError
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.halves import check_both_orders, check_enough, wording_folds
from talking_heads_utils.prompts.ioi import IOIPrompt, build_ioi, swap_names, swap_order
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, ridge_weights

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

from talking_heads_utils.prompts.sets import PromptSet

ORDER, NAME, BOTH = "order of the names", "which name", "interaction"
PLACE, IDENTITY = "place of the answer", "items named twice"
RIDGE = 1.0


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


def place_or_name(recordings: Sequence[Recording], components: Sequence[Component]) -> pd.DataFrame:
    """For recordings of the four sets: the shares of each component's activation at ``end``, pooled over prompts, with
    a bootstrap interval over prompts. Columns: component, factor, share, low, high, n."""
    import pandas as pd

    check_enough(recordings[0].prompts)
    if len(recordings) != 4:
        raise OptionError(f"The four versions of every prompt are needed, not {len(recordings)}.")
    rows = []
    for c in components:
        values = torch.stack([_activation(r, c) for r in recordings])
        shares = factorial_shares(values)
        for factor, share in shares.items():
            found = bootstrap_mean(share[~share.isnan()].cpu())
            rows.append(
                dict(component=str(c), factor=factor, share=found.mean, low=found.low, high=found.high, n=found.n)
            )
    return pd.DataFrame(rows)


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
    values: Float[Tensor, "n k"], design: Float[Tensor, "n n_features"], folds: Int[Tensor, "n"], ridge: float = RIDGE
) -> float:
    """Share of the variance of ``values``, all columns together, that a ridge regression predicts out of its fold.

    Below zero: worse than the mean of the other folds.
    """
    values, design = values.double().cpu(), design.double().cpu()
    error = torch.zeros(())
    base = torch.zeros(())
    for fold in folds.unique():
        test = folds == fold
        mean, centre = values[~test].mean(0), design[~test].mean(0)
        X, y = design[~test] - centre, values[~test] - mean
        weights = ridge_weights(X, y, ridge)
        error = error + (values[test] - mean - (design[test] - centre) @ weights).square().sum()
        base = base + (values[test] - mean).square().sum()
    return (1 - error / base).item()


def place_or_identity(
    recording: Recording, components: Sequence[Component], *, n_folds: int = 5, seed: int = SEED
) -> pd.DataFrame:
    """How well each design predicts the components' activations on lists, out of fold: within wordings (random folds)
    and across (each wording in turn left out), and with the design's rows shuffled. Columns: carries, split, r2, n."""
    import pandas as pd

    check_enough(recording.prompts)
    values, n = activations_of(recording, components), len(recording.prompts)
    generator = torch.Generator().manual_seed(seed)
    folds = torch.randperm(n, generator=generator) % n_folds
    wording = wording_folds(recording.prompts)
    order = torch.randperm(n, generator=generator)
    rows = []
    for carries, design in designs(recording.prompts).items():
        for split, used, rows_of in (("within wordings", folds, design), ("across wordings", wording, design),
                                     ("shuffled", folds, design[order])):  # fmt: skip
            rows.append(dict(carries=carries, split=split, r2=cross_validated_r2(values, rows_of, used), n=n))
    return pd.DataFrame(rows)
