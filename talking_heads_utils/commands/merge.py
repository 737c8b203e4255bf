"""Join the folders of a sweep's shards into one, and write its summary.

The parts must be of one plan and hold every chunk between them; otherwise nothing is copied. summary.parquet holds
means by list length, place of the answer, half of the prompts and setting.

example:
  python -m talking_heads_utils merge runs/gpt2-0 runs/gpt2-1 --out runs/gpt2
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "join the shards of a sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="+", type=Path, metavar="FOLDER", help="folders of one sweep's shards")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the whole goes")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.files import written_whole
    from talking_heads_utils.steering.sweep import merge, summary

    n = merge(args.parts, args.out)
    table = summary(args.out)
    with written_whole(args.out / "summary.parquet") as part:
        table.to_parquet(part)
    print(f"{args.out}: {n} chunks, summary.parquet with {len(table):,} rows")
