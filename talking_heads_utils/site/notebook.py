"""What a chapter asks of the place where it runs: which model to add, on which device, and whether it fits there."""

from __future__ import annotations

import os
import sys

import torch

from talking_heads_utils import progress
from talking_heads_utils.batches import is_out_of_memory
from talking_heads_utils.device import free_memory
from talking_heads_utils.figures.page import building_book
from talking_heads_utils.models import find_checkpoint, known_models

MODEL_VARIABLE = "TALKING_HEADS_MODEL"  # a model for every chapter, such as a folder that stands in for a real one
ON_COLAB = "gpt2"
TOKEN = "HF_TOKEN"


def on_colab() -> bool:
    """Whether this runs in Google Colab."""
    return "google.colab" in sys.modules


def model_to_add() -> str | None:
    """The model that a chapter runs beside the book's own: by $TALKING_HEADS_MODEL, ``gpt2`` on Colab, else none."""
    return os.environ.get(MODEL_VARIABLE) or (ON_COLAB if on_colab() else None)


def show_bars() -> None:
    """Progress bars for whatever takes long, where a kernel runs; none in the pages of the book."""
    if not building_book():
        progress.show(always=True)


def device() -> str:
    """``cuda`` where there is a GPU that works, else ``cpu``."""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        return "cpu"
    return "cuda"


def prepare(model: str | None, dtype: torch.dtype = torch.float32) -> str:
    """Make ready for a model; one line on where it will run and whether that is enough.

    On Colab a gated model's token is taken from the secrets (``HF_TOKEN``), if it is there and allowed.
    """
    where = device()
    name = torch.cuda.get_device_name() if where == "cuda" else "no GPU, so the CPU"
    if model is None:
        return f"Here: {name}. No model is added to the book's own; set MODEL above to add one."
    known = known_models().get(model)
    if known is not None and known.gated and on_colab():
        _take_secret()
    needed = known.gigabytes(dtype) if known else _gigabytes(model, dtype)
    free = free_memory(torch.device(where))
    if free is None:
        return f"Here: {name}. {model} needs {needed:.1f} GB and some room to work."
    enough = "enough" if free > 1.3e9 * needed else "too little: take a larger GPU, a smaller model, or torch.bfloat16"
    return f"Here: {name}, {free / 1e9:.1f} GB free. {model} needs {needed:.1f} GB and some room to work: {enough}."


def _gigabytes(model: str, dtype: torch.dtype) -> float:
    """What a folder's or the Hub's files take, whatever they are loaded as; a GGUF file as it is dequantised."""
    checkpoint = find_checkpoint(model)
    if checkpoint.gguf is not None:
        return checkpoint.gguf.n_params * dtype.itemsize / 1e9
    files = set(checkpoint.files.values())
    return sum(path.stat().st_size for path in files) / 1e9


def _take_secret() -> None:
    """Colab's secret of the token's name, if the notebook may read it. Without it the download says what is missing."""
    from google.colab import userdata

    try:
        os.environ.setdefault(TOKEN, userdata.get(TOKEN))
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return


def dtype_for(model: str | None) -> torch.dtype:
    """``bfloat16`` for a known model of more than 20 GB in float32, else ``float32``."""
    known = known_models().get(model or "")
    return torch.bfloat16 if known is not None and known.gigabytes() > 20 else torch.float32
