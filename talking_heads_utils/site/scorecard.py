"""All claims and all models side by side, made of results files and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from talking_heads_utils import roles
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.catalogue import EXPERIMENTS, chapters_of
from talking_heads_utils.experiments.claims import CLAIMS, PAPER, WEIGHTS, Claim, judge
from talking_heads_utils.experiments.icl import post
from talking_heads_utils.experiments.inhibition import links
from talking_heads_utils.experiments.store import Finished, finished
from talking_heads_utils.experiments.verdicts import NOT_JUDGED, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict
from talking_heads_utils.models import PLANTED, known_models, shipped_models
from talking_heads_utils.scores.scores import load_shipped_scores

if TYPE_CHECKING:
    import pandas as pd

REAL_WEIGHTS = "gpt2, weights alone"
NOT_RUN, NOT_POSSIBLE = "not run yet", "not possible"
TOYS = (
    PLANTED,
    "mini-token/early",
    "mini-token",
    "mini-place/early",
    "mini-place",
    "mini-icl",
    "mini-icl-plain",
    "mini-icl-noisy",
)
MARKS = {SUPPORTED: "✓", NOT_SUPPORTED: "✗", UNDECIDED: "?", NOT_JUDGED: "○", NOT_RUN: "·", NOT_POSSIBLE: "–"}


def models() -> list[str]:
    """Every model of the scorecard: the known real ones, then the book's own as far as they ship."""
    return [*known_models(), *(name for name in TOYS if name == PLANTED or name in shipped_models())]


def verdicts(results: Mapping[str, Mapping[str, Finished]], claim: Claim) -> dict[str, Verdict]:
    """Model -> verdict on a claim, for models whose chapters hold it; a toy that was not asked is left out."""
    found = {}
    for model, done in results.items():
        result = done.get(claim.needs)
        if result is None:
            if model in known_models() and claim.chapter in chapters_of(model) and claim.needs != WEIGHTS:
                found[model] = Verdict(claim.name, "", "", NOT_RUN)
        elif result.reason:
            found[model] = Verdict(claim.name, result.reason, "", NOT_POSSIBLE)
        elif verdict := judge(claim, {claim.needs: result.table}):
            found[model] = verdict
    return found


def all_results(root: Path | None = None) -> dict[str, dict[str, Finished]]:
    """Model -> its finished experiments, for every model of the scorecard. Raises as :func:`store.finished` does."""
    return {REAL_WEIGHTS: {WEIGHTS: weights_alone()}} | {model: finished(model, root) for model in models()}


def weights_alone() -> Finished:
    """What GPT-2 small's real weights say of its published heads, from the scores that ship with the book."""
    import pandas as pd

    scores, heads = load_shipped_scores(), roles.gpt2_small_roles()
    writers, readers = heads[roles.S_INHIBITION], heads[roles.NAME_MOVER]
    test = links.best_z_test(scores, writers, readers, "Q")
    row = test._asdict() | {"writers": len(writers), "readers": len(readers)}
    return Finished(dict(scores.about) | {"not_possible": None}, pd.DataFrame([row]))


def said(claim: Claim) -> str:
    """What the source shows for a claim."""
    if claim.source == PAPER:
        return claim.said
    last = post.reported()["patching"][-1]
    late = (
        f"{last['out']} out: B answers 2x: {last['b_answers_30']}; A's answer from layer {last['takes_over']} on "
        f"({last['takes_over_with']})"
    )
    return post.said()[claim.said] if claim.said else late


