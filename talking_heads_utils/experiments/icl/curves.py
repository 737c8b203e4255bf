"""How belief grows with examples: log-odds of the right answer, and which law they follow.

The post's law: every example adds one constant to the log-odds, a line in n. Beside it a saturating curve, a power
law, and the Bayes-optimal predictor of the family (:func:`~functions.posterior`). Each is fitted
after few examples and judged after more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.clusters import drawn_weights, ends
from talking_heads_utils.experiments.icl.functions import Examples, Family, posterior, predictive
from talking_heads_utils.experiments.icl.scores import right_log_odds
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.ends import logits_in_blocks
from talking_heads_utils.prompts.questions import Numbers, asked_at
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LINE, SATURATING, POWER, BAYES = "line", "saturating", "power", "bayes"
LAWS = {LINE: 2, SATURATING: 3, POWER: 3, BAYES: 1}  # and how many numbers each has to fit
TRUSTS = (
    0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.999,
)  # fmt: skip  # probabilities that a label is right, one for each predictor


@dataclass(frozen=True)
class Belief:
    """Log-odds of the right answer after k examples, per prompt: the model's, and those of Bayes-optimal predictors of
    each of :data:`TRUSTS` on the same prompts, None for words. clusters: prompts of one cluster are alike."""

    model: Float[Tensor, "n n_examples"]
    bayes: Float[Tensor, "n_trusts n n_examples"] | None
    clusters: Int[Tensor, "n"]


@torch.no_grad()
def asked_logits(
    bridge: TransformerBridge, prompts: PromptSet, answers: Numbers, *, batch: int = 64
) -> Float[Tensor, "n n_asked n_answers"]:
    """Logits of the answers at every position where one is asked for: one pass over each prompt."""
    places = torch.stack(asked_at(prompts), 1)
    blocks = logits_in_blocks(bridge, prompts.tokens, places, batch=batch)
    return torch.cat([logits[..., answers.ids] for _, logits in blocks])


def model_log_odds(
    bridge: TransformerBridge, prompts: PromptSet, answers: Numbers, right: Int[Tensor, "n n_examples"]
) -> Float[Tensor, "n n_examples"]:
    """Log-odds of the right answer among all after k = 0, 1, ... examples, in nats: one pass over each prompt.

    right: at each example, which a noisy prompt need not show.
    """
    asked = asked_logits(bridge, prompts, answers).unbind(1)
    return torch.stack([right_log_odds(at, own, answers) for at, own in zip(asked, right.T)], 1)


def bayes_log_odds(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"] | None = None
) -> Float[Tensor, "n n_pairs"]:
    """The Bayes-optimal predictor's log-odds of the right value at pair k after the k pairs before it, in nats, cut off
    at odds of 10^12."""
    belief = posterior(family, examples.x, examples.y, prior)[:, :-1]
    chance = predictive(family, belief, examples.x).gather(2, examples.clean[..., None])[..., 0]
    return chance.logit(eps=1e-12)


def trusting_predictors(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"] | None = None
) -> Float[Tensor, "n_trusts n n_pairs"]:
    """:func:`bayes_log_odds` of those who believe that a label is right with each probability of :data:`TRUSTS`."""
    return torch.stack([bayes_log_odds(replace(family, noise=1 - trust), examples, prior) for trust in TRUSTS])


@dataclass(frozen=True)
class LawRow(Row):
    """How far one law, fitted after few examples, misses the log-odds after more."""

    task: str = column("", "what the model is asked")
    law: str = column("", "line (the post's), saturating, power, or bayes: the Bayes-optimal predictor")
    n_fitted: int = column("", "numbers that were fitted")
    n_seen: int = column("examples", "the law is fitted after 0 to n_seen - 1 examples and judged after more")
    error: float = column("nats", "root mean square error of the mean log-odds where no fit saw them")
    low: float = column("nats", "lower end of error, 95% over functions or answers, every draw fitted anew")
    high: float = column("nats", "upper end of error")
    over_line: float = column("nats", "error less the line's")
    over_line_low: float = column("nats", "lower end of over_line, on the same draws")
    over_line_high: float = column("nats", "upper end of over_line")
    n: int = column("", "prompts")
    n_clusters: int = column("", "functions or answers that intervals are over")


@dataclass(frozen=True)
class CurveRow(Row):
    """Mean log-odds after so many examples, the model's or a fitted law's."""

    law: str = column("", "model, or one of the laws")
    n_examples: int = column("", "examples in the prompt")
    log_odds: float = column("nats", "log-odds of the right answer, mean over prompts")
    low: float | None = column("nats", "of the model, lower end, 95% over functions or answers")
    high: float | None = column("nats", "of the model, upper end")


def fit_laws(belief: Belief, n_seen: int, *, task: str = "", seed: int = 0) -> list[LawRow]:
    """Fit every law to the mean log-odds after 0 .. n_seen - 1 examples and judge it on the rest.

    Of the Bayes-optimal predictor its trust alone is fitted, no slope and no start.
    Raises :class:`OptionError` unless two points or more are fitted and one is left.
    """
    weights = drawn_weights(belief.clusters, n_draws=500, seed=seed)
    y = weights @ belief.model.double().cpu()
    curves = _curves(belief, weights, y, n_seen)
    errors = {law: (curve[:, n_seen:] - y[:, n_seen:]).square().mean(1).sqrt() for law, curve in curves.items()}
    n, n_clusters = len(belief.model), len(belief.clusters.unique())
    rows = []
    for law, error in errors.items():
        found, over = ends(error), ends(error - errors[LINE])
        rows.append(LawRow(
            task, law, LAWS[law], n_seen, found.value.item(), found.low.item(), found.high.item(), over.value.item(),
            over.low.item(), over.high.item(), n, n_clusters,
        ))  # fmt: skip
    return rows


def curve_rows(belief: Belief, n_seen: int, *, seed: int = 0) -> list[CurveRow]:
    """The model's mean log-odds, and every law as fitted to them."""
    weights = drawn_weights(belief.clusters, n_draws=500, seed=seed)
    y = weights @ belief.model.double().cpu()
    rows = [CurveRow("model", k, *(part.item() for part in at)) for k, at in enumerate(zip(*ends(y)))]
    for law, curve in _curves(belief, weights[:1], y[:1], n_seen).items():
        rows += [CurveRow(law, k, value, None, None) for k, value in enumerate(curve[0].tolist())]
    return rows


