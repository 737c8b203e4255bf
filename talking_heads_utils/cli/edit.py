"""Write the edited checkpoint of a model into a folder that any tool loads.

The edit is a JSON file; talking_heads_utils.edits.edits.save_edit writes it. It names the model and the processing
it was made for, by a fingerprint of the weights and, where they are known, the file's sum and quantisation, and is
refused for any other. A GGUF file is written as float32 safetensors.

examples:
  python -m talking_heads_utils edit --model gpt2 --edit edit.json --out runs/gpt2-edited
  python -m talking_heads_utils edit --model smollm2 --scale "L20H0.0 x 2, L23H1 x 0" --out runs/smollm2-edited
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talking_heads_utils.labels import Component

SHOWN = 8  # changes that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model of the book, a Hub id, a folder or a GGUF file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--edit", type=Path, metavar="FILE", help="the edit, JSON")
    what.add_argument("--scale", metavar="EDIT", help="the edit as the table of gains has it: heads, or components of "
                      "them, and what they are multiplied by")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the checkpoint")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.edits.bake import EDIT_FILE, bake
    from talking_heads_utils.edits.edits import read_edit

    changes = read_edit(args.edit) if args.edit else _scaled(args.model, args.scale)
    folder = bake(args.model, changes, args.out)
    edit = read_edit(folder / EDIT_FILE)
    shown = [str(change) for change in edit.changes[:SHOWN]]
    shown += [f"and {more} more"] if (more := len(edit.changes) - SHOWN) > 0 else []
    print(f"{folder}: {args.model} with {len(edit.changes)} changes ({edit.processing.describe()}): {'; '.join(shown)}")


def _scaled(model: str, text: str) -> dict[str | Component, float]:
    """Component -> what its singular value is multiplied by."""
    from talking_heads_utils.errors import EditError
    from talking_heads_utils.experiments.editing.moves import Parts, parse
    from talking_heads_utils.known import PLANTED
    from talking_heads_utils.models import find_checkpoint
    from talking_heads_utils.weights.checkpoints import assembled

    if model == PLANTED:
        raise EditError("The planted model has no checkpoint that could be baked. Name another model.")
    return dict(Parts(assembled(find_checkpoint(model))).factors(parse(text)).items())
