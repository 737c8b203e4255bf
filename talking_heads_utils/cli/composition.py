"""Score how strongly every component of every head is read by every later head, from weights alone.

A component is one singular direction of a head's OV matrix, counted from the largest singular value. Its score
into a later head is the share of that head's matrix that lies along what the component writes:

    C = ||v M|| / ||M||     v: the unit direction the component writes
                            M: W_Q W_K^T (kind Q), W_K W_Q^T (kind K), W_V W_O (kind V) of the reader

A random direction scores 1/sqrt(d_model') in root mean square. Beside each score stand its z against sampled
random directions and its rank among all earlier components of the model (1 is the strongest).

examples:
  python -m talking_heads_utils composition --weights gpt2 --out gpt2.parquet
  python -m talking_heads_utils composition --weights ./my-checkpoint --out q.parquet --kinds Q --top 64
  python -m talking_heads_utils composition --weights ./model.Q4_K_M.gguf --out model.parquet --top 64
  python -m talking_heads_utils composition --weights gpt2 --out heads.parquet --head-level
  python -m talking_heads_utils composition --weights meta-llama/Meta-Llama-3-8B --out llama.parquet --top 64 --stream

A model that normalises queries and keys (qwen3) has no matrix W_Q W_K^T: only --kinds V can be had of it.

--stream is for checkpoints that do not fit in memory: a few reader layers are held at a time and every earlier layer is
read from its shard. Stopped at any point, also by kill -9, the same command goes on from the last finished reader layer
(they wait in FILE.parquet.parts); changed options or weights are refused. --readers scores some reader layers only.

columns: kind, writer_layer, writer_head, component, reader_layer, reader_head, score, z, rank, singular_value, gap.
gap is the distance to the nearest other singular value of that head, relative to its own: where it is near 0,
only the span of the two components means anything. --head-level has score and rank of whole heads instead
(Elhage et al. 2021), and null_rms beside them. Pairs whose reader is not in a later layer are undefined and have no
row. The processing of the weights and the sum of the checkpoint stand in the file's metadata
(talking_heads_utils.scores.files.read_about).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from talking_heads_utils.cli.options import PACKAGED, told
from talking_heads_utils.files import GPT2_VARIABLE, check_file, gpt2_source
from talking_heads_utils.settings import KINDS, N_RANDOM, SEED

HELP = "component-level composition scores of a model, as parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="where to write the table")
    parser.add_argument("--kinds", default=KINDS, help=f"inputs to score: Q, K, V or several (default: {KINDS})")
    parser.add_argument("--head-level", action="store_true", help="one row per pair of heads instead of per component")
    parser.add_argument("--top", type=int, metavar="K", help="keep the K best per reader and kind (default: all)")
    readers = told(_layers, "range FROM:TO of layers from 1 on; layer 0 has none to read")
    parser.add_argument("--readers", type=readers, metavar="FROM:TO",
                        help="reader layers from FROM up to, not including, TO (default: all)")  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="layer by layer, resumable, in little memory")
    parser.add_argument("--n-random", type=int, default=N_RANDOM, help=f"random directions behind each z ({N_RANDOM})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the random directions (default: {SEED})")


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint: the same for every command that reads one."""
    parser.add_argument(
        "--weights",
        type=_named,
        metavar="FOLDER_OR_ID",
        help="a checkpoint folder, a .gguf file or a Hub id of the family gpt2, gpt_neox, llama, mistral, qwen2 or "
        f"qwen3, of qwen3 for values alone, or {PACKAGED} (default: ${GPT2_VARIABLE}, else gpt2)",
    )
    parser.add_argument("--revision", help="commit, tag or branch of a Hub id")


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a variable not set?")
    return text


def _layers(text: str) -> range:
    start, stop = map(int, text.split(":"))
    if not 0 < start < stop:
        raise ValueError(f"{text} is no range of reader layers")
    return range(start, stop)


def run(args: argparse.Namespace) -> None:
    import torch

    from talking_heads_utils.errors import OptionError
    from talking_heads_utils.provenance import versions
    from talking_heads_utils.scores.composition import check_kinds
    from talking_heads_utils.scores.files import check_top

    if not 2 <= args.n_random <= 1_000_000:
        raise OptionError(f"--n-random must be at least 2, for a spread, and at most a million, not {args.n_random}.")
    if not 0 <= args.seed < 2**63:
        raise OptionError(f"--seed must be from 0 to 2^63 - 1, not {args.seed}.")
    check_file(args.out)
    check_top(args.top)
    about = {
        "kinds": check_kinds(args.kinds), "n_random": args.n_random, "seed": args.seed, "top": args.top,
        "level": "head" if args.head_level else "component", "versions": versions(),
    }  # fmt: skip
    with torch.inference_mode():
        rows, described = (_streamed if args.stream else _in_memory)(args, about)
    print(f"{args.out}: {rows:,} rows, {args.out.stat().st_size / 1e6:.1f} MB, of {described}")


def _in_memory(args: argparse.Namespace, about: dict[str, Any]) -> tuple[int, str]:
    """Rows of the table, and the model in one line."""
    from talking_heads_utils.components import write_directions
    from talking_heads_utils.provenance import describe_weights
    from talking_heads_utils.scores.composition import iter_composition
    from talking_heads_utils.scores.files import write_table
    from talking_heads_utils.weights.checkpoints import load_head_weights
    from talking_heads_utils.weights.families import check_bilinear

    weights = load_head_weights(args.weights or gpt2_source(), revision=args.revision)
    check_bilinear(weights.source, about["kinds"])
    readers = args.readers or range(1, weights.n_layers)
    directions, S = write_directions(weights)
    blocks = iter_composition(
        weights, about["kinds"], n_random=args.n_random, seed=args.seed, layers=readers, directions=directions,
    )  # fmt: skip
    about = describe_weights(weights) | about | {"readers": list(readers)}
    return write_table(blocks, S, args.out, about, top=args.top, by_head=args.head_level), weights.describe()


def _streamed(args: argparse.Namespace, about: dict[str, Any]) -> tuple[int, str]:
    """As :func:`_in_memory`, with a few layers in memory at a time."""
    from talking_heads_utils.scores.composition import check_readers
    from talking_heads_utils.scores.streaming import describe_checkpoint, stream_table
    from talking_heads_utils.weights.checkpoints import open_checkpoint
    from talking_heads_utils.weights.families import check_bilinear
    from talking_heads_utils.weights.heads import Source, describe

    checkpoint = open_checkpoint(args.weights or gpt2_source(), args.revision)
    check_bilinear(Source(checkpoint.name, checkpoint.family.name), about["kinds"])
    n_layers = checkpoint.shape.n_layers
    readers = check_readers(args.readers or range(1, n_layers), n_layers, checkpoint.name)
    about = describe_checkpoint(checkpoint) | about
    rows = stream_table(checkpoint, readers, args.out, about)
    return rows, describe(about["model"], about["processing"], about["d_model_effective"])
