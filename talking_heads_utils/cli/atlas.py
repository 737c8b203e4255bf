"""Write what the explorer page draws: every score of a model that stands out from chance, in one compressed script.

The book's build writes the one of GPT-2 small by itself, from the scores in data/. For another model, score it first
and let the page's data-source name the new file.

example:
  python -m talking_heads_utils ship --weights ./my-checkpoint --out scores.safetensors
  python -m talking_heads_utils atlas --scores scores.safetensors --out atlas-mine.js
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.files import check_file

HELP = "what the explorer page draws, as one compressed script"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores", type=Path, metavar="FILE.safetensors", help="what `ship` wrote (default: data/)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.js", help="where to write the script")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.figures.atlas import write_atlas
    from talking_heads_utils.scores.scores import load_scores, load_shipped_scores

    check_file(args.out)
    scores = load_scores(args.scores) if args.scores else load_shipped_scores()
    write_atlas(scores, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, of {scores.describe()}")
