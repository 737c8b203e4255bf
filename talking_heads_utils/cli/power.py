"""How often the verdict rules of chapters 1 to 3 say what in planted worlds, whose truth is known.

The book's page of rules shows the table. The same number of worlds and seed give the same one.

example:
  python -m talking_heads_utils power --out data/power.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.cli.options import add_seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the table, a parquet file")
    parser.add_argument("--worlds", type=int, default=1000, help="of each kind (default: 1000)")
    add_seed(parser, "of the draws")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.errors import OptionError
    from talking_heads_utils.experiments.power import power_table
    from talking_heads_utils.files import check_folder, written_whole

    if args.worlds < 5:
        raise OptionError(f"--worlds must be at least 5, not {args.worlds}.")
    check_folder(args.out.parent)
    with written_whole(args.out) as part:
        power_table(args.worlds, args.seed).to_parquet(part, index=False)
