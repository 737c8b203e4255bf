"""Small tables of chapter 1's rows, made up: no two values of a table agree."""

from itertools import count, product
from math import tanh

import pandas as pd

from talking_heads_utils.experiments.inhibition import (
    attends,
    basis,
    effects_table,
    exchange,
    exchange_study,
    links,
    listeners,
    prediction,
    rivals,
    says,
    slider,
)
from talking_heads_utils.experiments.rows import Row, frame

HEADS, MOVERS = ("L1H0", "L1H2"), ("L2H0", "L2H3")


def made(kind: type[Row], **values) -> Row:
    """A row with these values and nothing in its other columns."""
    empty = {str: "", int: 0, float: 0.0, bool: False}
    return kind(**{c.name: values.get(c.name, empty[c.kind]) for c in kind.columns()})


def around(value: float, name: str = "") -> dict:
    """A value with its interval, whose columns begin with a name."""
    return {f"{name}low": value - 0.02, f"{name}high": value + 0.03}


def slider_rows(n_prompts: int = 2, settings=slider.SETTINGS) -> pd.DataFrame:
    rows, prompts = [], [None, *range(n_prompts)]
    texts = [f"When {a} and {b} went to the school, {b} gave the hat to" for a, b in (("Ann", "Bob"), ("Cat", "Dan"))]
    for prompt, direction, setting, name in product(prompts, slider.SETTINGS and ("component", "random"), settings,
                                                    ("first", "second")):  # fmt: skip
        turned = (-1 if name == "first" else 1) * tanh(setting) * (1 if direction == "component" else 0.03)
        attention = 0.4 + 0.3 * turned + 0.01 * (prompt or 0)
        word = "" if prompt is None else texts[prompt % 2].split()[1 if name == "first" else 3]
        whole = {} if prompt is not None else around(attention, "attention_") | around(attention - 0.1, "probability_")
        none = {f"{what}_{end}": None for what in ("attention", "logit", "probability") for end in ("low", "high")}
        rows.append(made(slider.SliderRow, model="made", component="L1H0.1", direction=direction, prompt=prompt,
                         setting=setting, name=name, word=word, attention=attention, probability=attention - 0.1,
                         text="" if prompt is None else texts[prompt % 2], n=200 if prompt is None else 1,
                         **none | whole))  # fmt: skip
    return frame(rows)


def effect_rows(n: int = 6) -> pd.DataFrame:
    unlike, rows = count(1), []
    for head, mover, component in product(HEADS, MOVERS, range(n)):
        effect, score = -0.3 / next(unlike), 0.5 / (1 + component) + next(unlike) / 1000
        rows.append(made(effects_table.ComponentRow, head=head, mover=mover, component=component, score=score,
                         null=0.12, effect=effect, **around(effect), n=40))  # fmt: skip
    return frame(rows)


def exchange_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    ways = [
        (s, exchange.QUERY)
        for s in (
            *exchange_study.PREDICTORS,
            exchange_study.BEST_MEASURED,
            *(exchange.MATCHED_SETS, exchange.RANDOM_DIRECTIONS),
        )
    ]
    ways += [(exchange.PREDICTED, exchange.KEY), (exchange.PREDICTED, exchange.VALUE)]
    for head, (chosen, into), measure in product(
        (*HEADS, exchange.ALL), ways, (exchange.LOG_ODDS, exchange.PROBABILITY)
    ):
        for k in (1, 2, 4, 8):
            share = (k / 8) ** 0.3 * (
                0.9
                if into == exchange.QUERY and chosen not in (exchange.MATCHED_SETS, exchange.RANDOM_DIRECTIONS)
                else 0.1
            )
            share += next(unlike) / 1e4
            rows.append(made(exchange.ExchangeRow, head=head, into=into, set=chosen, k=k, measure=measure, share=share,
                             components=f"{head}.0", effect=-share, **around(-share), **around(share, "share_"), p=0.01,
                             n=500))  # fmt: skip
        rows.append(made(exchange.ExchangeRow, head=head, into="query", set=exchange.OTHER_COMPONENT, k=1,
                         measure=measure, share=0.05, **around(0.05, "share_")))  # fmt: skip
    return frame(rows)


def link_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for link in ("a → b (K)", "b → c (V)", "c → d (Q)"):
        value = 90 - 7.0 * next(unlike)
        rows.append(made(links.LinkRow, link=link, value=value, low=value - 4, high=value + 5, p=0.01, p_holm=0.03,
                         null_high=70.0 + value / 50))  # fmt: skip
        for control in (links.OTHER_READERS, links.OTHER_INPUT, links.OTHER_WRITERS):
            rows.append(made(links.LinkRow, link=link, control=control, value=50 + next(unlike) / 10))
    return frame([*rows, made(links.LinkRow, link=links.JOINT, value=80.0, low=70.0, high=90.0, p=0.001)])


