"""What the post's stored outputs show, as data with their source. Nothing here was measured by this project."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from talking_heads_utils.files import data_dir

if TYPE_CHECKING:
    import pandas as pd


def reported() -> dict[str, Any]:
    """``data/reference/icl_post.json``."""
    return json.loads((data_dir() / "reference" / "icl_post.json").read_text(encoding="utf-8"))


def patching_table() -> pd.DataFrame:
    """The post's patching, one row per set of heads out of A: A's top five, where B answers 2x, where A's answer is."""
    import pandas as pd

    rows = [
        {
            "out of A": row["out"],
            "A's own top five": " ".join(map(str, row["top5"])),
            "B answers 30 (2x)": row["b_answers_30"],
            "A's answer takes over": f"layer {row['takes_over']} ({row['takes_over_with']})",
        }
        for row in reported()["patching"]
    ]
    return pd.DataFrame(rows)


def said() -> dict[str, str]:
    """Id of a claim (:class:`~experiments.claims.ClaimId`) -> what the post or its notebooks show for it, in one
    line."""
    report = reported()
    scores = head_scores()
    rose = (scores.iloc[:, 1] > scores.iloc[:, 0]).sum()
    return {
        "redundant": "claimed; no measure, no unablated baseline",
        "survives": "claimed; all heads of two layers out, still about 2x; no plain run",
        "moves-up": f"2x appears at: {'; '.join(row['b_answers_30'] for row in report['patching'])}",
        "backups": f"{rose} of {scores.dropna().shape[0]} named heads rise, left free",
        "evidence": "claimed; no result",
        "adds": "claimed; no result",
        "in-parts": "claimed; no result for this model",
        "looks-back": "claimed from patterns; no number",
    }


def head_scores() -> pd.DataFrame:
    """The post's scores of named heads, before and after layers 10 and 11 are out; missing where none was stored."""
    import pandas as pd

    scores = reported()["head_scores"]
    return pd.DataFrame({name: values for name, values in scores.items() if name != "what"})
