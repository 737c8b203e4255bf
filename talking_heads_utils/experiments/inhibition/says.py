"""What the component that inhibits says at ``end``: a place or a token, and how much of it each feature explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import random_folds
from talking_heads_utils.experiments.inhibition.prediction import coefficients_at_end, predicted_components
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts import ioi, lists
from talking_heads_utils.prompts.halves import check_enough, halves
from talking_heads_utils.prompts.ioi import IO_FIRST, S_FIRST, IOIPrompt, build_ioi, draw_ioi, swap_names, swap_order
from talking_heads_utils.prompts.ioi import third_name as without_duplicate
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.settings import N_ITEMS
from talking_heads_utils.stats import bootstrap_mean, bootstrap_ratio

PENALTIES = tuple(10.0 ** (k / 2) for k in range(-4, 9))  # of ridge regression, to choose from
N_SHUFFLED = 20  # orders of the prompts' features
NAME_ORDER, WHICH_NAME, ORDER_BY_NAME, TEMPLATE, NO_DUPLICATE = (
    "name_order", "which_name", "order_by_name", "template", "no_duplicate"
)  # fmt: skip
LIST_INDEX, ITEMS = "list_index", "items"
VARIANCE, VERSION, GROUP_MEAN = "variance_share", "version_share", "group_mean"
WITHIN, ACROSS, SHUFFLED = "within_templates", "across_templates", "shuffled"
NONE_TWICE = "no duplicate"  # beside IO first and S first


@dataclass(frozen=True)
class SaysRow(ModelRow):
    """One number about a component's coefficient at ``end`` of held-out prompts. ``statistic`` says which.

    variance_share: of the coefficient's variance, what ridge regression on ``feature`` predicts out of its fold.
    version_share: of its variation over the four versions of a prompt, what ``feature`` makes up; the three features
    add up to one. group_mean: its mean in ``group``, less the mean over prompts with a duplicate, in standard
    deviations over those.
    """

    task: str = column("", "ioi, or laundry for lists")
    component: str = column("", "the one of an S-inhibition head that weights predict")
    statistic: str = column("", "variance_share, version_share, group_mean")
    feature: str = column(
        "", "ioi: name_order, which_name, order_by_name, template, no_duplicate; lists: list_index, items"
    )
    split: str = column("", "of variance_share: within_templates, across_templates, shuffled; else empty")
    group: str = column("", "of group_mean: IO first, S first, no duplicate, or a list index; else empty")
    template: str = column("", "of group_mean: one template, or empty for all; else empty")
    value: float = column("share, or standard deviations", "a share below zero is worse than the mean of other folds")
    low: float = column("share, or standard deviations", "lower end of its 95% interval over prompts; over shuffles")
    high: float = column("share, or standard deviations", "upper end")
    n: int = column("prompts", "drawn prompts, each in all its versions; of shuffled the shuffles")


def run(c: Context) -> list[SaysRow]:
    """On IOI prompts of another draw than the roles', and on lists where the model can be asked about them. Raises
    :class:`NotApplicable` for a model without S-inhibition heads."""
    components = c.kept(predicted_components)
    rows = on_ioi(c, components, c.n(200, 40))
    try:
        prompts = halves(c.lists(c.n_items(N_ITEMS), c.n(400, 80)))[1]
    except NotApplicable:
        return rows
    return [*rows, *on_lists(c, components, prompts)]


# --- IOI ---


def versions(prompts: Sequence[IOIPrompt]) -> list[list[IOIPrompt]]:
    """Each prompt six times: as it is, in the other order, with the names exchanged in their roles, and both; then
    without a duplicate, a third person acting, in both orders."""
    both = [swap_order(swap_names(p)) for p in prompts]
    with_duplicate = [list(prompts), [swap_order(p) for p in prompts], [swap_names(p) for p in prompts], both]
    return with_duplicate + [[without_duplicate(p) for p in part] for part in with_duplicate[:2]]


def on_ioi(c: Context, components: Sequence[Component], n: int) -> list[SaysRow]:
    """``n`` drawn prompts in six versions each."""
    drawn = versions(draw_ioi(c.tokenizer, n, c.seed + 1))
    sets = [build_ioi(c.tokenizer, prompts=part) for part in drawn]
    check_enough(sets[0])
    values = torch.stack([coefficients_at_end(c.bridge, c.weights, components, part) for part in sets])
    return [
        SaysRow(c.model, ioi.TASK, str(component), *row)
        for i, component in enumerate(components)
        for row in rows_of_ioi(values[:, :, i].double(), drawn, c.seed, c.n(N_SHUFFLED, 4))
    ]


def rows_of_ioi(
    values: Float[Tensor, "6 n"], drawn: Sequence[Sequence[IOIPrompt]], seed: int, n_shuffled: int
) -> list[tuple]:
    """Rows of one component, from its coefficients on the six versions of prompts: fields from ``statistic`` on."""
    squares = version_effects(values[:4])
    total = torch.stack(list(squares.values())).sum(0)
    rows = [
        (VERSION, feature, "", "", "", *bootstrap_ratio(square, total, seed=seed))
        for feature, square in squares.items()
    ]
    rows += _group_means(values, drawn)
    unit, four = torch.arange(values.shape[1]), [p for part in drawn[:4] for p in part]
    template = one_hot([p.template for p in four])
    folds = {WITHIN: random_folds(len(unit), seed).repeat(4), ACROSS: template.argmax(1)}
    for feature, design in {
        NAME_ORDER: one_hot([p.io_first for p in four])[:, 1:],
        WHICH_NAME: one_hot([p.s for p in four]),
        TEMPLATE: template,
    }.items():
        used = folds if feature != TEMPLATE else {WITHIN: folds[WITHIN]}
        rows += _variance_shares(feature, values[:4].flatten(), design, used, unit.repeat(4), seed, n_shuffled)
    none = one_hot([i >= 4 for i, part in enumerate(drawn) for _ in part])[:, 1:]
    template = one_hot([p.template for part in drawn for p in part])
    folds = {WITHIN: folds[WITHIN][: len(unit)].repeat(6), ACROSS: template.argmax(1)}
    return rows + _variance_shares(NO_DUPLICATE, values.flatten(), none, folds, unit.repeat(6), seed, n_shuffled)


def version_effects(values: Float[Tensor, "4 n"]) -> dict[str, Float[Tensor, "n"]]:
    """What order, name and their interaction make of a number over a prompt's four versions, in squares: they add up to
    its variation, and by chance are alike.

    values: in the order of :func:`versions`, whose first step changes the order, the second the names.
    """
    plain, order, names, both = values.double()
    return {
        NAME_ORDER: (order + both - plain - names).square() / 4,
        WHICH_NAME: (names + both - plain - order).square() / 4,
        ORDER_BY_NAME: (plain + both - order - names).square() / 4,
    }


def _group_means(values: Float[Tensor, "6 n"], drawn: Sequence[Sequence[IOIPrompt]]) -> list[tuple]:
    """Means by order of the names and without a duplicate, over all templates and in each."""
    scaled = (values - values[:4].mean()) / values[:4].std()
    io_first = torch.tensor([[p.io_first for p in part] for part in drawn[:4]])
    by_group = {
        IO_FIRST: (scaled[:4] * io_first).sum(0) / io_first.sum(0),
        S_FIRST: (scaled[:4] * ~io_first).sum(0) / (~io_first).sum(0),
        NONE_TWICE: scaled[4:].mean(0),
    }
    rows, templates = [], [p.template for p in drawn[0]]
    for group, means in by_group.items():
        for name in ("", *dict.fromkeys(templates)):
            keep = torch.tensor([name in ("", template) for template in templates])
            feature = NO_DUPLICATE if group == NONE_TWICE else NAME_ORDER
            rows.append((GROUP_MEAN, feature, "", group, name, *bootstrap_mean(means[keep])))
    return rows


# --- lists ---


def on_lists(c: Context, components: Sequence[Component], prompts: PromptSet) -> list[SaysRow]:
    """Whether it goes by the answer's list index or by the items that are named twice."""
    check_enough(prompts)
    values, unit = coefficients_at_end(c.bridge, c.weights, components, prompts).double(), torch.arange(len(prompts))
    words, which = prompts.distractors.unique(return_inverse=True)
    twice = torch.zeros(len(prompts), len(words), dtype=torch.float64).scatter_(1, which, 1.0)
    index, rows = torch.as_tensor(prompts.info["index"]), []
    wordings = one_hot(prompts.info["wording"]).argmax(1)
    folds = {WITHIN: random_folds(len(prompts), c.seed), ACROSS: wordings}
    for i, component in enumerate(components):
        own, found = values[:, i], []
        for k in index.unique().tolist():
            mean = bootstrap_mean(((own - own.mean()) / own.std())[index == k])
            found.append((GROUP_MEAN, LIST_INDEX, "", str(k), "", *mean))
        for feature, design in {LIST_INDEX: one_hot(index.tolist()), ITEMS: twice}.items():
            found += _variance_shares(feature, own, design, folds, unit, c.seed, c.n(N_SHUFFLED, 4))
        rows += [SaysRow(c.model, lists.TASK, str(component), *row) for row in found]
    return rows


