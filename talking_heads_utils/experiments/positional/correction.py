"""The honest baseline: a constant added to the logit of each list index, fitted on lists that choose.

What a steering vector or an edit gains beyond it cannot come from a liking for some places of a list.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PRIOR = 0.01  # penalty on the squared constants: without one they run away where every list is answered
N_STEPS, TOLERANCE = 50, 1e-9  # of Newton's method, per list


def fit(logits: Float[Tensor, "*sets n n_items"], index: Int[Tensor, "n"]) -> Float[Tensor, "*sets n_items"]:
    """Constants by which the answers' indices are likeliest under the softmax over the candidates, mean zero, for each
    set of logits by itself. Convex: Newton's method, its steps halved until they lower the loss."""
    logits = logits.double()
    counts = torch.nn.functional.one_hot(index, logits.shape[-1]).sum(0).double()
    constants = logits.new_zeros(*logits.shape[:-2], logits.shape[-1])
    for _ in range(N_STEPS):
        loss = _loss(logits, constants, counts)
        p = (logits + constants[..., None, :]).softmax(-1)
        slope = p.sum(-2) - counts + 2 * PRIOR * constants
        curvature = torch.diag_embed(p.sum(-2) + 2 * PRIOR) - p.mT @ p
        step = torch.linalg.solve(curvature, slope)
        if (step * slope).sum(-1).max() < TOLERANCE * len(index):
            break
        size = torch.ones_like(loss)
        for _ in range(N_STEPS):
            worse = _loss(logits, constants - size[..., None] * step, counts) > loss
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        constants = constants - size[..., None] * step
    return constants - constants.mean(-1, keepdim=True)


def _loss(logits: Tensor, constants: Tensor, counts: Tensor) -> Float[Tensor, "*sets"]:
    """Negative log-likelihood, less what no constant changes."""
    normal = (logits + constants[..., None, :]).logsumexp(-1).sum(-1)
    return normal - constants @ counts + PRIOR * constants.square().sum(-1)


def corrected(
    logits: Float[Tensor, "*sets n n_items"], constants: Float[Tensor, "*sets n_items"]
) -> Float[Tensor, "*sets n n_items"]:
    """Logits with the constants added."""
    return logits + constants[..., None, :]
