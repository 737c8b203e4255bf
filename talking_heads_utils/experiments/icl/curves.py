"""How belief grows with examples: log-odds of the right answer, and which law they follow.

The post's law: every example adds one constant to the log-odds, a line in n. Beside it a saturating curve, a power
law, and the exact Bayesian reader of the family (:func:`~bayes.posterior`). Each is fitted
after few examples and judged after more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.bayes import posterior, predictive
from talking_heads_utils.experiments.icl.scores import right_log_odds
from talking_heads_utils.forward.ends import logits_in_blocks
from talking_heads_utils.prompts.functions import Examples, Family
from talking_heads_utils.prompts.questions import Numbers, asked_at
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

LINE, SATURATING, POWER, READER = "a line (the post)", "saturating", "power law", "exact Bayesian reader"
LAWS = (LINE, SATURATING, POWER, READER)
TRUSTS = (
    0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.999,
)  # fmt: skip  # probabilities that a label is right, one for each reader


@torch.no_grad()
def asked_logits(
    bridge: TransformerBridge, prompts: PromptSet, numbers: Numbers, *, batch: int = 64
) -> Float[Tensor, "n n_asked n_numbers"]:
    """Logits of the numbers at every place where an answer is asked for: one pass over each prompt."""
    places = torch.stack(asked_at(prompts), 1)
    blocks = logits_in_blocks(bridge, prompts.tokens, places, batch=batch)
    return torch.cat([logits[..., numbers.ids] for _, logits in blocks])


def model_log_odds(
    bridge: TransformerBridge, prompts: PromptSet, numbers: Numbers, clean: Int[Tensor, "n n_examples"]
) -> Float[Tensor, "n n_examples"]:
    """Log-odds of y_k's right value among all numbers after k = 0, 1, ... examples, in nats: one pass over each prompt.

    clean: the right value at each example, which a noisy prompt need not show.
    """
    asked = asked_logits(bridge, prompts, numbers).unbind(1)
    return torch.stack([right_log_odds(at, right, numbers) for at, right in zip(asked, clean.T)], 1)


def reader_log_odds(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"] | None = None
) -> Float[Tensor, "n n_pairs"]:
    """The exact reader's log-odds of the right value at pair k after the k pairs before it, in nats, cut off at odds
    of 10^12."""
    belief = posterior(family, examples.x, examples.y, prior)[:, :-1]
    chance = predictive(family, belief, examples.x).gather(2, examples.clean[..., None])[..., 0]
    return chance.logit(eps=1e-12)


def trusting_readers(
    family: Family, examples: Examples, prior: Float[Tensor, "n_functions"] | None = None
) -> Float[Tensor, "n_trusts n n_pairs"]:
    """:func:`reader_log_odds` of readers who believe that a label is right with each probability of :data:`TRUSTS`."""
    out = []
    for trust in TRUSTS:
        doubting = Family(family.n_a, family.n_b, family.n_x, 1 - trust, family.held_share, family.split_seed)
        out.append(reader_log_odds(doubting, examples, prior))
    return torch.stack(out)


def _shapes(law: str, n: Float[Tensor, "n_n"]) -> Float[Tensor, "n_grid n_n"]:
    """What a law lets grow, for every value of its searched number."""
    if law == LINE:
        return n[None]
    if law == SATURATING:
        return 1 - torch.exp(-n / torch.logspace(-0.7, 1.3, 41, dtype=torch.float64)[:, None])
    return n ** torch.logspace(-1.3, 0.3, 41, dtype=torch.float64)[:, None]


def _fit(shapes: Float[Tensor, "g n_n"], seen: int, y: Float[Tensor, "draws n_n"]) -> Float[Tensor, "draws n_n"]:
    """Least squares of ``slope * shape + start`` on the first ``seen`` points, with the best shape of the grid."""
    x = shapes[:, :seen] - shapes[:, :seen].mean(1, keepdim=True)
    middle = y[:, :seen].mean(1)
    slope = torch.einsum("gn,dn->dg", x, y[:, :seen]) / x.square().sum(1).clamp(min=1e-12)
    start = middle[:, None] - slope * shapes[:, :seen].mean(1)
    curves = slope[..., None] * shapes + start[..., None]
    best = (curves[..., :seen] - y[:, None, :seen]).square().sum(-1).argmin(1)
    return curves[torch.arange(len(y)), best]


def fit_laws(
    observed: Float[Tensor, "n n_n"],
    readers: Float[Tensor, "n_trusts n n_n"] | None,
    *,
    seen: int,
    n_boot: int = 500,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Float[Tensor, "n_n"]]]:
    """Fit every law to the mean log-odds after 0 .. seen - 1 examples and judge it on the rest.

    observed: log-odds per prompt after k examples. readers: those of :func:`trusting_readers` on the same prompts; the
    exact reader has its trust alone to fit, no slope and no start; None where there is none, as for words. Returns
    each law's curve and columns ``law, fitted, error, low, high, over_line, over_line_low, over_line_high, n``: root
    mean square error on the rest in nats, and that less the line's on the same prompts, each with 95% over prompts,
    every draw fitted anew.
    Raises :class:`OptionError` unless two points or more are fitted and one is left.
    """
    import pandas as pd

    n, n_n = observed.shape
    if not 2 <= seen < n_n:
        raise OptionError(f"Fit on 2 to {n_n - 1} of {n_n} points, not {seen}: the rest judges.")
    draws = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed))
    draws = torch.cat([torch.arange(n)[None], draws])  # the first draw is the prompts themselves
    weights = (
        torch.zeros(len(draws), n, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double()) / n
    )
    y = weights @ observed.double()
    steps = torch.arange(n_n, dtype=torch.float64)
    curves = {law: _fit(_shapes(law, steps), seen, y) for law in LAWS if law != READER}
    if readers is not None:
        means = torch.einsum("dn,tnk->dtk", weights, readers.double())
        best = (means[..., :seen] - y[:, None, :seen]).square().sum(-1).argmin(1)
        curves[READER] = means[torch.arange(len(y)), best]
    errors = {law: (curves[law][:, seen:] - y[:, seen:]).square().mean(1).sqrt() for law in curves}
    rows = []
    for law, error in errors.items():
        found, over = _with_ends(error), _with_ends(error - errors[LINE])
        rows.append(
            dict(law=law, fitted=1 if law == READER else 2 if law == LINE else 3, error=found[0], low=found[1],
                 high=found[2], over_line=over[0], over_line_low=over[1], over_line_high=over[2], n=n)
        )  # fmt: skip
    return pd.DataFrame(rows), {law: curve[0] for law, curve in curves.items()}


def fit_up_to(
    observed: Float[Tensor, "n n_n"],
    readers: Float[Tensor, "n_trusts n n_n"] | None,
    stops: Iterable[int],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """:func:`fit_laws` for several numbers of fitted points: its columns and ``seen``."""
    import pandas as pd

    return pd.concat(
        [fit_laws(observed, readers, seen=k, seed=seed)[0].assign(seen=k) for k in stops], ignore_index=True
    )


def _with_ends(draws: Float[Tensor, "n_draws"]) -> tuple[float, float, float]:
    """The first draw's value, which is that of the prompts themselves, and the 95% interval of the others."""
    low, high = torch.quantile(draws[1:], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return draws[0].item(), low, high


def fitted_trust(observed: Float[Tensor, "n n_n"], readers: Float[Tensor, "n_trusts n n_n"]) -> float:
    """The trust in labels whose reader comes closest to the mean log-odds at all points."""
    gap = (readers.double().mean(1) - observed.double().mean(0)).square().sum(1)
    return TRUSTS[int(gap.argmin())]
