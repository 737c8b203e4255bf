"""Join the folders of shards into one: of a sweep, which is then reduced to its aggregates, or of `reproduce`.

The parts must be of one run; a sweep's must hold every chunk between them. Otherwise nothing is copied. The aggregates,
steering.parquet and steering.json, are those of `sweep`: by list length and setting.

example:
  python -m talking_heads_utils merge runs/smollm2-0 runs/smollm2-1 --out runs/smollm2 --results data/results
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from talking_heads_utils.cli.sweep import add_results_argument, save_results
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="+", type=Path, metavar="FOLDER", help="folders of one run's shards")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the whole goes")
    add_results_argument(parser)


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils import resume
    from talking_heads_utils.experiments.positional.sweep import merge
    from talking_heads_utils.experiments.store import RUN

    for folder in filter(None, (args.out, args.results)):
        check_folder(folder)
    if lost := [part for part in args.parts if not os.path.isdir(part)]:
        raise OptionError(f"{str(lost[0])[:80]!r} is no folder of results.")
    if resume.Store.of(args.parts[0]).plan.get("run") != RUN:
        print(f"{args.out}: {merge(args.parts, args.out)} chunks")
        save_results(args.out, args.results)
    elif args.results is not None:
        raise OptionError("--results is for a sweep; these are results of reproduce, which --out holds as they are.")
    elif not any(resume.Store.of(part).names() for part in args.parts):
        raise OptionError(f"{args.parts[0]} holds a plan and no finished experiment: there is nothing to join.")
    else:
        print(f"{args.out}: {resume.merge(args.parts, args.out)} experiments")