# --- regression ---


def one_hot(labels: Sequence) -> Float[Tensor, "n n_labels"]:
    """A column for each label, in their order."""
    kinds = sorted(set(labels))
    return torch.nn.functional.one_hot(torch.tensor([kinds.index(label) for label in labels])).double()


def _variance_shares(
    feature: str, values: Float[Tensor, "n"], design: Float[Tensor, "n n_features"],
    folds: Mapping[str, Int[Tensor, "n"]], unit: Int[Tensor, "n"], seed: int, n_shuffled: int,
) -> list[tuple]:  # fmt: skip
    """Rows of one feature: by each kind of folds, and with the design's rows in other orders."""
    rows = []
    for split, used in folds.items():
        error, base = (
            torch.zeros(int(unit.max()) + 1, dtype=torch.float64).index_add_(0, unit, part)
            for part in out_of_fold(values, design, used)
        )
        lost = bootstrap_ratio(error, base, seed=seed)
        rows.append((VARIANCE, feature, split, "", "", 1 - lost.mean, 1 - lost.high, 1 - lost.low, lost.n))
    generator, shares = torch.Generator().manual_seed(seed), []
    for _ in range(n_shuffled):
        order = torch.randperm(len(values), generator=generator)
        error, base = out_of_fold(values, design[order], folds[WITHIN])
        shares.append(1 - (error.sum() / base.sum()).item())
    ends = np.quantile(shares, [0.025, 0.975]).tolist()
    return [*rows, (VARIANCE, feature, SHUFFLED, "", "", float(np.mean(shares)), *ends, n_shuffled)]


