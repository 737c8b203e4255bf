"""Small tables of chapter 2's rows, made up: as a model would give them in which the subspace carries much."""

from itertools import count, product
from math import exp

import pandas as pd
from made_rows import around, made

from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.positional import (
    crowding,
    decoding,
    interchange,
    order,
    points,
    steering,
    subspace,
    traversal,
)
from talking_heads_utils.experiments.positional.subspace import Subspace
from talking_heads_utils.experiments.rows import frame

COMPONENTS = ("L1H0.0", "L1H1.0", "L1H0.1")
LENGTHS = (4, 6)


def component_rows(n: int = 10) -> pd.DataFrame:
    rows = [
        made(subspace.ComponentRow, model="made", subspace=kind, rank=i + 1,
             component=f"L{layer}H{i % 2}.{i // 2}", score=0.4 - i / 50, spread=3 - i / 10, value=1.2 - i / 9,
             outside=1 - i / 30, head_energy=0.5 / (i + 1),
             matched_energy=0.9 - i / 10 if kind == Subspace.CHOSEN and i < 3 else None, n=400)
        for kind, layer in ((Subspace.CHOSEN, 1), (Subspace.ANYWHERE, 0)) for i in range(n)
    ]  # fmt: skip
    return frame(rows)


def point_rows(lengths=(3, *LENGTHS), n: int = 60) -> pd.DataFrame:
    rows = []
    for n_items, i in product(lengths, range(n)):
        index, off = i % n_items, (i * 7 % 11 - 5) / 6
        rows.append(made(points.PointRow, model="made", n_items=n_items, order=("kept", "shuffled")[i % 2],
                         wording="wash", list_index=index, word=f"word{i}", x=2 * index / n_items - 0.8 + off / 2,
                         y=(-1) ** index * 0.6 + off / 3, z=off, right=i % 3 > 0))  # fmt: skip
    return frame(rows)


def decoding_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for n, split, feature in product(LENGTHS, decoding.Split, ("list_index", "identity")):
        for kind, k in [*product((Subspace.CHOSEN, Subspace.ANYWHERE), range(1, 11)), (Subspace.MATCHED, 3)]:
            much = (0.7 if feature == "list_index" else 0.2) * (0.5 if kind == Subspace.MATCHED else 1)
            right = 1 / n + much * (1 - exp(-k / 2)) + next(unlike) / 1e5
            own = kind == Subspace.CHOSEN and k == 3
            rows.append(made(decoding.DecodingRow, model="made", n_items=n, subspace=kind, k=k, feature=feature,
                             split=split, right=right, **around(right), shuffled=1 / n, chance=1 / n,
                             n=400, p=0.01 if own else None,
                             n_draws=99 if own or kind == Subspace.MATCHED else None))  # fmt: skip
    return frame(rows)


HOW_MUCH = {Subspace.CHOSEN: 0.7, Subspace.ANYWHERE: 0.8, Subspace.LEARNED: 1.0, Subspace.LEARNED_ARBITRARY: 0.1,
            Subspace.LEARNED_UNTRAINED: 0.02, Subspace.MATCHED: 0.06, Subspace.WHOLE_HEADS: 0.75,
            Subspace.WHOLE_STREAM: 1.0}  # fmt: skip
FULL = {interchange.LOGIT_DIFFERENCE: 4.0, interchange.LOG_ODDS: 3.0, interchange.MOVED: 0.6}


def interchange_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for n, donor, measure, kind in product(LENGTHS, interchange.Donor, FULL, HOW_MUCH):
        whole, drawn = kind in (Subspace.WHOLE_HEADS, Subspace.WHOLE_STREAM), kind == Subspace.MATCHED
        for k in (0,) if whole else (3,) if drawn or donor != "other_items" else range(1, 11):
            part = HOW_MUCH[kind] * (1 if whole else 1 - exp(-k / 1.5)) * (donor != "same_index")
            share, own = part + next(unlike) / 1e5, kind == Subspace.CHOSEN and k == 3
            of_ten = share / HOW_MUCH[kind]
            rows.append(made(interchange.InterchangeRow, model="made", n_items=n, subspace=kind, k=k, donor=donor,
                             measure=measure, effect=share * FULL[measure], **around(share * FULL[measure]),
                             of_stream=share, **around(share, "of_stream_"), of_ten=of_ten,
                             **around(of_ten, "of_ten_"), matched=0.1 * FULL[measure] if own else None,
                             p=0.01 if own else None, n_draws=99 if own or drawn else None, n=400))  # fmt: skip
    return frame(rows)


def line_rows(amounts=(-2.0, -1.0, 0.0, 1.0, 2.0)) -> pd.DataFrame:
    rows, unlike = [], count(1)
    for n, component, amount in product(LENGTHS, (*COMPONENTS, "random"), amounts):
        much = 0.05 if component == "random" else 1.0
        height = [exp(much * amount * (i - (n - 1) / 2) / 2) for i in range(n)]
        for i in range(n):
            share = height[i] / sum(height) + next(unlike) / 1e6
            rows.append(made(traversal.LineRow, model="made", n_items=n, component=component, amount=amount,
                             list_index=i, attention=share, **around(share, "attention_"), answered=share / 2,
                             **around(share / 2, "answered_"), n=200))  # fmt: skip
    return frame(rows)


