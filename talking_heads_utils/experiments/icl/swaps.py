"""Heads and MLPs at the values that they have in the twin's run: the one engine of this chapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from talking_heads_utils.ablation import Mlp
from talking_heads_utils.experiments.icl.tasks import Asked
from talking_heads_utils.forward.engine import Forward
from talking_heads_utils.labels import Head

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

Part = Head | Mlp


class Where(StrEnum):
    """Where values are exchanged."""

    END = "end"
    ALL = "all"


class Into(StrEnum):
    """Whose run goes on: the prompt's own, with the twin's values (noising), or the twin's with the prompt's
    (denoising)."""

    CLEAN = "clean"
    TWIN = "twin"


class How(StrEnum):
    """What stands in place of a value."""

    EXCHANGE = "exchange"  # the other run's
    ZERO = "zero"


@dataclass(frozen=True)
class Ready:
    """A task's prompts and twins, run once."""

    asked: Asked
    clean: Forward
    twin: Forward


@dataclass(frozen=True)
class Said:
    """What is said at the last token, by prompt and variant.

    log_odds: of the right answer against the whole vocabulary, nats. top: the most likely token.
    """

    log_odds: Float[Tensor, "n k"]
    top: Int[Tensor, "n k"]

    def right(self, asked: Asked) -> Tensor:
        """Whether the most likely token is the right answer."""
        return self.top == asked.right[:, None]


@dataclass(frozen=True)
class Direct:
    """Direct effects at the last token on the logit of the right answer less that of the rival, which is the twin's
    most likely wrong answer; the final norm's scale is that of the untouched run. Variant 0 is the untouched run.

    heads: what each head writes. mlps: what each MLP writes. free: the same sums with each variant's own scale, by
    part likewise.
    """

    heads: Float[Tensor, "n k_1 n_layers n_heads"]
    mlps: Float[Tensor, "n k_1 n_layers"]


def ready(c: Context, asked: Asked, *, everywhere: bool = False) -> Ready:
    """Both runs. everywhere: keep what is needed to exchange at all positions."""
    raise NotImplementedError


def exchanged(
    r: Ready, sets: Sequence[Sequence[Part]], *, into: Into = Into.CLEAN, where: Where = Where.END,
    how: How = How.EXCHANGE, rest: bool = False,
) -> Said:  # fmt: skip
    """Each set of heads and MLPs exchanged together. rest: all heads but those of the set."""
    raise NotImplementedError


def direct(r: Ready, sets: Sequence[Sequence[Part]] = (), *, how: How = How.EXCHANGE) -> Direct:
    """Direct effects with nothing exchanged and with each set exchanged at the last token."""
    raise NotImplementedError