def out_of_fold(
    values: Float[Tensor, "n"], design: Float[Tensor, "n n_features"], folds: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Squared errors of a ridge regression that was fitted on the other folds, and of those folds' mean. Its penalty is
    chosen within the other folds, one of them left out at a time, so that designs of few and of many columns can be
    compared. Three folds at least."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneGroupOut

    y, X, groups = values.double().cpu().numpy(), design.double().cpu().numpy(), folds.cpu().numpy()
    error, base = np.zeros_like(y), np.zeros_like(y)
    for fitted, left in LeaveOneGroupOut().split(X, groups=groups):
        model = Ridge(choose_penalty(X[fitted], y[fitted], groups[fitted]), solver="svd")
        error[left] = (y[left] - model.fit(X[fitted], y[fitted]).predict(X[left])) ** 2
        base[left] = (y[left] - y[fitted].mean()) ** 2
    return torch.from_numpy(error), torch.from_numpy(base)


def choose_penalty(
    X: Float[np.ndarray, "n n_features"], y: Float[np.ndarray, "n"], groups: Int[np.ndarray, "n"]
) -> float:
    """The one of :data:`PENALTIES` on the squared weights of a ridge regression with the smallest squared error on each
    group in turn, fitted on the others."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    repeated = np.tile(y[:, None], len(PENALTIES))  # one decomposition for all penalties
    model = Ridge(PENALTIES, solver="svd")
    predicted = cross_val_predict(model, X, repeated, groups=groups, cv=LeaveOneGroupOut())
    return PENALTIES[np.square(repeated - predicted).sum(0).argmin()]