def as_matrix(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The scorecard at a glance: a row per claim, a column per model, a mark for each verdict. Models that were not run
    come last, since a phone shows the first columns alone."""
    found = [verdicts(results, claim) for claim in CLAIMS]
    ordered = sorted(results, key=lambda model: all(v.verdict == NOT_RUN for by in found if (v := by.get(model))))
    heads = "".join(f"<th scope='col'><span>{escape(model)}</span></th>" for model in ordered)
    rows = []
    for number, (claim, by_model) in enumerate(zip(CLAIMS, found), 1):
        cells = "".join(
            f"<td title='{escape(model)}: {v.verdict}'><span aria-hidden='true'>{MARKS[v.verdict]}</span>"
            f"<span class='visually-hidden'>{v.verdict}</span></td>"
            if (v := by_model.get(model)) else "<td></td>"
            for model in ordered
        )  # fmt: skip
        row = f"<th scope='row'>{number}. <a href='#claim-{number}'>{escape(claim.name)}</a></th>"
        rows.append(f"<tr>{row}{cells}</tr>")
    head = f"<thead><tr><th scope='col'>claim</th>{heads}</tr></thead>"
    return f"<table class='claims'>{head}<tbody>{''.join(rows)}</tbody></table>"


def as_html(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The scorecard in full: a row per claim; within it a line per model, with what was measured and its control."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        found = verdicts(results, claim)
        lines = [_line(model, verdict) for model, verdict in found.items()]
        where = f'<a href="../{escape(claim.link.replace(".ipynb", ".html"))}">chapter {claim.chapter}</a>'
        rows.append(
            f"<tr id='claim-{number}'><th scope='row'>{number}. {escape(claim.name)}<br>"
            f"<small>the {claim.source}; {where}{_why(found)}</small></th>"
            f"<td>{escape(said(claim))}</td><td>{''.join(lines)}</td></tr>"
        )
    head = "<tr><th scope='col'>claim</th><th scope='col'>theirs</th><th scope='col'>ours, by model</th></tr>"
    return f"<table class='scorecard'><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _why(found: Mapping[str, Verdict]) -> str:
    """What is wrong with the rule, where it may not judge."""
    why = next((v.why for v in found.values() if v.why), "")
    return f"; not judged: {escape(why)}" if why else ""


def _line(model: str, verdict: Verdict) -> str:
    kind = "toy" if model in TOYS else "real"
    measured = f": {verdict.measured}" if verdict.measured else ""
    control = f" <small>Control: {escape(verdict.control)}.</small>" if verdict.control else ""
    return (
        f"<p class='{kind}'><span class='verdict'>{MARKS[verdict.verdict]}</span> <b>{escape(model)}</b> "
        f"<em>{verdict.verdict}</em>{escape(measured)}{control}</p>"
    )


def not_run(model: str) -> str:
    """What makes a real model's results, as the command to type."""
    dtype = " --dtype bfloat16" if known_models()[model].gigabytes() > 20 else ""
    return f"python -m talking_heads_utils reproduce --model {model}{dtype} --device cuda"


def is_finished(model: str | None, chapter: int) -> bool:
    """Whether every experiment of a chapter is finished for a known real model, so that its page need not run it."""
    if model not in known_models():
        return False
    done = finished(model)
    return all(e.name in done for e in EXPERIMENTS if e.chapter == chapter)


def real_models(chapter: int) -> str:
    """What a chapter's page says of real models, as Markdown: their verdicts with how they were made, or that they were
    not run and what runs them."""
    parts = []
    for model in (name for name, known in known_models().items() if chapter in known.chapters):
        results = {model: finished(model)}
        lines = [
            f"* {claim.name}: *{verdict.verdict}*{verdict.why and f', for {verdict.why}'}. {verdict.measured} "
            f"(control: {verdict.control})"
            for claim in CLAIMS
            if claim.chapter == chapter
            for verdict in verdicts(results, claim).values()
            if verdict.verdict != NOT_RUN
        ]
        made = next((r.describe() for r in results[model].values() if r.about["chapter"] == chapter), None)
        run = f"**{model}: not run yet.** This makes its results:\n\n```bash\n{not_run(model)}\n```"
        parts.append("\n".join([f"**{model}, real model.**\n", *lines, f"\nMade with: {made}."]) if lines else run)
    return "\n\n".join(parts)


def to_run(model: str | None, chapter: int) -> list[str]:
    """The model that a chapter's page adds to the book's own: none where none is named or its results are finished."""
    return [] if model is None or is_finished(model, chapter) else [model]


def table_of(model: str, experiment: str) -> pd.DataFrame:
    """The table of a model's finished experiment. Raises :class:`OptionError` where there is none."""
    result = finished(model).get(experiment)
    if result is None or result.reason:
        raise OptionError(f"{experiment} is not finished for {model}: the command reproduce makes it.")
    return result.table


def verdict_of(model: str, experiment: str) -> Verdict:
    """The verdict of a model of the scorecard on the claim that an experiment tests, or that it was not run."""
    claim = next(claim for claim in CLAIMS if claim.needs == experiment)
    return verdicts({model: finished(model)}, claim)[model]


def verdict_on(model: str, experiment: str) -> str:
    """:func:`verdict_of` in words, with what was measured."""
    found = verdict_of(model, experiment)
    return f"{found.verdict}: {found.measured}" if found.measured else found.verdict
