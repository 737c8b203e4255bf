"""What a result was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import talking_heads_utils
from talking_heads_utils.weights.heads import HeadWeights

LIBRARIES = ("torch", "transformer-lens", "transformers", "numpy", "plotly")


def versions() -> dict[str, str]:
    """This package, Python and the libraries that results depend on; those that are not installed are left out."""
    found = {"talking-heads-utils": talking_heads_utils.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_weights(weights: HeadWeights) -> dict[str, Any]:
    """Model, checkpoint and processing, as plain values for a file's metadata."""
    source, processing = weights.source, weights.processing
    return {
        "model": source.name, "family": source.family, "revision": source.revision,
        "checkpoint_sha256": source.sha256, "checkpoint_dtype": source.dtype, "norm": weights.norm,
        "processing": processing.describe(), "fold_ln": processing.fold_ln, "center": processing.center,
        "n_layers": weights.n_layers, "n_heads": weights.n_heads, "d_model": weights.d_model, "d_head": weights.d_head,
        "d_model_effective": weights.d_model_effective, "rotary_distance": None if weights.rotary is None else 0,
    }  # fmt: skip


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine that a result was measured on, in a few words: its name is short enough for a file name."""
    import torch

    cores = os.cpu_count() or 1
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    name = gpu.lower().replace(" ", "-") if gpu else f"{platform.system().lower()}-{platform.machine()}-{cores}cores"
    return {"name": name, "cpu": _cpu_name(), "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
