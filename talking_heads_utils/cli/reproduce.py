"""Run every experiment of the chapters on one model, and write what the book shows.

Each experiment is a step of its own, written whole: stopped at any point, the same command goes on. Where memory runs
out, the step is tried again in batches of half the size. What an experiment depends on (revision, processing, seed, the
sum of its code and so on) is kept with it. What was made by other code is made again; results of another model, seed or
recipe are never overwritten.

The results lie in OUT/<model>/. A model that is no known real one goes to OUT/rehearsal-<name>/, a --quick run to
OUT/<model>-quick/: the book reads neither. Chapter 2's whole grid is a command of its own: `sweep`.

examples:
  python -m talking_heads_utils reproduce --model gpt2 --device cuda
  python -m talking_heads_utils reproduce --model meta-llama/Meta-Llama-3-8B --dtype bfloat16 --device cuda
  python -m talking_heads_utils reproduce --model planted --quick --out runs
all GPUs of the machines on which Ray was started, which must see --out:
  python -m talking_heads_utils reproduce --model gpt2 --device cuda --ray auto
"""

from __future__ import annotations

import argparse
from pathlib import Path

from talking_heads_utils.cli.options import PACKAGED, add_device, add_ray, add_seed, integers
from talking_heads_utils.errors import ResultError, TalkingHeadsError
from talking_heads_utils.files import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = f"a Hub id, a folder, a .gguf file, planted, a small model of the book, or {PACKAGED}"
    parser.add_argument("--model", required=True, help=names)
    parser.add_argument("--chapters", type=integers, metavar="1,2,3,4", help="default: those that suit the model")
    parser.add_argument("--out", type=Path, default=Path("data/results"), metavar="FOLDER",
                        help="folder of all results (default: data/results)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one prompt in ten, three list lengths, small grids")
    add_ray(parser, "experiments")
    parser.add_argument("--texts", type=_texts, metavar="FILE",
                        help="running text: FILE, openwebtext, or pydoc, Python's own (default)")  # fmt: skip
    add_device(parser, dtype=True)
    add_seed(parser, "of prompts and controls")


def _texts(text: str) -> Path | str:
    from talking_heads_utils.experiments.corpus import OPEN_WEB_TEXT_NAME, PYDOC

    return text if text in (OPEN_WEB_TEXT_NAME, PYDOC) else Path(text)


def run(args: argparse.Namespace) -> None:
    import torch

    from talking_heads_utils.device import check_device
    from talking_heads_utils.experiments.catalogue import chapters_of
    from talking_heads_utils.experiments.context import Context, is_own
    from talking_heads_utils.experiments.corpus import read_texts
    from talking_heads_utils.experiments.run import chosen, reproduce
    from talking_heads_utils.prompts.sets import check_seed

    chapters = args.chapters or chapters_of(args.model)
    experiments = chosen(chapters, of_own=is_own(args.model))
    check_seed(args.seed)
    check_folder(args.out)
    check_device(args.device)  # an experiment would take it for its model's own failing
    if isinstance(args.texts, Path):
        read_texts(args.texts)
    context = Context(args.model, args.seed, args.quick, args.device, getattr(torch, args.dtype), args.texts)
    folder, failed = reproduce(context, experiments, args.out, ray=args.ray)
    for name, error in failed.items():
        if not isinstance(error, TalkingHeadsError):
            error.add_note(f"in experiment {name} of {args.model}")
            raise error
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise ResultError(f"{len(failed)} of {len(experiments)} experiments are not finished; {told}")
    print(f"{folder}: all {len(experiments)} are there")
