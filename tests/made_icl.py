"""Small tables of chapter 4's rows, made up: as a model would give them in which the post's claims hold. No two values
of a table agree."""

from itertools import combinations, count, product
from math import exp, log

import pandas as pd
from made_rows import around, made

from talking_heads_utils.experiments.icl import (
    additivity,
    backups,
    evidence,
    parts,
    patching,
    post,
    readers,
    redundancy,
    sufficient,
    whole,
    words,
)
from talking_heads_utils.experiments.icl.sequences import FLIPS
from talking_heads_utils.experiments.rows import frame

TASKS, N_LAYERS, N_HEADS = ("plural", "past_tense"), 6, 3
POSTS = (2, 3)
HEADS = [f"L{layer}H{head}" for layer in range(N_LAYERS) for head in range(N_HEADS)]
CHOSEN = ("L3H0", "L4H1", "L4H2", "L5H0")
OVER_TASKS = redundancy.OVER_TASKS


def task_rows(own: float = 0.8) -> pd.DataFrame:
    unlike, rows = count(1), []
    of = {"its own": own, "shuffled labels": 0.3, "another task": 0.1}
    for task, half, (examples, value), n in product(TASKS, ("selection", "held-out"), of.items(), (0, 10)):
        accuracy = value * (n > 0) + next(unlike) / 1e4
        rows.append(made(words.WordsRow, task=task, half=half, examples=examples, n_examples=n, accuracy=accuracy,
                         **around(accuracy), among=accuracy, chance=0.02, n=64))  # fmt: skip
    return frame(rows)


def function_rows() -> pd.DataFrame:
    return frame([
        made(whole.FunctionsRow, function="y = 2x + 3", examples=examples, n_examples=12, accuracy=value,
             **around(value), among=2 * value, chance=0.125, n=64)
        for examples, value in (("its own", 0.04), ("shuffled labels", 0.02))
    ])  # fmt: skip


def head_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, head in product(TASKS, HEADS):
        value = next(unlike) / 100
        rest = dict(alone=value, denoised=3 * value, **around(value)) if int(head[1]) else dict.fromkeys(
            ("alone", "denoised", "low", "high"))  # fmt: skip
        rows.append(made(redundancy.HeadRow, model="made", task=task, head=head, layer=int(head[1]), direct=2 * value,
                         chosen=1 + CHOSEN.index(head) if head in CHOSEN else None, n=200, **rest))  # fmt: skip
    return frame(rows)


def pair_rows(interaction: float = 0.2) -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, (a, b) in product(TASKS, combinations(CHOSEN, 2)):
        value = interaction + next(unlike) / 1e3
        rows.append(made(redundancy.PairRow, model="made", task=task, a=a, b=b, joint=1 + value, summed=1.0,
                         interaction=value, **around(value), n=200))  # fmt: skip
    return frame(rows)


def set_rows(ratio: float = 1.5, matched: float = 1.0, n_draws: int = 3) -> pd.DataFrame:
    unlike, rows = count(1), []

    def one(task, kind, where, n, value, draw=None):
        value += next(unlike) / 1e4
        of = dict(summed=1.0, ratio=value, **around(value)) if kind != "layer" else dict.fromkeys(
            ("summed", "ratio", "low", "high"))  # fmt: skip
        rows.append(made(redundancy.SetRow, model="made", task=task, heads_are=kind, where=where, n_heads=n, draw=draw,
                         heads=f"L{draw}" if kind == "layer" else "L3H0, L4H1", direct=1.0, joint=value,
                         accuracy=0.4 + value / 1e3, before=0.8, twin=0.1, n=2 if task == OVER_TASKS else 200,
                         **of))  # fmt: skip

    for task, where in product((*TASKS, OVER_TASKS), ("end", "all")):
        for n in (2, 5):
            one(task, "chosen", where, n, ratio)
        for draw in range(n_draws):
            one(task, "matched", where, 6, matched, draw)
        for layer in range(N_LAYERS):
            one(task, "layer", where, 3, 1.2, layer)
    return frame(rows)


