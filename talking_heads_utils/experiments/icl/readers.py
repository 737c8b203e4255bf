"""What log-odds may follow: readers that sum up the examples of a sequence, each in its own way."""

from __future__ import annotations

from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.experiments.icl.sequences import Sequences

BENDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # nats at which belief may saturate
HALF_LIVES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # examples

LogOdds = Float[Tensor, "n orders questions"]


class Reader(StrEnum):
    """What log-odds may follow."""

    EXACT = "exact"  # signed evidence times the log-odds of one label
    SATURATION = "saturation"  # the same, bending
    RECENCY = "recency"  # evidence that fades with distance
    LAST = "last"  # the last label, or the last of the asked kind
    COUNT = "count"  # the number of examples, in the direction of the majority


def candidates() -> list[tuple[Reader, float | None]]:
    return [
        (Reader.EXACT, None), *((Reader.SATURATION, bend) for bend in BENDS),
        *((Reader.RECENCY, life) for life in HALF_LIVES), (Reader.LAST, 0.0), (Reader.LAST, 1.0), (Reader.COUNT, None),
    ]  # fmt: skip


def features(reader: Reader, parameter: float, sequences: Sequences) -> LogOdds:
    """What a reader sums up before each question; log-odds are a multiple of it.

    exact: signed evidence times the log-odds of one label at the sequence's rate, in nats. saturation: the same,
    bending at ``parameter`` nats. recency: labels that lose half of their weight over ``parameter`` examples, times the
    same log-odds. last: the side of the last label, or, with parameter 1, of the last of the asked kind. count: the
    number of examples, for the side with more of them.
    """
    signed, sides = sequences.signed.double(), sequences.sides.double()
    if reader == Reader.EXACT:
        return sequences.weight * signed
    if reader == Reader.SATURATION:
        return parameter * (sequences.weight * signed / parameter).tanh()
    if reader == Reader.RECENCY:
        kept = 0.5 ** (1 / parameter)
        faded = [signed[..., 0]]
        for side in sides.unbind(-1):
            faded.append(kept * (faded[-1] + side))
        return sequences.weight * torch.stack(faded, -1)
    if reader == Reader.COUNT:
        return signed.sign() * torch.arange(signed.shape[-1])
    n_lines, before = signed.shape[-1], torch.ones(signed.shape[-1], signed.shape[-1] - 1).tril(-1).bool()
    alike = sequences.kinds[..., None] == sequences.kinds[..., None, :-1]
    seen = before & alike if parameter else before.expand(*signed.shape, -1)
    last = torch.where(seen, torch.arange(n_lines - 1), -1).amax(-1)
    return sides.gather(-1, last.clamp(min=0)).masked_fill(last < 0, 0)


def simulated(
    reader: Reader,
    sequences: Sequences,
    noise: float = 0.0,
    seed: int = 0,
    *,
    parameter: float = 4.0,
    scale: float = 1.0,
) -> LogOdds:
    """Log-odds of a reader that is known, ``scale`` times its :func:`features`.

    noise: standard deviation of what is added at every question of every order, over that of the log-odds without it at
    the last question.
    """
    plain = scale * features(reader, parameter, sequences)
    blur = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed), dtype=plain.dtype)
    return plain + noise * plain[..., -1].std() * blur


def without_bias(log_odds: LogOdds, sequences: Sequences) -> LogOdds:
    """Log-odds less what is due to the right label's being the first one, or to a liking of one rule.

    Both are fitted at every question by least squares beside the evidence; rules and asked kinds are balanced.
    """
    right, rule = 1.0 - 2.0 * sequences.right, (1.0 - 2.0 * sequences.rule)[:, None, None].expand_as(sequences.right)
    biases = torch.stack([right.double(), rule.double()], -1)
    X = torch.cat([features(Reader.EXACT, 0.0, sequences)[..., None], biases], -1).flatten(0, 1)  # [N, questions, 3]
    y = log_odds.double().flatten(0, 1)
    weights = torch.linalg.pinv(torch.einsum("nqa,nqb->qab", X, X)) @ torch.einsum("nqa,nq->qa", X, y)[..., None]
    return log_odds - (biases * weights[:, 1:, 0]).sum(-1)
