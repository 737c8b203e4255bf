"""Write how far quantising the weights as in a GGUF file moves the composition scores of a checkpoint, as JSON.

example:
  python -m talking_heads_utils quantised --weights gpt2 --out data/gpt2-small/quantised.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from talking_heads_utils.cli.composition import add_weights_arguments
from talking_heads_utils.files import check_file, gpt2_source, written_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where to write the table")


def run(args: argparse.Namespace) -> None:
    from importlib.metadata import version

    import torch

    from talking_heads_utils.experiments.inhibition.quantised import quantised_frame
    from talking_heads_utils.provenance import versions
    from talking_heads_utils.scores.streaming import describe_checkpoint
    from talking_heads_utils.weights.checkpoints import open_checkpoint

    check_file(args.out)
    checkpoint = open_checkpoint(args.weights or gpt2_source(), args.revision)
    with torch.inference_mode():
        frame = quantised_frame(checkpoint)
        about = describe_checkpoint(checkpoint) | {"versions": versions() | {"gguf": version("gguf")}}
    content = {"about": about, "rows": json.loads(frame.round(6).to_json(orient="records"))}
    with written_whole(args.out) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(frame.to_string(index=False))
