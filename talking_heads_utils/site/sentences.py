"""What the sentences of all chapters share: how they are shown, how intervals read, and a chapter's claims beside their
source's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from IPython.display import Markdown

from talking_heads_utils.experiments.claims import BY_ID, CLAIMS, ClaimId
from talking_heads_utils.experiments.store import Finished
from talking_heads_utils.experiments.verdicts import listed, with_interval
from talking_heads_utils.site import scorecard
from talking_heads_utils.site.claim_words import SENTENCES, WHY_OTHERWISE, theirs
from talking_heads_utils.site.sources import page_url

if TYPE_CHECKING:
    from talking_heads_utils.site.notebook import Tables


def said(say: Callable[..., str]) -> Callable[..., Any]:
    """As Markdown; None where the first argument is empty, or there is nothing to say."""

    @wraps(say)
    def shown(first: Any, *more: Any) -> Markdown | None:
        text = say(first, *more) if len(first) else ""
        return Markdown(text) if text else None

    return shown


def share(row: Any, value: str = "share", ends: str = "") -> str:
    """``61% [58%, 64%]``."""
    return with_interval(row, value, ends, ".0%")


def bullets(told: Iterable[str], head: str = "") -> str:
    """A list, below a sentence where one is given; nothing without entries."""
    lines = "\n".join(f"- {line}" for line in told)
    return f"{head}\n\n{lines}" if head and lines else lines


@said
def against(results: Mapping[str, Mapping[str, Finished]], chapter: int) -> str:
    """The claims that a chapter tests, what their source shows, and what was found, model by model. results:
    what a sentence calls a model -> its finished experiments."""
    parts = []
    for claim in (claim for claim in CLAIMS if claim.chapter == chapter):
        told = [f"{model}: " + "; ".join(filter(None, (f"**{known.verdict}**", known.measured)))
                for model, known in scorecard.judged(results, claim).items()
                if known.verdict != scorecard.NoVerdict.NOT_POSSIBLE]  # fmt: skip
        if told:
            parts.append(bullets(told, f"**{SENTENCES[claim.id]}.** *The {claim.source}: {theirs(claim)}.*"))
    return "\n\n".join(parts)


def verdict(tables: Tables, claim: ClaimId) -> Markdown | None:
    """What the frozen rule says of a claim and one model, with its number, as Markdown; None without a table."""
    about = BY_ID[claim]
    table = tables[about.experiment]
    if not len(table):
        return None
    known = scorecard.judge(about, tables.done.get(about.experiment) or Finished({"not_possible": None}, table))
    rule = f"[a frozen rule]({page_url('book/rules.md')})"
    measured = f" ({known.measured})" if known.measured else ""
    why = f" {WHY_OTHERWISE[claim]}" if known.found and claim in WHY_OTHERWISE else ""
    return Markdown(f"*{SENTENCES[claim]}*: **{known.verdict}**, by {rule}{measured}.{why}")


def counts(tables: Tables, chapter: int) -> Markdown | None:
    """How often each verdict falls in a chapter, as Markdown; None without tables."""
    claims = [claim for claim in CLAIMS if claim.chapter == chapter and claim.experiment in tables.done]
    found = [scorecard.judge(claim, tables.done[claim.experiment]).verdict for claim in claims]
    if not found:
        return None
    told = listed(f"{n} {verdict}" for verdict, n in Counter(sorted(found, key=list(scorecard.MARKS).index)).items())
    return Markdown(f"**The chapter's {len(found)} claims, in {tables.name}:** {told}.")
