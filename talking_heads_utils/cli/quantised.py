"""Write how far quantising the weights as in a GGUF file moves the composition scores of a checkpoint, as JSON.

example:
  python -m talking_heads_utils quantised --weights gpt2 --out data/gpt2-small/quantised.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.cli.composition import add_weights_arguments
from talking_heads_utils.files import check_file, gpt2_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where to write the table")


def run(args: argparse.Namespace) -> None:
    from importlib.metadata import version

    import torch

    from talking_heads_utils import roles
    from talking_heads_utils.experiments.inhibition.quantised import quantised_frame, save_quantised
    from talking_heads_utils.provenance import versions
    from talking_heads_utils.scores.streaming import describe_checkpoint
    from talking_heads_utils.weights.checkpoints import open_checkpoint

    check_file(args.out)
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
