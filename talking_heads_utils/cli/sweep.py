"""Steer a model over a whole grid of settings and write what movers and logits do, chunk by chunk.

Each setting adds a multiple of three components' write directions to the residual stream at the last token, every
component in its own layer. Stopped at any point, also by kill -9, the same command goes on; changed options are
refused. --ray shares its chunks over GPUs or machines, which must see --out.

Without --writers it takes those of chapter 2: the triple chosen from the inhibition heads, and the name movers that
read them.

When the last chunk is there the sweep is reduced to steering.parquet and steering.json (for each list length and
setting the item attended to, the item answered and the share of right answers; how it was made): below --out, or with
--results in a folder of its own for each model. The book reads data/results.

examples:
  python -m talking_heads_utils sweep --model smollm2 --n-items 4,6 --logits --out runs/smollm2 --results data/results
  python -m talking_heads_utils sweep --model gpt2 --writers L7H3.1,L8H6.2,L8H10.1 --movers L9H6,L9H9 --n-items 5,10,20
      --out runs/gpt2
  python -m talking_heads_utils sweep --model mini-token --writers L0H3.0,L0H3.1,L1H1.0 --movers L3H0 --n-items 8
      --values=-20:20:10 --prompts 50 --out runs/mini

all GPUs of the machines on which Ray was started:
  python -m talking_heads_utils sweep ... --device cuda --ray auto
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from talking_heads_utils.cli.options import PACKAGED, add_device, add_ray, add_seed, integers, told
from talking_heads_utils.errors import OptionError
from talking_heads_utils.files import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = f"planted, a small model of the book, a Hub id, a folder, a .gguf file, or {PACKAGED}"
    parser.add_argument("--model", required=True, help=names)
    parser.add_argument("--writers", type=_names, default=[], metavar="L8H10.1,...",
                        help="components to steer (default: those of chapter 2, and its movers)")  # fmt: skip
    parser.add_argument("--movers", type=_names, default=[], metavar="L9H9,...", help="heads whose attention is read")
    parser.add_argument("--n-items", type=integers, default=[5], metavar="5,10", help="list lengths (default: 5)")
    parser.add_argument("--prompts", type=int, default=250, help="prompts per list length (default: 250)")
    parser.add_argument("--part", choices=("selection", "held_out", "new_wording", "new_objects"), default="held_out",
                        help="which lists: those to choose settings on, or others (default: held_out)")  # fmt: skip
    values = told(values_of, "range FROM:TO:STEP that ends at TO")
    parser.add_argument("--values", type=values, default="-100:100:10", metavar="FROM:TO:STEP",
                        help="of each alpha, both ends included (default: -100:100:10)")  # fmt: skip
    parser.add_argument("--logits", action="store_true", help="read the candidates' logits too (all layers run)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where plan and chunks go")
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help="aggregates go to FOLDER/<model>/ (default: into --out)")  # fmt: skip
    add_ray(parser, "chunks")
    parser.add_argument("--batch-size", type=int, help="settings times prompts run together (default: by memory)")
    add_device(parser, dtype=True)
    add_seed(parser, "of the prompts")


def run(args: argparse.Namespace) -> None:
    from talking_heads_utils.experiments.positional.sweep import run_sweep

    if args.batch_size is not None and args.batch_size < 1:
        raise OptionError(f"--batch-size is 1 or more, not {args.batch_size}.")
    for folder in filter(None, (args.out, args.results)):
        check_folder(folder)
    bridge, tokenizer, plan = _prepare(args)
    run_sweep(bridge, tokenizer, plan, args.out, batch_size=args.batch_size, ray=args.ray, device=args.device)
    print(f"{args.out}: all {len(plan.chunks)} chunks are there; {plan.n_settings:,} settings each")
    save_results(args.out, args.results)


def _prepare(args: argparse.Namespace) -> tuple:
    """``(bridge, tokenizer, plan)``; the plan is checked before a model is loaded, as far as it can be."""
    import torch

    import talking_heads_utils
    from talking_heads_utils.experiments.positional.sweep import Plan, usual
    from talking_heads_utils.models import load_with_tokenizer, revision_of

    def plan(writers: list[str], movers: list[str], revision: str | None = None) -> Plan:
        return Plan(
            model=args.model, writers=tuple(writers), movers=tuple(movers), n_items=args.n_items,
            n_prompts=args.prompts, seed=args.seed, values=args.values, logits=args.logits,
            dtype=args.dtype, code=talking_heads_utils.__version__, part=args.part, revision=revision,
        )  # fmt: skip

    dtype = getattr(torch, args.dtype)
    if args.writers:
        plan(args.writers, args.movers)
        bridge, tokenizer = load_with_tokenizer(args.model, args.device, dtype)
        return bridge, tokenizer, plan(args.writers, args.movers, revision_of(args.model))
    plan(["L0H0.0"] * 3, args.movers or ["L1H0"])
    context, writers, movers = usual(args.model, args.device)
    found = plan([*map(str, writers)], args.movers or [*map(str, movers)], revision_of(args.model))
    return context.bridge.to(dtype), context.tokenizer, found


def save_results(folder: Path, results: Path | None) -> None:
    """Reduce a finished sweep and say where that went."""
    from talking_heads_utils.experiments.positional.sweep import aggregate, save
    from talking_heads_utils.experiments.result_files import results_folder

    about, table = aggregate(folder)
    plan = about["plan"]
    path = save(about, table, results_folder(results, plan["model"], plan["revision"]) if results else folder)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, of {about['shows']}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def values_of(text: str) -> list[float]:
    """``-100:100:10`` as numbers, both ends included. Raises ``ValueError`` for anything else, as argparse wants."""
    start, stop, step = map(float, text.split(":"))
    steps = (stop - start) / step if step > 0 else math.nan
    if not (0 <= steps < 10_000 and step < math.inf):  # what is no number is neither
        raise ValueError(f"{text} is no range from:to:step")
    if abs(start + round(steps) * step - stop) > 1e-6 * max(1.0, abs(stop)):
        raise ValueError(f"the steps of {text} do not end there")
    return [start + i * step for i in range(round(steps) + 1)]