def map_rows(steps=(-2.0, -1.0, 0.0, 1.0, 2.0)) -> pd.DataFrame:
    rows, unlike = [], count(1)
    for n, first, second, third in product(LENGTHS, steps, steps, steps):
        attended = int((first + 2 + third / 2) / 4.1 * n) % n
        answer = int((second + 2) / 4.1 * n) % n
        share = 1 / n + 0.15 * abs(first) + next(unlike) / 1e6
        rows.append(made(traversal.MapRow, model="made", n_items=n, first=first, second=second, third=third,
                         attended=attended, attention=share, answer=answer, answered=share * 0.9, right=0.3,
                         n=100))  # fmt: skip
    return frame(rows)


def reach_rows() -> pd.DataFrame:
    rows = []
    for n, i in ((length, index) for length in LENGTHS for index in range(length)):
        steered = 0.8 - i / 20
        rows.append(made(traversal.ReachRow, model="made", n_items=n, list_index=i, plain=0.2, steered=steered,
                         **around(steered), plain_answered=0.15, answered=steered - 0.2,
                         **around(steered - 0.2, "answered_"), matched=0.4, p=0.01 if i else 0.3, mean_p=0.01,
                         n_draws=99, n=100))  # fmt: skip
    return frame(rows)


def margin_rows(lengths=(4, 6, 8)) -> pd.DataFrame:
    rows = []
    for n in lengths:
        for quarter in range(1, 5):
            value = 1.6 / n + quarter * 0.06
            rows.append(made(crowding.CrowdingRow, model="made", n_items=n, statistic="accuracy", quarter=quarter,
                             value=value, **around(value), p=None, n_draws=None, n=250))  # fmt: skip
        for statistic, value in (("slope", 0.5), ("nearest", 0.12)):
            rows.append(made(crowding.CrowdingRow, model="made", n_items=n, statistic=statistic, quarter=None,
                             value=value, **around(value), p=0.01, n_draws=99, n=1000))  # fmt: skip
    return frame(rows)


def scale_rows(lengths=(4, 6, 8), scales=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0)) -> pd.DataFrame:
    rows = []
    for n, kind, scale in product(lengths, (Subspace.CHOSEN, Subspace.MATCHED), scales):
        own = kind == Subspace.CHOSEN
        change = (0.3 if own else 0.03) * (1 - exp(-scale) - 0.63)
        rows.append(made(crowding.ScaleRow, model="made", n_items=n, subspace=kind, scale=scale,
                         accuracy=2 / n + change, **around(2 / n + change), change=100 * change,
                         change_low=100 * change - 2, change_high=100 * change + 2, spread=0.4,
                         p=0.01 if own else None, n_draws=99, n=1000))  # fmt: skip
    return frame(rows)


def order_rows(lengths=(4, 6, 8)) -> pd.DataFrame:
    rows = []
    for n, kind in product(lengths, ("kept", "shuffled")):
        for i in range(n):
            accuracy = 1.2 / n + 0.5 * i / n + (kind == "kept") / 20
            rows.append(made(order.OrderRow, model="made", n_items=n, order=kind, list_index=i, accuracy=accuracy,
                             **around(accuracy), last_named=float(i == n - 1),
                             next_in_order=float(i == n - 1) if kind == "kept" else 0.9 / n, least_recent=0.4 / n,
                             says_last_named=0.3, says_next_in_order=0.2, removed=1 / n,
                             matched_removed=accuracy - 0.02, range_p=0.001, through_p=0.01, n=80))  # fmt: skip
    return frame(rows)


GAINS = {steering.Method.NONE: 0.0, steering.Method.ONE_SETTING: 1.0, steering.Method.SCALING: 3.0,
         steering.Method.CORRECTION: 5.0, steering.Method.BOTH: 6.0, steering.Method.TOLD_INDEX: 20.0,
         steering.Method.ORACLE: 40.0}  # fmt: skip


def gain_rows() -> pd.DataFrame:
    rows = []
    for n, part, (method, gain), kind in product(LENGTHS, (Part.HELD_OUT, Part.NEW_WORDING, Part.NEW_OBJECTS),
                                                 GAINS.items(), (Subspace.CHOSEN, Subspace.MATCHED)):  # fmt: skip
        own = kind == Subspace.CHOSEN
        gain = gain + n / 10 if own else gain / 3
        beyond = gain - GAINS[steering.Method.CORRECTION]
        rows.append(made(steering.GainRow, model="made", n_items=n, part=part, method=method, subspace=kind,
                         accuracy=0.4 + gain / 100, **around(0.4 + gain / 100), gain=gain, gain_low=gain - 2,
                         gain_high=gain + 2.5, beyond=beyond, beyond_low=beyond - 2, beyond_high=beyond + 2,
                         where_chosen=gain + 1, p=0.03 if own else None, n_draws=99, n=800))  # fmt: skip
    return frame(rows)
