"""The device that something is to run on, and the memory that it has left."""

from __future__ import annotations

from pathlib import Path

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


def free_memory(device: torch.device | None) -> int | None:
    """Bytes that can still be had on a device, or on all GPUs together (of the CPU where there is none); None where
    that cannot be told."""
    if device is None:
        gpus = [free_memory(torch.device("cuda", i)) or 0 for i in range(torch.cuda.device_count())]
        return sum(gpus) if gpus else free_memory(torch.device("cpu"))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if device.type == "cpu" else []
    except OSError:  # no Linux
        lines = []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
