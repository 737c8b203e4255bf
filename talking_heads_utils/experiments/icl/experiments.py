"""Chapter 4's experiments, as the catalogue has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.icl import curves
from talking_heads_utils.experiments.icl import study as icl
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS
from talking_heads_utils.experiments.icl.whole import function_table
from talking_heads_utils.experiments.icl.words import words_table
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts import lists as laundry

if TYPE_CHECKING:
    import pandas as pd

SEEN = 8  # examples that laws are fitted on
N_STRONG, FEW = 6, 8  # heads whose pairs are taken out; prompts of a quick run


def _subject(c: Context) -> icl.Subject:
    return icl.subject(c.model, seed=c.seed, device=c.device, dtype=c.dtype)


def _strongest(c: Context) -> list[Head]:
    """The heads that are worth most, the most first."""
    return icl.strongest(c.kept(_subject), N_STRONG, n=c.n(64, FEW))


def _words(c: Context) -> pd.DataFrame:
    counts = (0, 4, 8) if c.quick else (0, 1, 2, 4, 8, 16)
    return words_table(c.bridge, c.tokenizer, c.n(32, FEW), counts, c.seed, halves=(laundry.HELD_OUT,))


def _functions(c: Context) -> pd.DataFrame:
    return function_table(c.bridge, c.tokenizer, n=c.n(64, FEW), seed=c.seed)


def _accuracy(c: Context) -> pd.DataFrame:
    return icl.accuracy_table(c.kept(_subject), c.n(200))


def _pairs(c: Context) -> pd.DataFrame:
    import pandas as pd

    asked, strongest, n = c.kept(_subject), c.kept(_strongest), c.n(64, FEW)
    of = {"strongest": strongest, "random": icl.others(asked, strongest)}
    return pd.concat([icl.interaction_table(asked, some, n=n).assign(heads=kind) for kind, some in of.items()])


def _heads_out(c: Context) -> pd.DataFrame:
    layers, heads = c.kept(_subject).shape
    return icl.removal_table(c.kept(_subject), n=c.n(64, FEW), most=4 if c.quick and layers * heads > 100 else None)


def _patch(c: Context) -> pd.DataFrame:
    import pandas as pd

    asked = c.kept(_subject)
    sets = icl.post_sets(asked)
    tables = [icl.patch_table(asked, sets, n=c.n(64, FEW), b=b).assign(b=b)
              for b in (OTHER_FUNCTION, RANDOM_PAIRS, NO_EXAMPLES)]  # fmt: skip
    return pd.concat(tables)


def _post(c: Context) -> pd.DataFrame:
    return icl.post_table(c.kept(_subject)).astype(str)


def _backups(c: Context) -> pd.DataFrame:
    asked, top = c.kept(_subject), c.kept(_strongest)[:3]
    return icl.compensation_table(asked, {"strongest": top, **icl.random_sets(asked, top, 2)}, n=c.n(64, FEW))


def _log_odds(c: Context) -> pd.DataFrame:
    asked = c.kept(_subject)
    found = icl.belief(asked, n=c.n(200))
    table, _ = curves.fit_laws(found.model, found.readers, seen=SEEN, seed=c.seed)
    return asked.marked(table)


def _additivity(c: Context) -> pd.DataFrame:
    return icl.additivity_table(c.kept(_subject), n=c.n(48, FEW))


def _parts(c: Context) -> pd.DataFrame:
    return icl.layer_table(c.kept(_subject), n=c.n(100, FEW))


def _looks_back(c: Context) -> pd.DataFrame:
    return icl.attention_table(c.kept(_subject), n=c.n(48, FEW))


EXPERIMENTS = (
    Experiment("words", 4, 5, None, _words, "in-context tasks of words", of_own=False),
    Experiment("functions", 4, 4, None, _functions, "whole answers of y = a x + b", of_own=False),
    Experiment("accuracy", 4, 1, None, _accuracy, "by number of examples"),
    Experiment("pairs", 4, 3, None, _pairs, "interactions of heads"),
    Experiment("heads-out", 4, 6, None, _heads_out, "accuracy as heads go"),
    Experiment("patch", 4, 5, None, _patch, "patching by layer and ablation"),
    Experiment("post", 4, 1, None, _post, "the post's own prompts"),
    Experiment("backups", 4, 2, None, _backups, "direct effects after ablations"),
    Experiment("log-odds", 4, 1, None, _log_odds, "laws of belief"),
    Experiment("additivity", 4, 8, None, _additivity, "sums of contributions"),
    Experiment("parts", 4, 1, None, _parts, "layers taken out"),
    Experiment("looks-back", 4, 1, None, _looks_back, "attention to answers"),
)
