"""How much is run at once, in one place: a run that does not fit into memory is tried again with half of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from talking_heads_utils.errors import ModelError
from talking_heads_utils.progress import follow

T = TypeVar("T")
_DIVISOR: ContextVar[int] = ContextVar("divisor", default=1)
SMALLEST = 256  # a batch is cut to this part of its usual size, then it is given up


def size(usual: int) -> int:
    """How many prompts (or rows) to run at once where ``usual`` are, unless memory was short: one at least."""
    return max(1, usual // _DIVISOR.get())


def blocks(n: int, usual: int, what: str = "blocks of prompts") -> Iterator[slice]:
    """``n`` rows, :func:`size` of them at once, one block after the other; a bar follows if it takes long."""
    step = size(usual)
    return follow([slice(start, min(start + step, n)) for start in range(0, n, step)], what)


@contextmanager
def divided_by(divisor: int) -> Iterator[None]:
    """Within, every :func:`size` is cut to this part."""
    token = _DIVISOR.set(divisor)
    try:
        yield
    finally:
        _DIVISOR.reset(token)


def halving(work: Callable[[], T], say: Callable[[str], None] = print) -> T:
    """Do ``work``; each time memory runs out, say so and do it again with batches of half the size.

    Raises :class:`ModelError` when batches of 1/256 do not fit either.
    """
    divisor = 1
    while True:
        try:
            with divided_by(divisor):
                return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        divisor *= 2
        if divisor > SMALLEST:
            raise ModelError(f"Memory ran out even in batches of 1/{SMALLEST} ({reason}). Take a larger machine.")
        say(f"memory ran out; once more in batches of 1/{divisor} of the usual size")


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's error, the CPU allocator's, or Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
