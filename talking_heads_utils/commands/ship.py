"""Write the scores of a model that ship with the book, so that its pages need no weights and no network.

All composition scores in float16, with the checkpoint's sum, the processing and the versions in the metadata.

example:
  python -m talking_heads_utils ship --weights gpt2 --out data/gpt2-small/composition.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.commands.composition import add_weights_arguments
from talking_heads_utils.files import check_file, gpt2_source

HELP = "the scores that the book ships, as float16 safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="where to write the scores")


def run(args: argparse.Namespace) -> None:
    import torch

    from talking_heads_utils.channels.scores import compute_scores, save_scores
    from talking_heads_utils.weights.checkpoints import load_head_weights

    check_file(args.out)
    with torch.inference_mode():
        scores = compute_scores(load_head_weights(args.weights or gpt2_source(), revision=args.revision))
        save_scores(scores, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, of {scores.describe()}")
