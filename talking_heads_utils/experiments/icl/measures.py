"""What chapter 4's tables measure of the post's claims: what the rules of
:mod:`talking_heads_utils.experiments.rules` see."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.verdicts import Measured

if TYPE_CHECKING:
    import pandas as pd


def redundant(table: pd.DataFrame) -> Measured:
    return Measured("", nan)


survives = moves_up = backups = evidence = adds = looks_back = in_parts = redundant
