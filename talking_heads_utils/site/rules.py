"""The rules that judge, each beside how often it says what where the truth is known."""

from __future__ import annotations

from html import escape
from string import Template

import pandas as pd
import torch

from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.power import SPOKEN_OF
from talking_heads_utils.experiments.rules import ALPHA
from talking_heads_utils.figures.power import sizes
from talking_heads_utils.site.claim_words import RULES, SENTENCES
from talking_heads_utils.stats import share

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
    false = judged[~judged["truth"]]
    worst = false.loc[false["supported"].idxmax()]
    return (
        f"Where the claim is true with an effect of {SPOKEN_OF[claim]:g}, the rule says supported in at least "
        f"{true['supported'].min():.0%} of worlds. Where it is false, in {worst['supported']:.1%} of "
        f"{worst['n_worlds']:,} worlds of one kind at most, and in {_overall(false):.1%} of all "
        f"{false['n_worlds'].sum():,}."
    )


def _overall(rows: pd.DataFrame) -> float:
    return float((rows["supported"] * rows["n_worlds"]).sum() / rows["n_worlds"].sum())


def two_shares(table: pd.DataFrame) -> str:
    """How the 5% within the rules and the shares of false worlds beside them differ, as Markdown. table: of
    :func:`talking_heads_utils.experiments.power.stored`."""
    false = table[table["judged"] & ~table["truth"]]
    above = false[false["supported"] > ALPHA]
    lowest = [share(torch.arange(n) < round(part * n)).low for part, n in zip(above["supported"], above["n_worlds"])]
    within = "Each" if all(low <= ALPHA for low in lowest) else "Not each"
    worst = false.loc[false["supported"].idxmax()]
    return (
        f"The *at most {ALPHA:.0%}* within a rule is the p that it asks of one model's numbers. The shares of false "
        "worlds below are counted: how often the whole rule errs. "
        f"In {len(above)} of {len(false)} kinds of false world the count is above {ALPHA:.0%}, at most "
        f"{worst['supported']:.0%} of {worst['n_worlds']:,} worlds. {within} of these counts has a 95% interval that "
        f"reaches down to {ALPHA:.0%}. A claim's kinds taken together, no rule errs in more than "
        f"{max(_overall(rows) for _, rows in false.groupby('claim')):.1%}."
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
