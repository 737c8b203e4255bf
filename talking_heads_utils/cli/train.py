"""Train one of the book's small models from nothing, on prompts drawn on the fly. IOI and Laundry List:

    mini-token    its mover's keys may read whatever earlier layers write
    mini-place    its mover's keys may read positions alone
    mini-free     no constraint: the negative control
    mini-narrow   like mini-token, with fewer dimensions to write to

    mini-icl      functions y = a x + b learned in context, with attention dropout
    mini-icl-plain, mini-icl-noisy   the same without dropout; with labels that are often wrong

Prints the accuracy as it goes; some recipes add rounds of steps while a kind of prompt is not solved and the round
before helped. The run's state is saved every 200 steps and at the end: stopped at any point, it goes on with --resume.
The data depend on the seed and the step alone, so on one machine the result is the same.

examples:
  python -m talking_heads_utils train mini-token --out runs/mini-token
  python -m talking_heads_utils train mini-token --out runs/mini-token --resume
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.cli.options import add_device, add_seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="one of the models above")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the run lives")
    add_seed(parser, "of the weights and the prompts")
    parser.add_argument("--resume", action="store_true", help="go on where the run in that folder stopped")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.prompts.sets import check_seed
    from talking_heads_utils.training.functions import FunctionsRun
    from talking_heads_utils.training.lists import ListsRun
    from talking_heads_utils.training.loop import Run, train
    from talking_heads_utils.training.spec import MiniSpec, spec_of

    spec, where = spec_of(args.name), (check_seed(args.seed), args.out, args.device)
    training: Run = ListsRun(spec, *where) if isinstance(spec, MiniSpec) else FunctionsRun(spec, *where)
    train(training, resume=args.resume, say=lambda line: print(line, flush=True))
    print(f"{args.out}: step {training.progress.step}, finished")