def backup_rows(share: float = 0.3, matched: float = 0.05, n_draws: int = 2) -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, n_heads, who in product((*TASKS, OVER_TASKS), (1, 2), backups.Who):
        for kind, draw in (("chosen", None), *(("matched", d) for d in range(n_draws))):
            value = (share if kind == "chosen" else matched) * (2 if who == "post" else 1) + next(unlike) / 1e4
            rows.append(made(backups.BackupRow, model="made", task=task, heads_are=kind, draw=draw, n_heads=n_heads,
                             out="" if task == OVER_TASKS else "L3H0, L4H1"[: 6 * n_heads - 2], who=who, lost=2.0,
                             recovered=2 * value, share=value, **around(value),
                             n=2 if task == OVER_TASKS else 200))  # fmt: skip
    return frame(rows)


def sufficient_rows(n: int = 12) -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, (which, draw), k in product(TASKS, ((1, None), (2, None), (0, 0), (0, 1)), range(n + 1)):
        kept = (1 - exp(-k / (3 if which == 1 else 6))) * (1 if which else 0.2) + next(unlike) / 1e5
        enough = which == 1 and k == 8
        rows.append(made(sufficient.SufficientRow, model="made", task=task, which=which, draw=draw, n_heads=k,
                         head=HEADS[k] if k else "", suffices=enough, selected=kept, kept=kept, **around(kept),
                         accuracy=0.8 * kept, everywhere=kept if enough else None, without=0.5 if enough else None,
                         n=200))  # fmt: skip
    return frame(rows)


def patch_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    ways = (("", ""), ("2,3", "zero"), ("2,3", "exchange"))
    for task, b_sees, (out, how) in product(TASKS, ("none", "shuffled"), ways):
        for run, layer in (("a", None), ("b", None), *(("patched", layer) for layer in range(N_LAYERS))):
            value = {"a": 0.8, "b": 0.1}.get(run, 0.7 * (layer or 0) / N_LAYERS) + next(unlike) / 1e4
            rows.append(made(patching.PatchRow, model="made", task=task, b_sees=b_sees, out=out, how=how, run=run,
                             layer=layer, accuracy=value, **around(value), about=None, about_low=None, about_high=None,
                             copied=value / 2, n=100))  # fmt: skip
    return frame(rows)


def post_rows() -> pd.DataFrame:
    cells = [("", layer, 30 if layer in (2, 3) else 21) for layer in range(5)] + [("layers 1, 2", 0, 21)]
    return frame([made(post.PostRow, model="made", out=out, a_top_five="87 85", b_plain=21, layer=layer, b_patched=said)
                  for out, layer, said in cells])  # fmt: skip


def out_rows(change: float = -0.03) -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, how, (a, b) in product((*TASKS, OVER_TASKS), ("zero", "exchange"), combinations(range(N_LAYERS), 2)):
        value = change - next(unlike) / 1e4
        rows.append(made(patching.OutRow, model="made", task=task, a=a, b=b, how=how, posts=(a, b) == POSTS,
                         accuracy=0.8 + value, change=value, **around(value), about_change=None,
                         n=2 if task == OVER_TASKS else 200))  # fmt: skip
    return frame(rows)


def first_rows(moved: float = 0.8) -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, b_sees, how, a in product((*TASKS, OVER_TASKS), ("none", "shuffled"), ("zero", "exchange"),
                                        range(N_LAYERS - 1)):  # fmt: skip
        posts = a == POSTS[0]
        value = (moved if posts else 0.1) + next(unlike) / 1e4
        rows.append(made(patching.FirstRow, model="made", task=task, b_sees=b_sees, how=how, a=a, b=a + 1, posts=posts,
                         below=a < 3,
                         plain=3.0, first=3.0 + value, moved=value, **around(value),
                         n=2 if task == OVER_TASKS else 100))  # fmt: skip
    return frame(rows)


