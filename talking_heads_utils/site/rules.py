"""The rules that judge, each beside how often it says what where the truth is known."""

from __future__ import annotations

from html import escape
from string import Template
from typing import TYPE_CHECKING

from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.power import SPOKEN_OF
from talking_heads_utils.site.claim_words import RULES, SENTENCES

if TYPE_CHECKING:
    import pandas as pd

ENTRY = Template(
    "<details class='claim' id='rule-$id'><summary>$chapter $claim</summary><p>$rule</p><p>$power "
    "<a href='scorecard.html#claim-$id'>What it says of each model</a>.</p>$table</details>"
)


def power_in_words(table: pd.DataFrame, claim: str) -> str:
    """How often a rule is right, in planted worlds with units enough for it. table: of
    :func:`talking_heads_utils.experiments.power.stored`."""
    judged = table[(table["claim"] == claim) & table["judged"]]
    true = judged[judged["truth"] & (judged["effect_size"] == SPOKEN_OF[claim])]
    true = true[true["noise"] == true["noise"].min()]
    return (
        f"Where the claim is true with an effect of {SPOKEN_OF[claim]:g}, the rule says supported in at least "
        f"{true['supported'].min():.0%} of worlds. Where it is false, in at most "
        f"{judged.loc[~judged['truth'], 'supported'].max():.1%}."
    )


def as_html(table: pd.DataFrame) -> str:
    """An entry per claim, folded: its rule, the rule's power in words and kind of world by kind of world."""
    entries = []
    for claim in table["claim"].unique():
        some = table[table["claim"] == claim].drop(columns=["claim", "seed"])
        shown = some.loc[:, (some != 0).any()].rename(columns=lambda name: name.replace("_", " "))
        entries.append(ENTRY.substitute(
            id=claim, claim=escape(SENTENCES[ClaimId(claim)]), rule=escape(RULES[ClaimId(claim)]),
            chapter=f"Chapter {BY_ID[ClaimId(claim)].chapter}.", power=escape(power_in_words(table, claim)),
            table=shown.to_html(index=False, border=0, float_format="{:.3g}".format),
        ))  # fmt: skip
    return "".join(entries)
