"""Write the explorer of a model's composition scores: every score that stands out from chance, head by head.

--out FILE.html is a page of its own, to open in a browser; FILE.js is the data alone, as the book's page loads it.

example:
  python -m talking_heads_utils composition --weights ./my-checkpoint --out scores.safetensors
  python -m talking_heads_utils atlas --scores scores.safetensors --out explorer.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.files import check_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores", type=Path, metavar="FILE", help="what `composition` wrote (default: data/)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="where to write the page")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.figures.atlas import write_atlas
    from talking_heads_utils.scores.scores import load_scores, load_shipped_scores

    check_file(args.out)
    scores = load_scores(args.scores) if args.scores else load_shipped_scores()
    write_atlas(scores, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, of {scores.describe()}")
