"""An edited checkpoint in the Hub's format, that any tool loads.

An edit is stated in processed weights; the file holds raw ones. With the norm's scale w and bias b in front of the
head: the change of ``W_O`` is the same (a write direction has no mean, so centring changes nothing), the change of
``W_Q`` is divided by w row by row, and the constants that would move along are taken off ``b_O`` and ``b_Q``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from talking_heads_utils.edits.algebra import Move, make, moves_of
from talking_heads_utils.edits.edits import OV, Changes, Edit, new_edit, save_edit
from talking_heads_utils.errors import EditError, OptionError
from talking_heads_utils.files import check_folder, written_whole
from talking_heads_utils.models import PLANTED, model_source
from talking_heads_utils.weights.checkpoints import INDEX, OTHER_FILES, Checkpoint, load_head_weights, open_checkpoint

EDIT_FILE = "edit.json"


def bake(model: str | Path, changes: Changes, folder: str | Path, matrix: str = OV) -> Path:
    """Write the edited checkpoint of a model, named as for ``load_model``, into a folder of its own; returns it.

    Any tool loads it. changes and matrix: as :func:`~talking_heads_utils.editing.edit` takes them; components are those
    of the processed weights, or of an edit's own. Beside config, tokenizer and safetensors the folder holds the edit.
    The weights keep the dtype they are stored in: in float32 the outputs equal those of an edited model to 1e-4, in a
    half type to its rounding.

    Raises :class:`OptionError` for a folder that holds something, :class:`EditError` for a model without a checkpoint
    that can be written, and as ``edit`` does; then nothing is written.

    >>> from talking_heads_utils.models import shipped_models
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
    if checkpoint.gguf is not None:
        raise EditError(f"{checkpoint.name} is a GGUF file, which no edit is written into. Apply the edit instead.")
    processing = changes.processing if isinstance(changes, Edit) else None
    weights = load_head_weights(source, revision=revision, processing=processing)
    edit = new_edit(weights, changes, matrix)
    changed = edited_tensors(checkpoint, moves_of(weights, edit), edit.processing.fold_ln)
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


def _write(checkpoint: Checkpoint, changed: dict[str, Tensor], edit: Edit, folder: Path) -> None:
    for path in sorted(set(checkpoint.files.values())):
        tensors = load_file(path)
        tensors |= {name: tensor.contiguous() for name, tensor in changed.items() if name in tensors}
        with written_whole(folder / path.name) as part:
            save_file(tensors, part, metadata={"format": "pt"})
    for name in ("config.json", INDEX, *OTHER_FILES):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    save_edit(edit, folder / EDIT_FILE)


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