def gate_rows() -> pd.DataFrame:
    rows = []
    cells = (("A and B", "held-out"), ("A and B", "selection"), ("yes and no", "selection"))
    for (labels, half), flip, n in product(cells, FLIPS, (4, 16, 32)):
        value = 0.5 + (0.5 - flip) * n / 40 + len(rows) / 1e4
        rows.append(made(evidence.GateRow, model="made", labels=labels, flip=flip, n_examples=n, half=half,
                         accuracy=value, **around(value), n=125))  # fmt: skip
    return frame(rows)


def evidence_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for labels, flip, n, signed in product(("A and B", "yes and no"), FLIPS, (16, 32), range(-4, 13, 4)):
        value = 0.1 * signed * log((1 - flip) / flip) + next(unlike) / 1e4
        rows.append(made(evidence.EvidenceRow, model="made", labels=labels, flip=flip, n_examples=n, signed=signed,
                         log_odds=value, **around(value), n=20))  # fmt: skip
    return frame(rows)


def reader_rows() -> pd.DataFrame:
    rows = []
    for labels, reader in product(("A and B", "yes and no"), readers.Reader):
        value = 0.6 - len(rows) / 20
        rows.append(made(evidence.ReaderRow, model="made", labels=labels, reader=reader, slope=0.1,
                         parameter=None if reader == "exact" else 9.0, explained=value, **around(value),
                         beyond_exact=value - 0.6, beyond_low=value - 0.65,
                         beyond_high=value - 0.55, n=250))  # fmt: skip
    return frame(rows)


def slope_rows() -> pd.DataFrame:
    rows = []
    for labels, flip in product(("A and B", "yes and no"), (*FLIPS, 0.0)):
        slope = 0.1 * log((1 - flip) / flip) if flip else 0.1
        slope += len(rows) / 1e4
        names = ("rival", "rival_beyond", "rival_low", "rival_high", "follows", "follows_low", "follows_high")
        rival = dict.fromkeys(names) if flip else dict(zip(names, ("recency", -0.1, -0.2, 0.01, 1.0, 0.8, 1.2)))
        rows.append(made(evidence.SlopeRow, model="made", labels=labels, flip=flip, slope=slope,
                         **around(slope, "slope_"), of_exact=0.1, curvature=-0.001, curvature_low=-0.002,
                         curvature_high=0.001, order=0.08, order_low=0.05, order_high=0.12, n=125,
                         **rival))  # fmt: skip
    return frame(rows)


def sum_rows(ratio: float = 0.9) -> pd.DataFrame:
    rows = []
    for labels, flip, n in product(("A and B", "yes and no"), (0.0, *FLIPS), additivity.GROUPS):
        value = ratio - n / 100 + len(rows) / 1e4
        rows.append(made(additivity.SumRow, model="made", labels=labels, flip=flip, n_changed=n, n_examples=32,
                         joint=value, summed=1.0, **around(1.0, "summed_"), ratio=value, **around(value),
                         difference=value - 1, difference_low=value - 1.1, difference_high=value - 0.9,
                         n=100))  # fmt: skip
    return frame(rows)


def looks_back_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for task, head in product(TASKS, HEADS):
        important = head in CHOSEN
        to_y = (0.5 if important else 0.2) + next(unlike) / 1e3
        rows.append(made(parts.LooksBackRow, model="made", task=task, head=head, layer=int(head[1]),
                         effect=0.5 if important else 0.01, important=important, to_y=to_y, to_x=0.1, even=0.15,
                         n=100))  # fmt: skip
    return frame(rows)


def part_rows(lost: float = -0.4) -> pd.DataFrame:
    unlike, rows = count(1), []
    cells = [("", None), ("twin", None), *product(("mlp", "heads"), range(N_LAYERS))]
    for task, attribute, (part, layer) in product(TASKS, ("exact", "word", "form"), cells):
        change = {"": 0.0, "twin": -0.7}.get(part, lost if (attribute, part, layer) == ("word", "mlp", 2) else -0.01)
        change -= next(unlike) / 1e4
        rows.append(made(parts.PartRow, model="made", task=task, part=part, layer=layer, attribute=attribute,
                         share=0.8 + change, change=change, **around(change), n=200))  # fmt: skip
    return frame(rows)
