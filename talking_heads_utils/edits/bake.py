"""An edited checkpoint in the Hub's format, that any tool loads.

An edit is stated in processed weights; the file holds raw ones. With the norm's scale w and bias b in front of the
head: the change of ``W_O`` is the same (a write direction has no mean, so centring changes nothing), the change of
``W_Q`` is divided by w row by row, and the constants that would move along are taken off ``b_O`` and ``b_Q``.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from talking_heads_utils.edits.edits import OV, Changes, Edit, Move, make, moves_of, new_edit, save_edit
from talking_heads_utils.errors import EditError, OptionError
from talking_heads_utils.files import check_folder, written_whole
from talking_heads_utils.known import PLANTED, model_source
from talking_heads_utils.weights.checkpoints import INDEX, OTHER_FILES, SINGLE, Checkpoint, assembled, open_checkpoint

if TYPE_CHECKING:
    from talking_heads_utils.weights.gguf import GgufFile

EDIT_FILE = "edit.json"


def bake(model: str | Path, changes: Changes, folder: str | Path, matrix: str = OV) -> Path:
    """Write the edited checkpoint of a model, named as for ``load_model``, into a folder of its own; returns it.

    Any tool loads it. changes and matrix: as :func:`~talking_heads_utils.editing.edit` takes them; components are those
    of the processed weights, or of an edit's own. Beside config, tokenizer and safetensors the folder holds the edit.
    The weights keep the dtype they are stored in, those of a GGUF file become float32: there the outputs equal those of
    an edited model to 1e-4, in a half type to its rounding.

    Raises :class:`OptionError` for a folder that holds something, :class:`EditError` for a model without a checkpoint
    and for an edit of another file, and as ``edit`` does; then nothing is written.

    >>> from talking_heads_utils.known import shipped_models
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     baked = bake(shipped_models()["mini-token"], {"L1H0.0": 0.5}, Path(folder) / "edited")
    ...     (baked / "edit.json").is_file(), (baked / "model.safetensors").is_file()
    (True, True)
    """
    folder = check_folder(Path(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} is there already and not empty. Name a new folder.")
    if model == PLANTED:
        raise EditError("The planted model has no checkpoint that could be baked. Apply the edit instead.")
    source, revision = model_source(model)
    checkpoint = open_checkpoint(source, revision)
    weights = assembled(checkpoint, processing=changes.processing if isinstance(changes, Edit) else None)
    edit = new_edit(weights, changes, matrix)
    changed = edited_tensors(checkpoint, moves_of(weights, edit), edit.processing.fold_ln)
    edit = replace(edit, sha256=weights.source.sha256, stored=weights.source.dtype)
    return _written(folder, lambda part: _write(checkpoint, changed, edit, part))


@torch.no_grad()
def edited_tensors(checkpoint: Checkpoint, moves: list[Move], fold_ln: bool) -> dict[str, Tensor]:
    """Tensor name -> the tensor after the edit, in the dtype that it is stored in. Only those that change.

    Raises :class:`EditError` where a constant would have to move and the checkpoint has no bias that could hold it, and
    where a value is too large for its dtype.
    """
    found = {}
    for layer in sorted({move.head.layer for move in moves}):
        names = {part: checkpoint.prefix + name for part, name in checkpoint.family.tensor_names(layer).items()}
        tensors = checkpoint.read_layer(layer, torch.float64)
        dtypes = checkpoint.read_layer(layer, None)
        before = {part: tensor.clone() for part, tensor in tensors.items()}
        raw = checkpoint.family.unpack(tensors, checkpoint.shape)  # views: what is written to them lands in the tensors
        for move in (move for move in moves if move.head.layer == layer):
            make(raw, move, unfold=fold_ln)
        for part, tensor in tensors.items():
            if not torch.equal(tensor, before[part]):
                found[names[part]] = stored = tensor.to(dtypes[part].dtype)
                if not torch.isfinite(stored).all():
                    raise EditError(f"The edit makes {names[part]} infinite in {stored.dtype}. Take smaller values.")
    return found


def _write(checkpoint: Checkpoint, changed: Mapping[str, Tensor], edit: Edit, folder: Path) -> None:
    save_edit(edit, folder / EDIT_FILE)
    if checkpoint.gguf is not None:
        return _write_gguf(checkpoint.gguf, changed, folder)
    for path in sorted(set(checkpoint.files.values())):
        tensors = load_file(path)
        tensors |= {name: tensor.contiguous() for name, tensor in changed.items() if name in tensors}
        with written_whole(folder / path.name) as part:
            save_file(tensors, part, metadata={"format": "pt"})
    for name in ("config.json", INDEX, *OTHER_FILES):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)


def _write_gguf(file: GgufFile, changed: Mapping[str, Tensor], folder: Path) -> None:
    """Config and tokenizer that the file's metadata describe, and its tensors dequantised, one after the other."""
    from talking_heads_utils.weights.gguf_model import described_by, tokenizer_of

    described, model, own = described_by(file)
    described.architectures, described.dtype = [model.__name__], torch.float32
    described.save_pretrained(folder)
    tokenizer_of(file).save_pretrained(folder)
    edited = {file.names[name]: tensor for name, tensor in changed.items()}
    shapes = {name: tuple(file.empty(stored).shape) for name, stored in own.items()}
    found = (edited[at] if at in edited else file.tensor(at) for at in own.values())
    save_streamed(folder / SINGLE, shapes, found)


def save_streamed(path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[Tensor]) -> None:
    """Write tensors in float32 as a safetensors file, one in memory at a time. shapes: name -> shape, in the order of
    ``tensors``. Raises :class:`OptionError` where nothing can be written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.to(torch.float32).contiguous().numpy().astype("<f4", copy=False).data)


def _written(folder: Path, write: Callable[[Path], None]) -> Path:
    """``folder``, made by ``write`` in a place beside it and moved there once it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as part:
            target = Path(part) / folder.name
            target.mkdir()
            write(target)
            if folder.is_dir():
                folder.rmdir()
            target.replace(folder)
    except OSError as error:
        raise OptionError(f"Cannot write {folder}: {error.strerror or error}. Choose another place.") from error
    return folder
