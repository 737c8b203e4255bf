"""Units of work that outgrow one machine, on Ray: the optional extra ``cluster``.

A unit writes parts of one store (:mod:`talking_heads_utils.resume`) that all machines see, each whole or not at all,
and does nothing where they are there. So it may be run twice: what a lost worker held is run again, and where all is
lost the same command goes on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from talking_heads_utils.errors import OptionError, ResultError

RETRIES = 3  # of a unit whose worker was lost, as one is that runs out of memory again and again


@dataclass(frozen=True)
class Unit:
    """``run(*arguments)`` on some worker, which imports it. after: units whose parts it reads, where they are run too.

    An error of a unit is its own: those after it make for themselves what they need of it.
    """

    name: str
    run: Callable[..., None]
    arguments: tuple[Any, ...] = field(default=())
    after: tuple[str, ...] = ()


def run_units(
    units: Sequence[Unit], address: str, say: Callable[[str], None] = print, *, gpus: int = 0, memory: int = 0
) -> dict[str, Exception]:
    """Run them all on the Ray that listens at ``address`` (``auto``: the one of this machine); errors by unit.

    gpus, memory in bytes: what one unit takes of a machine beside one CPU. Raises :class:`OptionError` where Ray is not
    installed or nothing listens there.
    """
    ray = _connected(address)
    try:
        remote = ray.remote(num_gpus=gpus, memory=memory, max_retries=RETRIES)(_done)
        refs: dict[str, Any] = {}
        for unit in units:
            before = [refs[name] for name in unit.after if name in refs]
            refs[unit.name] = remote.options(name=unit.name).remote(unit.run, unit.arguments, *before)
        names, failed = {ref: name for name, ref in refs.items()}, {}
        while left := list(refs.values()):
            (ref,), _ = ray.wait(left)
            del refs[name := names[ref]]
            if (error := _error_of(ray, ref)) is not None:
                failed[name] = error
            say(f"{len(units) - len(refs)}/{len(units)} {name}" + (f": {error}" if error else ""))
        return failed
    finally:
        ray.shutdown()


def _done(run: Callable[..., None], arguments: tuple[Any, ...], *before: Any) -> Exception | None:
    """On a worker: an error is given back, not raised, since trying again would end alike."""
    try:
        run(*arguments)
    except Exception as error:  # whatever it is, it is this unit's alone
        return error
    return None


def _error_of(ray: Any, ref: Any) -> Exception | None:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return ResultError(f"its worker was lost {RETRIES + 1} times: {str(error).splitlines()[0]}")


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise OptionError("--ray needs the extra cluster: pip install 'talking-heads-utils[cluster]'.") from error
    try:
        if ":" in address:  # Ray itself would try for minutes
            host, port = address.removeprefix("ray://").rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"No Ray answers at {address!r}: start one with 'ray start --head'. ({str(error).splitlines()[0][:120]})"
        ) from error
    return ray