def _curves(
    belief: Belief, weights: Float[Tensor, "draws n"], y: Float[Tensor, "draws n_n"], n_seen: int
) -> dict[str, Float[Tensor, "draws n_n"]]:
    """Each law's curve, fitted to every draw."""
    if not 2 <= n_seen < y.shape[1]:
        raise OptionError(f"Fit on 2 to {y.shape[1] - 1} of {y.shape[1]} points, not {n_seen}: the rest judges.")
    steps = torch.arange(y.shape[1], dtype=torch.float64)
    curves = {law: _fit(_shapes(law, steps), n_seen, y) for law in LAWS if law != BAYES}
    if belief.bayes is not None:
        means = torch.einsum("dn,tnk->dtk", weights, belief.bayes.double())
        best = (means[..., :n_seen] - y[:, None, :n_seen]).square().sum(-1).argmin(1)
        curves[BAYES] = means[torch.arange(len(y)), best]
    return curves


def _shapes(law: str, n: Float[Tensor, "n_n"]) -> Float[Tensor, "n_grid n_n"]:
    """What a law lets grow, for every value of its searched number."""
    if law == LINE:
        return n[None]
    if law == SATURATING:
        return 1 - torch.exp(-n / torch.logspace(-0.7, 1.3, 41, dtype=torch.float64)[:, None])
    return n ** torch.logspace(-1.3, 0.3, 41, dtype=torch.float64)[:, None]


def _fit(shapes: Float[Tensor, "g n_n"], n_seen: int, y: Float[Tensor, "draws n_n"]) -> Float[Tensor, "draws n_n"]:
    """Least squares of ``slope * shape + start`` on the first ``n_seen`` points, with the best shape of the grid."""
    x = shapes[:, :n_seen] - shapes[:, :n_seen].mean(1, keepdim=True)
    slope = torch.einsum("gn,dn->dg", x, y[:, :n_seen]) / x.square().sum(1).clamp(min=1e-12)
    start = y[:, :n_seen].mean(1)[:, None] - slope * shapes[:, :n_seen].mean(1)
    curves = slope[..., None] * shapes + start[..., None]
    best = (curves[..., :n_seen] - y[:, None, :n_seen]).square().sum(-1).argmin(1)
    return curves[torch.arange(len(y)), best]


def fitted_trust(belief: Belief) -> float:
    """The trust in labels whose predictor comes closest to the mean log-odds at all points. Raises
    :class:`OptionError` for words, of which there is no predictor."""
    if belief.bayes is None:
        raise OptionError("There is no Bayes-optimal predictor of words.")
    gap = (belief.bayes.double().mean(1) - belief.model.double().mean(0)).square().sum(1)
    return TRUSTS[int(gap.argmin())]
