"""Progress bars: loops that may take long say what they go through; nothing is drawn unless it was asked for.

A command asks for bars on a terminal, a chapter where a kernel runs (:func:`~site.notebook.show_bars`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
AFTER = 2.0  # seconds; a loop that ends sooner shows no bar
_OFF, _ON_TERMINALS, _ALWAYS = range(3)
_shown = _OFF


def show(always: bool = False) -> None:
    """From now on draw bars on a terminal, or wherever the output goes, such as a notebook."""
    global _shown
    _shown = _ALWAYS if always else _ON_TERMINALS


def hide() -> None:
    """Draw none, as at the start."""
    global _shown
    _shown = _OFF


def follow(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one after the other, with a bar if the loop takes longer than :data:`AFTER` seconds. what: in the
    plural, ``"blocks of prompts"``."""
    if _shown == _OFF or len(items) < 2:
        yield from items
        return
    from tqdm.auto import tqdm

    yield from tqdm(items, desc=what, delay=AFTER, leave=False, disable=None if _shown == _ON_TERMINALS else False)
