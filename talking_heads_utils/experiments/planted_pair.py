"""A case whose answer is known by construction: one planted channel, and heads beside it with none."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.weights.heads import NO_NORM, HeadWeights, Processing, Source, grouped_index

PLANTED_WRITER = Component(0, 0, 2)
PLANTED_READER = Head(1, 0)
D_MODEL, D_HEAD = 128, 8
READER_SHARE = 0.8  # of the planted reader's squared norm that lies along the channel


def planted_pair(cosine: float = 1.0, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> HeadWeights:
    """Two layers of two heads. Component L0H0.2 writes at an angle to what L1H0's query reads; nothing else is planted.

    ``cosine`` is that of the angle between the two. L0H0's other components and the part of L0H0.2 that misses
    the reader lie in directions that L1H0 does not read at all; L0H1 and L1H1 are random. The scores that must
    come out are those of :func:`expected_scores`. Raises :class:`OptionError` for a cosine outside 0..1.
    """
    if not 0 <= cosine <= 1:
        raise OptionError(f"A cosine is 0 to 1, not {cosine}.")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(D_MODEL, D_MODEL))[0].T
    channel, writes, reads, values = basis.split([1, D_HEAD, D_HEAD - 1, D_MODEL - 2 * D_HEAD])
    W_Q, W_K, W_V = (normal(2, 2, D_MODEL, D_HEAD) for _ in range(3))
    W_O = normal(2, 2, D_HEAD, D_MODEL)
    planted = PLANTED_WRITER.component
    direction = writes.clone()
    direction[planted] = cosine * channel[0] + math.sqrt(1 - cosine**2) * writes[planted]
    singular_values = torch.linspace(2.0, 1.0, D_HEAD, dtype=torch.float64)
    W_V[0, 0] = values[:D_HEAD].T
    W_O[0, 0] = singular_values[:, None] * direction
    # the reader's query: the channel with READER_SHARE of the squared norm, the rest over directions nobody writes
    rest = math.sqrt((1 - READER_SHARE) / (D_HEAD - 1))
    W_Q[1, 0] = torch.cat([math.sqrt(READER_SHARE) * channel, rest * reads]).T
    W_K[1, 0] = torch.linalg.qr(normal(D_MODEL, D_HEAD))[0]
    W_Q, W_K, W_V, W_O = (W.to(dtype) for W in (W_Q, W_K, W_V, W_O))
    source = Source(f"planted pair (cosine {cosine:.2f}, seed {seed})", "planted")
    return HeadWeights(
        W_Q, W_K, W_V, W_O, torch.zeros(2, D_MODEL, dtype=dtype), grouped_index(2, 2), NO_NORM,
        Processing.default(NO_NORM), source,
    )  # fmt: skip


def expected_scores(cosine: float) -> Float[Tensor, "d_head"]:
    """Scores of L0H0's components into L1H0's query: cosine * sqrt(READER_SHARE) for the planted one, else 0."""
    scores = torch.zeros(D_HEAD)
    scores[PLANTED_WRITER.component] = cosine * math.sqrt(READER_SHARE)
    return scores
