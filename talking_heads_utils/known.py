"""The models that the book knows by name: real ones pinned to a revision, and the small ones that ship with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from talking_heads_utils.errors import ModelError
from talking_heads_utils.files import data_dir, gpt2_source
from talking_heads_utils.settings import FINAL
from talking_heads_utils.weights.checkpoints import GGUF, as_folder
from talking_heads_utils.weights.packages import SMOLLM2, Package

PLANTED = "planted"
CONTROL = "planted, no channel"
GPT2_WEIGHTS = "gpt2-weights"  # the attention weights of GPT-2 small alone: see :func:`files.gpt2_source`
NAMED = (PLANTED, CONTROL, GPT2_WEIGHTS)  # beside the known and the shipped models


@dataclass(frozen=True)
class KnownModel:
    """A model that the book's chapters know.

    revision: what the Hub or a package gives is pinned to. prefix: the tokens that stand in front of every prompt, as
    text, ``""`` for none.
    """

    name: str
    revision: str
    n_params: int
    chapters: tuple[int, ...]
    prefix: str
    gated: bool = False
    package: Package | None = None  # where its file comes from instead of the Hub

    @property
    def shown(self) -> str:
        """What every figure of it must say it shows."""
        return f"{self.name}, real model" + (f", quantised to {self.package.quantised}" if self.package else "")

    def gigabytes(self, dtype: torch.dtype = torch.float32) -> float:
        """Memory that the weights alone take, in 10^9 bytes."""
        return self.n_params * dtype.itemsize / 1e9


def known_models() -> dict[str, KnownModel]:
    """The models of the book, by name."""
    models = (  # in front of a prompt TransformerLens' convention, where the tokenizer adds nothing
        KnownModel(
            "gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", n_params=124_439_808,
            chapters=(1, 2, 3, 4),  # its tokenizer keeps 0 to 361 whole, which chapter 4 needs
            prefix="<|endoftext|>",
        ),
        KnownModel(
            "EleutherAI/pythia-160m", "50f5173d932e8e61f858120bcb800b97af589f46", n_params=162_322_944,
            chapters=(1, 2, 3), prefix="<|endoftext|>",
        ),
        KnownModel(
            "meta-llama/Meta-Llama-3-8B", "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920", n_params=8_030_261_248,
            chapters=(4,), prefix="<|begin_of_text|>", gated=True,
        ),
        KnownModel(SMOLLM2.name, SMOLLM2.revision, 134_515_008, (1, 2, 3, 4), prefix="", package=SMOLLM2),
    )  # fmt: skip
    return {model.name: model for model in models}


def model_source(name_or_folder: str | Path, revision: str | None = None) -> tuple[str | Path, str | None]:
    """Where a model's checkpoint is, and its revision: folders of the book's own, known names pinned to theirs. A
    ``Path`` is always that folder, a string first a name.

    Raises :class:`ModelError` for a small model that does not ship.
    """
    if isinstance(name_or_folder, Path):
        return name_or_folder, revision
    asked = gpt2_source() if name_or_folder == GPT2_WEIGHTS else name_or_folder
    shipped, name_or_folder = shipped_models(), asked
    if asked.startswith("mini-"):
        asked = asked.removesuffix("/final")
    if asked.startswith("mini-") and asked not in shipped and not as_folder(asked).is_dir():
        raise ModelError(f"No small model {name_or_folder!r} ships with the book; there are {', '.join(shipped)}.")
    known = known_models().get(asked)
    return shipped.get(asked, name_or_folder), revision or (known.revision if known else None)


def is_real(name: str, revision: str | None) -> bool:
    """Whether these are the weights that a known name stands for: a folder of that name has no revision."""
    known = known_models().get(name)
    return known is not None and revision == known.revision


def shown_as(name: str) -> str:
    """What every figure of a model must say it shows."""
    if name == PLANTED:
        return "Planted model, the answer is known"
    if name == CONTROL:
        return "Planted model without its channel, the answer is known"
    if name == GPT2_WEIGHTS:
        return "GPT-2 small, real weights of its attention alone"
    if name.split("/")[0] in {shipped.split("/")[0] for shipped in shipped_models()}:
        return f"{name}, trained here, a toy"
    if Path(name).is_dir() or Path(name).suffix == GGUF:
        what = "folder" if Path(name).is_dir() else "file"
        return f"{Path(name).name}, weights of a {what}, not known to be a real model"
    return known.shown if (known := known_models().get(name)) else f"{name}, real model"


def shipped_models() -> dict[str, Path]:
    """The small models that come with the book: ``mini-token`` (trained to the end), ``mini-token/early`` and so on."""
    folders = sorted((data_dir() / "models").glob("*/*/config.json"))
    names = {f"{path.parent.parent.name}/{path.parent.name}": path.parent for path in folders}
    return {name.removesuffix(f"/{FINAL}"): folder for name, folder in names.items()}
