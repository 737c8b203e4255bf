"""Write the scores of a model that ship with the book, so that its pages need no weights and no network.

All composition scores in float16, with the checkpoint's sum, the processing and the versions in the metadata.

With --quantised, instead: how far quantising the weights as in a GGUF file moves the scores, as JSON.

examples:
  python -m talking_heads_utils ship --weights gpt2 --out data/gpt2-small/composition.safetensors
  python -m talking_heads_utils ship --weights gpt2 --quantised --out data/gpt2-small/quantised.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.cli.composition import add_weights_arguments
from talking_heads_utils.files import check_file, gpt2_source

HELP = "the scores that the book ships, as float16 safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the scores")
    parser.add_argument("--quantised", action="store_true", help="write what quantising does to the scores instead")


def run(args: argparse.Namespace) -> None:
    import torch

    from talking_heads_utils.scores.scores import compute_scores, save_scores
    from talking_heads_utils.weights.checkpoints import load_head_weights

    check_file(args.out)
    if args.quantised:
        return _quantised(args)
    with torch.inference_mode():
        scores = compute_scores(load_head_weights(args.weights or gpt2_source(), revision=args.revision))
        save_scores(scores, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, of {scores.describe()}")


def _quantised(args: argparse.Namespace) -> None:
    from importlib.metadata import version

    import torch

    from talking_heads_utils import roles
    from talking_heads_utils.experiments.inhibition.quantised import quantised_frame, save_quantised
    from talking_heads_utils.provenance import versions
    from talking_heads_utils.scores.streaming import describe_checkpoint
    from talking_heads_utils.weights.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(args.weights or gpt2_source(), args.revision)
    shape = checkpoint.shape
    known = (checkpoint.family.name, shape.n_layers, shape.n_heads) == ("gpt2", 12, 12)
    with torch.inference_mode():
        frame = quantised_frame(
            checkpoint, roles=roles.gpt2_small_roles() if known else None, links=roles.IOI_LINKS if known else ()
        )
        about = describe_checkpoint(checkpoint) | {"versions": versions() | {"gguf": version("gguf")}}
    save_quantised(frame, about, args.out)
    print(frame.to_string(index=False))
