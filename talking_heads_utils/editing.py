"""Editing single components of a model's weights: for the length of a ``with`` block, or baked into a checkpoint.

What each change does to a matrix stands in :mod:`talking_heads_utils.edits.algebra`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talking_heads_utils.edits import bake as baking
from talking_heads_utils.edits.apply import apply, weights_to_edit
from talking_heads_utils.edits.edits import OV, QK, REMOVE, ROTATE, SCALE, SET, Change, Edit, new_edit, read_edit
from talking_heads_utils.errors import EditError
from talking_heads_utils.labels import Component, as_component
from talking_heads_utils.models import as_bridge, model_source
from talking_heads_utils.weights.checkpoints import load_head_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["OV", "QK", "REMOVE", "ROTATE", "SCALE", "SET", "Change", "Edit", "bake", "edit", "read_edit"]
Changes = Mapping[str | Component, float] | Sequence[Change] | Change | Edit


@contextmanager
def edit(model: Any, changes: Changes, matrix: str = OV, *, tokenizer: Any = None) -> Iterator[TransformerBridge]:
    """The model with its weights edited; afterwards, also after an exception, every bit is as before.

    changes: component -> what its singular value is multiplied by (0 removes it, -1 flips it); or one or several
    :class:`~talking_heads_utils.edits.edits.Change`, which can also set a singular value or rotate a direction; or an
    edit that was made before. matrix: that of the mapping, ``OV`` or ``QK``. May be nested: the inner edit is stated in
    the untouched components and acts on what the outer one left.

    Raises, with the model untouched, :class:`EditError` for a change that makes no sense or a tensor that cannot be
    edited in place, :class:`LabelError` for a component that is not there, and as
    :func:`~talking_heads_utils.models.as_bridge` does.

    >>> from talking_heads_utils.planted.model import plant
    >>> bridge = plant().bridge
    >>> before = bridge.blocks[1].attn.W_O[0].norm().item()
    >>> with edit(bridge, {"L1H0.0": 0.0, "L1H0.1": 2}) as edited:
    ...     after = edited.blocks[1].attn.W_O[0].norm().item()
    >>> round(after / before, 2), bridge.blocks[1].attn.W_O[0].norm().item() == before
    (1.2, True)
    """
    bridge = as_bridge(model, tokenizer)
    made = changes if isinstance(changes, Edit) else new_edit(weights_to_edit(bridge), changes_of(changes, matrix))
    with apply(bridge, made):
        yield bridge


def bake(model: str | Path, changes: Changes, folder: str | Path, matrix: str = OV) -> Path:
    """Write the edited checkpoint of a model, named as for ``load_model``, into a folder of its own; returns it.

    Any tool loads it. changes and matrix as in :func:`edit`; components are those of the processed weights. Raises as
    :func:`talking_heads_utils.edits.bake.bake` does; then nothing is written.

    >>> import tempfile
    >>> from talking_heads_utils.models import shipped_models
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     baked = bake(shipped_models()["mini-token"], {"L1H0.0": 0.5}, Path(folder) / "edited")
    ...     (baked / "edit.json").is_file(), (baked / "model.safetensors").is_file()
    (True, True)
    """
    if not isinstance(changes, Edit):
        baking.check_bakeable(model)
        source, revision = model_source(model)
        changes = new_edit(load_head_weights(source, revision=revision), changes_of(changes, matrix))
    return baking.bake(model, changes, Path(folder))


def changes_of(changes: Mapping[str | Component, float] | Sequence[Change] | Change, matrix: str) -> tuple[Change, ...]:
    """Changes in any of the forms that :func:`edit` takes."""
    if isinstance(changes, Mapping):
        return tuple(Change(as_component(component), matrix, SCALE, factor) for component, factor in changes.items())
    found = (changes,) if isinstance(changes, Change) else tuple(changes)
    if odd := [change for change in found if not isinstance(change, Change)]:
        raise EditError(f"{odd[0]!r} is no change. Write {{'L8H10.1': 0.5}}, or Change('L8H10.1', 'OV', 'set', 2.0).")
    return found
