"""Measure ours beside the plain way: same process, same work, results compared.

Prints a table and writes data/benchmarks/<name>-<machine>.json, which the book shows.

example:
  python -m talking_heads_utils benchmark composition --weights gpt2
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from talking_heads_utils.commands.composition import add_weights_arguments

HELP = "ours beside the plain way, with the results compared"
BENCHMARKS = ("composition",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHMARKS, help="what to measure")
    add_weights_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default: 3)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default: the book's data/benchmarks)")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.benchmarks import report
    from talking_heads_utils.errors import OptionError
    from talking_heads_utils.files import data_dir

    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {args.repeats}.")
    module = importlib.import_module(f"talking_heads_utils.benchmarks.{args.name}")
    rows = module.rows(args.weights, args.revision, args.repeats)
    report(args.name, rows, args.out or data_dir() / "benchmarks", {"weights": Path(args.weights).name})
