"""Measure the channel into the mover of finished runs of `train`, one JSON file each.

The book's page on the models makes its table of seeds of them. What is there is not measured again.

example:
  python -m talking_heads_utils seeds runs/mini-token-0 runs/mini-token-1 --out data/seeds
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.files import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="the --out of a finished `train`")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the measures go")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.training.seeds import measure_all

    measure_all(args.runs, check_folder(args.out))
