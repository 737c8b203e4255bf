"""The rules that judge, each beside how often it says what where the truth is known."""

from __future__ import annotations

from html import escape
from string import Template

import pandas as pd

from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.power import SPOKEN_OF
from talking_heads_utils.figures.power import sizes
from talking_heads_utils.site.claim_words import RULES, SENTENCES

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


def _by_world(some: pd.DataFrame) -> pd.DataFrame:
    """A claim's rows as they are shown: what the worlds hold, how many there are, and how often the rule says what."""
    shown = pd.DataFrame({
        "world": some["world"], "claim is": some["truth"].map({True: "true", False: "false"}),
        "effect": some["effect_size"].map("{:g}".format), "noise": some["noise"].map("{:g}".format),
        "of": [f"{sizes(row)}{'' if row.judged else ' (too few)'}" for row in some.itertuples()],
        "worlds": some["n_worlds"].map("{:,}".format),
    })  # fmt: skip
    verdicts = some[["supported", "not_supported", "undecided"]].map("{:.1%}".format)
    return shown.join(verdicts.rename(columns={"not_supported": "not supported"}))


def as_html(table: pd.DataFrame) -> str:
    """An entry per claim, folded: its rule, the rule's power in words and kind of world by kind of world."""
    entries = []
    for claim in table["claim"].unique():
        shown = _by_world(table[table["claim"] == claim])
        entries.append(ENTRY.substitute(
            id=claim, claim=escape(SENTENCES[ClaimId(claim)]), rule=escape(RULES[ClaimId(claim)]),
            chapter=f"Chapter {BY_ID[ClaimId(claim)].chapter}.", power=escape(power_in_words(table, claim)),
            table=shown.to_html(index=False, border=0),
        ))  # fmt: skip
    return "".join(entries)
