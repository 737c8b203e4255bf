"""Score how strongly every component of every head is read by every later head, from weights alone.

A component is one singular direction of a head's OV matrix, counted from the largest singular value. Its score
into a later head is the share of that head's matrix that lies along what the component writes:

    C = ||v M|| / ||M||     v: the unit direction the component writes
                            M: W_Q W_K^T (kind Q), W_K W_Q^T (kind K), W_V W_O (kind V) of the reader

A random direction scores 1/sqrt(d_model') in root mean square. Beside each score stand its z against sampled
random directions and its rank among all earlier components of the model (1 is the strongest).

examples:
  python -m talking_heads_utils composition --weights gpt2 --out gpt2.safetensors
  python -m talking_heads_utils composition --weights ./model.Q4_K_M.gguf --out model.safetensors --kinds Q
  python -m talking_heads_utils composition --weights meta-llama/Meta-Llama-3-8B --out llama.safetensors --stream
  python -m talking_heads_utils composition --scores llama.safetensors --out llama.parquet --top 64
  python -m talking_heads_utils composition --weights gpt2 --out heads.parquet --head-level

A model that normalises queries and keys (qwen3) has no matrix W_Q W_K^T: only --kinds V can be had of it.

The scores go into one format, whatever the model's size: float16, with checksums, and what they were made from in the
metadata (talking_heads_utils.scores.scores). `load_scores` reads it, and so do `atlas` and the explorer. An --out that
ends in .parquet is a table of them instead, for other programs.

--stream is for checkpoints that do not fit in memory: a few reader layers are held at a time and every earlier layer is
read from its shard. Stopped at any point, also by kill -9, the same command goes on from the last finished reader layer
(they wait in FILE.safetensors.part); changed options or weights are refused. With a table as --out, the scores stand
beside it. --readers scores some reader layers only.

columns: kind, writer_layer, writer_head, component, reader_layer, reader_head, score, z, rank, singular_value, gap.
gap is the distance to the nearest other singular value of that head, relative to its own: where it is near 0,
only the span of the two components means anything. --head-level has score and rank of whole heads instead
(Elhage et al. 2021), and null_rms beside them. Pairs whose reader is not in a later layer are undefined and have no
row. The table's metadata are those of the scores (talking_heads_utils.scores.tables.read_table_about).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from talking_heads_utils.cli.options import PACKAGED, add_ray, add_seed, told
from talking_heads_utils.files import GPT2_VARIABLE, check_file, gpt2_source
from talking_heads_utils.settings import KINDS, N_RANDOM

if TYPE_CHECKING:
    from talking_heads_utils.scores.scores import CompositionScores

TABLE = ".parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--scores", type=Path, metavar="FILE", help="finished scores to make a table of, not --weights")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"scores, or a table in *{TABLE}")
    parser.add_argument("--kinds", default=KINDS, help=f"inputs to score: Q, K, V or several (default: {KINDS})")
    parser.add_argument("--head-level", action="store_true", help="of a table: a row per pair of heads")
    parser.add_argument("--top", type=int, metavar="K", help="of a table: the K best per reader and kind")
    readers = told(_layers, "range FROM:TO of layers from 1 on; layer 0 has none to read")
    parser.add_argument("--readers", type=readers, metavar="FROM:TO",
                        help="reader layers from FROM up to, not including, TO (default: all)")  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="layer by layer, resumable, in little memory")
    add_ray(parser, "reader layers of --stream")
    parser.add_argument("--n-random", type=int, default=N_RANDOM, help=f"random directions behind each z ({N_RANDOM})")
    add_seed(parser, "of the random directions")


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
    from talking_heads_utils.scores.composition import check_kinds
    from talking_heads_utils.scores.scores import save_scores
    from talking_heads_utils.scores.tables import check_top, write_table

    if not 2 <= args.n_random <= 1_000_000:
        raise OptionError(f"--n-random must be at least 2, for a spread, and at most a million, not {args.n_random}.")
    if args.ray is not None and not args.stream:
        raise OptionError("--ray shares the reader layers of --stream: give both.")
    if not 0 <= args.seed < 2**63:
        raise OptionError(f"--seed must be from 0 to 2^63 - 1, not {args.seed}.")
    check_file(args.out)
    check_top(args.top)
    check_kinds(args.kinds)
    as_table = args.out.suffix == TABLE
    if not as_table and (args.top or args.head_level or args.scores):
        raise OptionError(f"--top, --head-level and --scores are for a table: give an --out that ends in {TABLE}.")
    with torch.inference_mode():
        scores = _scores(args)
        if as_table:
            rows = write_table(scores, args.out, top=args.top, by_head=args.head_level)
        elif not args.stream:
            save_scores(scores, args.out)
    what = f"{rows:,} rows, " if as_table else ""
    print(f"{args.out}: {what}{args.out.stat().st_size / 1e6:.1f} MB, of {scores.describe()}")


def _scores(args: argparse.Namespace) -> CompositionScores:
    """Read, streamed into their file, or computed."""
    from talking_heads_utils.scores.scores import compute_scores, load_scores
    from talking_heads_utils.scores.streaming import stream_scores
    from talking_heads_utils.weights.checkpoints import load_head_weights, open_checkpoint

    if args.scores:
        return load_scores(args.scores)
    source, how = args.weights or gpt2_source(), dict(n_random=args.n_random, seed=args.seed, layers=args.readers)
    if not args.stream:
        return compute_scores(load_head_weights(source, revision=args.revision), args.kinds, **how)
    path = args.out.with_suffix(".safetensors") if args.out.suffix == TABLE else args.out
    stream_scores(open_checkpoint(source, args.revision), path, args.kinds, **how, ray=args.ray)
    return load_scores(path)