def listener_rows(n: int = 9) -> pd.DataFrame:
    rows = [
        made(listeners.ListenerRow, head=f"L2H{i}", layer=2, role="name mover" if i % 3 == 0 else "",
             listener=i % 3 == 0, value=95 - 5.0 * i, own_best=90 - 5.0 * i, rank=i + 1)
        for i in range(n)
    ]  # fmt: skip
    whole = made(listeners.ListenerRow, head=listeners.EVERY, auc=0.8, low=0.7, high=0.9, p=0.01, n_listeners=3, n=n)
    return frame([*rows, whole])


def basis_rows() -> pd.DataFrame:
    rows = []
    for group, heads in (("S-inhibition", HEADS), ("other", ("L1H1", "L1H3"))):
        for i, head in enumerate(heads):
            ratio = (1.4 if group == "S-inhibition" else 1.1) + i / 10
            rows += [
                made(basis.BasisRow, head=head, group=group, reader=r, ratio=ratio, n=99) for r in (*MOVERS, "all")
            ]
        ratio = 1.45 if group == "S-inhibition" else 1.15
        rows.append(made(basis.BasisRow, head="all", group=group, reader="all", ratio=ratio, **around(ratio)))
    return frame([*rows, made(basis.BasisRow, head="all", group=basis.DIFFERENCE, reader="all", ratio=1.26, p=0.01)])


def rival_rows() -> pd.DataFrame:
    unlike, rows = count(1), []
    for measure, link, reader in product(rivals.MEASURES, ("all", "c → d (Q)"), ("all", *MOVERS)):
        auc, precision = 0.5 + next(unlike) / 100, 0.3 + next(unlike) / 100
        rows.append(made(rivals.RivalRow, measure=measure, link=link, reader=reader, auc=auc, r_precision=precision,
                         **around(auc, "auc_"), **around(precision, "r_precision_"), n_readers=2))  # fmt: skip
    return frame(rows)


def says_rows() -> pd.DataFrame:
    rows = []
    for i, (component, group, template) in enumerate(
        product(("L1H0.1", "L1H2.0"), ("IO first", "S first", "no duplicate"), ("", "when", "while"))
    ):
        value = -1 + i / 5
        rows.append(made(says.SaysRow, task="ioi", component=component, statistic="group_mean", group=group,
                         template=template, value=value, **around(value), n=100))  # fmt: skip
    for i, (component, feature) in enumerate(product(("L1H0.1", "L1H2.0"), ("name_order", "which_name"))):
        rows.append(made(says.SaysRow, task="ioi", component=component, statistic="variance_share", feature=feature,
                         split="across_templates", value=i / 10, **around(i / 10), n=100))  # fmt: skip
    for feature, value in (("list_index", 0.4), ("items", -0.1)):
        rows.append(made(says.SaysRow, task="laundry", component="L1H0.1", statistic="variance_share", feature=feature,
                         split="across_templates", value=value, **around(value), n=200))  # fmt: skip
    return frame(rows)


def attends_rows() -> pd.DataFrame:
    rows = []
    for i, (component, target) in enumerate(product(("L1H0.1", "L1H2.0", "mean"), ("seen", "same_list", "in_list"))):
        excess = 0.1 + i / 50
        role = "mean" if component == "mean" else "S-inhibition"
        rows.append(made(attends.AttendsRow, role=role, component=component, target=target, share=excess + 0.2,
                         even=0.2, excess=excess, **around(excess), control=0.05 + i / 100, control_low=0.01,
                         control_high=0.09,
                         p=0.02, n_controls=100, n=500, n_sections=60))  # fmt: skip
    return frame(rows)


def hit_rows() -> pd.DataFrame:
    names = (exchange.WEIGHTS, *exchange_study.PREDICTORS[1:])
    rows = [
        made(exchange.HitRow, head=head, predictor=names[i], strongest=f"{head}.0", first=f"{head}.{i % 2}",
             rank=1 + i, hit_at_1=i == 0, hit_at_3=i < 3, p=(1 + i) / 64, n_components=64, n=500)
        for head in HEADS for i in range(len(names))
    ]  # fmt: skip
    return frame(rows)


def prediction_rows(n: int = 4) -> pd.DataFrame:
    rows = [
        made(prediction.PredictionRow, head=head, component=i, score=0.4 - i / 10, score_at_0=0.3,
             singular_value=2.0 - i / 10, rank=1 + i, rank_at_0=1 + i, n_movers=2, n_distances=9)
        for head in HEADS for i in range(n)
    ]  # fmt: skip
    return frame(rows)
