"""What the sentences of all chapters share: how they are shown, how intervals read, and a chapter's claims beside the
paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from talking_heads_utils.experiments.claims import CLAIMS
from talking_heads_utils.site import scorecard

if TYPE_CHECKING:
    from talking_heads_utils.experiments.store import Finished


def said(say: Callable[..., str]) -> Callable[..., Any]:
    """As Markdown; None where the first argument is empty, or there is nothing to say."""

    @wraps(say)
    def shown(first: Any, *more: Any) -> Any:
        from IPython.display import Markdown

        text = say(first, *more) if len(first) else ""
        return Markdown(text) if text else None

    return shown


def share(row: Any, value: str = "share", ends: str = "") -> str:
    """``61% [58%, 64%]``."""
    return f"{row[value]:.0%} [{row[f'{ends}low']:.0%}, {row[f'{ends}high']:.0%}]"


@said
def against(results: Mapping[str, Mapping[str, Finished]], chapter: int) -> str:
    """The claims that a chapter tests, what the paper shows of them, and what was found, model by model. results:
    what a sentence calls a model -> its finished experiments."""
    parts = []
    for claim in (claim for claim in CLAIMS if claim.chapter == chapter):
        told = [f"- {model}: **{known.verdict}**{'; ' * bool(known.measured)}{known.measured}"
                f"{f' ({known.control})' if known.control else ''}"
                for model, known in scorecard.judged(results, claim).items()
                if known.verdict != scorecard.NoVerdict.NOT_POSSIBLE]  # fmt: skip
        if told:
            head = f"**{scorecard.SENTENCES[claim.id]}.** *The paper: {scorecard.theirs(claim)}.*\n"
            parts.append("\n".join([head, *told]))
    return "\n\n".join(parts)
