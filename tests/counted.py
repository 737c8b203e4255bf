"""Tables in which every value is there once, so a value in a figure says which cell it came from."""

from itertools import count

import pandas as pd

MODELS = ["mini-icl", "gpt2"]


def table(columns, unit=0.001, **keys) -> pd.DataFrame:
    """A row for every combination of keys and every model, with an interval; values count up in steps of ``unit``."""
    index = pd.MultiIndex.from_product([MODELS, *keys.values()], names=["model", *keys])
    rows, number = index.to_frame(index=False), count(1)
    for column in columns:
        rows[column] = [next(number) * unit for _ in range(len(rows))]
    return (rows if "low" in columns else rows.assign(low=0.0, high=1.0)).assign(n=100)
