"""Names: ``L8H10`` is head 10 of layer 8, ``L8H10.1`` its component 1. All counts start at 0."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from talking_heads_utils.errors import LabelError

_HEAD = re.compile(r"L(\d+)H(\d+)")
_COMPONENT = re.compile(r"L(\d+)H(\d+)\.(\d+)")


@dataclass(frozen=True, order=True)
class Head:
    """One attention head."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """``"L8H10"`` -> ``Head(8, 10)``. Raises :class:`LabelError` for anything else (``8.10`` is a number)."""
        if (match := _HEAD.fullmatch(text.strip())) is None:
            raise LabelError(f"{text!r} is not a head. Write layer and head as in 'L8H10'.")
        return cls(*map(int, match.groups()))


@dataclass(frozen=True, order=True)
class Component:
    """One singular component of a head's OV matrix, counted from the largest singular value."""

    layer: int
    head: int
    component: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}.{self.component}"

    @property
    def of_head(self) -> Head:
        return Head(self.layer, self.head)

    @classmethod
    def parse(cls, text: str) -> Component:
        """``"L8H10.1"`` -> ``Component(8, 10, 1)``. Raises :class:`LabelError` for anything else."""
        if (match := _COMPONENT.fullmatch(text.strip())) is None:
            raise LabelError(f"{text!r} is not a component. Write it as in 'L8H10.1'.")
        return cls(*map(int, match.groups()))


class Mlp(NamedTuple):
    """The MLP of one layer, written ``L3.mlp``."""

    layer: int

    def __str__(self) -> str:
        return f"L{self.layer}.mlp"


def as_head(head: Head | str) -> Head:
    """A head given either way."""
    return Head.parse(head) if isinstance(head, str) else head


def as_component(component: Component | str) -> Component:
    """A component given either way."""
    return Component.parse(component) if isinstance(component, str) else component


def heads_in(layers: Iterable[int], n_heads: int) -> list[Head]:
    """Every head of some layers, layer by layer."""
    return [Head(layer, head) for layer in layers for head in range(n_heads)]
