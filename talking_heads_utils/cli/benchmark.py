"""Measure ours beside the plain way: same process, same work, results compared.

Prints a table and writes data/benchmarks/<name>-<machine>.json (below --out), which the book shows. Run it from the
root of a checkout, on an idle machine.

example:
  python -m talking_heads_utils benchmark composition --weights gpt2
  python -m talking_heads_utils benchmark steering
  python -m talking_heads_utils benchmark icl
  python -m talking_heads_utils benchmark patch --repeats 1
  python -m talking_heads_utils benchmark channels --repeats 1
  python -m talking_heads_utils benchmark streaming
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from talking_heads_utils.cli.composition import add_weights_arguments
from talking_heads_utils.cli.options import add_device
from talking_heads_utils.files import check_folder, gpt2_source

BENCHMARKS = ("composition", "steering", "icl", "patch", "channels", "streaming")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHMARKS, help="what to measure")
    add_weights_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default: 3)")
    parser.add_argument(
        "--whole", action="store_true", help="streaming: all 32 layers too (a quarter of an hour on two cores)"
    )
    add_device(parser)
    parser.add_argument("--note", help="what a reader must know of the run, such as other work on the machine")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"), help="folder for the JSON file")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.cli.benchmarks import report
    from talking_heads_utils.device import check_device
    from talking_heads_utils.errors import OptionError
    from talking_heads_utils.weights.checkpoints import open_checkpoint

    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {args.repeats}.")
    check_folder(args.out)
    check_device(args.device)
    module = importlib.import_module(f"talking_heads_utils.cli.benchmarks.{args.name}")
    options: dict[str, Any] = {"repeats": args.repeats}
    about = {"weights": getattr(module, "ABOUT", None), **({"note": args.note} if args.note else {})}
    if args.name == "composition":
        weights = args.weights or gpt2_source()
        open_checkpoint(weights, args.revision)  # what is wrong with it is told here, not by a child
        options |= {"weights_from": weights, "revision": args.revision}
        about["weights"] = Path(weights).resolve().name
    elif args.name == "streaming":
        options["n_layers"] = (8, 32) if args.whole else (8,)
    else:
        options["device"] = args.device
    report(args.name, module.rows(**options), args.out, about, options.get("device", "cpu"))
