"""Write the edited checkpoint of a model into a folder that any tool loads.

The edit is a JSON file; talking_heads_utils.edits.edits.save_edit writes it. It names the model and the processing
it was made for, by a fingerprint of the weights and, where they are known, the file's sum and quantisation, and is
refused for any other. A GGUF file is written as float32 safetensors.

examples:
  python -m talking_heads_utils edit --model gpt2 --edit edit.json --out runs/gpt2-edited
  python -m talking_heads_utils edit --model smollm2 --edit edit.json --out runs/smollm2-edited
"""

from __future__ import annotations

import argparse
from pathlib import Path

SHOWN = 8  # changes that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model of the book, a Hub id, a folder or a GGUF file")
    parser.add_argument("--edit", type=Path, required=True, metavar="FILE", help="the edit, JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the checkpoint")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.edits.bake import bake
    from talking_heads_utils.edits.edits import read_edit

    edit = read_edit(args.edit)
    folder = bake(args.model, edit, args.out)
    shown = [str(change) for change in edit.changes[:SHOWN]]
    shown += [f"and {more} more"] if (more := len(edit.changes) - SHOWN) > 0 else []
    changes = "; ".join(shown)
    print(f"{folder}: {args.model} with {len(edit.changes)} changes ({edit.processing.describe()}): {changes}")
