"""The device that something is to run on."""

from __future__ import annotations

import torch

from talking_heads_utils.errors import OptionError


def check_device(name: str) -> str:
    """Raises :class:`OptionError` for a device that torch does not know or that is not there."""
    try:
        torch.zeros(1, device=name).item()  # a device without values, such as meta, is none
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"No device {name!r} can be used here ({str(error).splitlines()[0]}). Use cpu, or cuda with a GPU."
        ) from error
    return name
