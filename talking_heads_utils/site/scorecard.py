"""All claims and all models side by side, in words, made of results files and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from math import isnan
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.catalogue import EXPERIMENTS, chapters_of
from talking_heads_utils.experiments.claims import BY_ID, CLAIMS, Claim, ClaimId
from talking_heads_utils.experiments.icl import post
from talking_heads_utils.experiments.store import Finished, finished
from talking_heads_utils.experiments.verdicts import Measured, Verdict
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS
from talking_heads_utils.models import PLANTED, known_models

if TYPE_CHECKING:
    import pandas as pd


class NoVerdict(StrEnum):
    """Why a model has no verdict on a claim."""

    NOT_RUN = "not run yet"
    NOT_POSSIBLE = "not possible"
    STALE = "to be run again"  # the code has changed since


TOYS = (PLANTED, CONTROL)  # those that were trained here stand on the page of the models
MARKS = {Verdict.SUPPORTED: "✓", Verdict.NOT_SUPPORTED: "✗", Verdict.UNDECIDED: "?", Verdict.NOT_JUDGED: "○",
         NoVerdict.NOT_RUN: "·", NoVerdict.NOT_POSSIBLE: "–", NoVerdict.STALE: "↻"}  # fmt: skip
PAGES = {1: "01_inhibition_heads", 2: "02_positional_subspace", 3: "03_weight_editing", 4: "04_icl_redundancy"}
UNREAD, OVER_20 = "claimed; its number could not be read", "over 20%; of what could not be read"

# --- words ---

SENTENCES = {
    ClaimId.STAND_OUT: "Heads that are known to talk to each other stand out by their weights alone",
    ClaimId.LISTENERS: "The heads that listen are told from the others by what their queries read",
    ClaimId.PRIVILEGED: "The channel lies along a singular vector, more than a random basis would have it",
    ClaimId.PREDICTED: "Weights alone name the component that carries a head's inhibition",
    ClaimId.CONCENTRATED: "Two components a head, named by the weights, carry half of the inhibition",
    ClaimId.IN_LISTS: "In running text the heads look back in lists and at repetitions",
    ClaimId.INDEXES: "A 3D subspace indexes list items by place",
    ClaimId.THREE_DIMENSIONS: "Three dimensions carry what behaviour takes from it",
    ClaimId.TRAVERSED: "That subspace can be traversed by hand",
    ClaimId.ERRORS_NEAR: "Errors go to neighbours in it, where points are crowded",
    ClaimId.CROWDS: "Crowding costs accuracy: a wider cloud answers more long lists",
    ClaimId.ORDER: "Accuracy depends on the answer's place in the list, in either order",
    ClaimId.STEERING_GAINS: "Steering improves accuracy, beyond a correction of the logits by index",
    ClaimId.LOWERS: "Removing one such component lowers the movers' inhibition by a quarter or more",
    ClaimId.EDIT_GAINS: "Weight edits improve accuracy by over 20%",
    ClaimId.REDUNDANT: "Many heads are redundant",
    ClaimId.SURVIVES: "With all heads of two layers out, little changes",
    ClaimId.MOVES_UP: "The first layer whose patch works moves up as heads go",
    ClaimId.BACKUPS: "Backup heads step in",
    ClaimId.EVIDENCE: "Log-odds follow the signed evidence, as a Bayesian's do",
    ClaimId.ADDS: "Contributions of examples add",
    ClaimId.LOOKS_BACK: "The token before y attends to earlier y",
    ClaimId.IN_PARTS: "MLPs hold subtasks",
}
RULES = {
    ClaimId.STAND_OUT: "All links together: heads' names are dealt anew within every layer, once for all roles. "
    "Supported if at most 5% of the deals give as high a mean percentile, not supported if more than 20% do. Takes 8 "
    "writers. The single links' p, corrected for being several, stand beside it.",
    ClaimId.LISTENERS: "AUC of movers and backup movers against all other later heads. Supported if at most 5% of "
    "choices of as many heads from the same layers reach it, not supported if more than 20% do. Takes 6 listeners "
    "and 10,000 choices.",
    ClaimId.PRIVILEGED: "Best singular component over the best of random bases of the same head. Supported if at most "
    "1 of 20 random bases does as well over these heads, and at most 5% of choices of as many heads of their layers "
    "have as large a ratio; undecided if the first alone. Takes two heads, and 20 choices of heads.",
    ClaimId.PREDICTED: "In each head, the component that the weights name against the one whose exchange does most. "
    "Supported if so many right ones have a chance of at most 5%, and the largest singular value and the largest "
    "variance each rank the right one at least 2.5 times as far down. Where such a baseline does about as well, the "
    "weights have shown nothing beyond it: undecided, however many are right. Takes two heads.",
    ClaimId.CONCENTRATED: "At most two components of each head, named by the weights, exchanged in all movers' queries "
    "at once. Supported if the lower end of their share of the whole heads' effect is at least one half and at most "
    "5% of 99 sets, matched on layer and energy, do as much; not supported if the upper end is below one half or more "
    "sets do. Takes 50 prompts.",
    ClaimId.IN_LISTS: "Each head's attention to what was seen before, where its component is large, against 100 "
    "matched components, corrected for the number of heads. Supported if more than half of the heads have p of at most "
    "5%, not supported if none has. Takes 20 matched components for every head that is judged.",
    ClaimId.INDEXES: "Lists of six, three coordinates, fitted on other wordings. Supported if the lower end of the "
    "share whose index is decoded is above chance, at most 5% of 99 matched triples decode as much, and the index is "
    "decoded more surely than the item (the interval of the difference is above zero).",
    ClaimId.THREE_DIMENSIONS: "A donor's coordinates go into a list of other items; effect on the logit difference, "
    "mean over lists of 4 and of 6. Supported if the lower ends are above 80% of what ten dimensions do, half of what "
    "the whole stream does and half of what donors of the same items do, and at most 5% of 99 matched triples do as "
    "much in either length. Not supported if an upper end is below its mark: ten even dimensions, or the item moves "
    "and not the place.",
    ClaimId.TRAVERSED: "Settings that bring attention to each index of lists of six, chosen on one half, scored on the "
    "other. Supported if at most 5% of 99 matched triples, moved as far, bring as much attention over all indices, and "
    "at more than half of the indices the answer follows: the lower end is above what it was without steering.",
    ClaimId.ERRORS_NEAR: "Margin: distance of a list's point from the nearest other index's mean less that from its "
    "own. Supported if errors go to the nearest index more than wrong answers dealt anew within the answer's index, "
    "and the log-odds of being right rise with the margin, both intervals above zero and both p at most 5%, the "
    "slope's by 99 matched triples. Takes 100 errors.",
    ClaimId.CROWDS: "All deviations from the cloud's mean are doubled, blind to the answer. Supported if accuracy "
    "rises, with its interval above zero, at most 5% of 99 matched triples of equal energy raise it as much, and the "
    "rise is larger than in lists of 4. Not supported if the upper end is below 5 points. Undecided where accuracy is "
    "above 95%.",
    ClaimId.ORDER: "Supported if the range of accuracy over indices is as large in at most 5% of deals of the right "
    "answers over all lists, in kept and in shuffled order both; not supported if it is in more than 20% in either. "
    "Whether the subspace makes it so is not judged: putting all lists at one point there makes a model answer one "
    "index, wherever the dependence comes from.",
    ClaimId.STEERING_GAINS: "One setting for all lists and a correction of the logits by index, chosen together on "
    "other lists, against that correction alone. Supported if the difference's interval is above zero and at most 5% "
    "of 99 matched triples, with the same search, gain as much.",
    ClaimId.LOWERS: "The strongest component of each inhibition head on other prompts is removed from the movers' "
    "queries on IOI. It counts where the lower end of the share of I(m) that is gone is a quarter and its p by matched "
    "components, corrected for the number of heads, at most 5%. Supported if it counts in half of the heads, not "
    "supported if in none. Takes two heads and 20 matched components for each.",
    ClaimId.EDIT_GAINS: "The edit that was best on other lists. Supported if the lower end of its gain is above 20 "
    "points, above the best of 20 random draws with the same search, and above a correction of the logits by index. "
    "Undecided if 20 is passed in percent of the accuracy before, but not in points; the paper does not say which it "
    "counts.",
    ClaimId.REDUNDANT: "Five heads, chosen by direct effect and by what each brings to a twin, exchanged together at "
    "the last token, over tasks. Supported if the interval of joint over summed loss is above "
    "1.25 and at most 5% of sets matched on direct effect have as much; not supported if it is "
    "below 1.25; undecided where matched sets have as much or nothing is clearly lost. Takes 5 "
    "tasks of 100 prompts and 19 matched sets.",
    ClaimId.SURVIVES: "All heads of the post's two layers, in proportion to depth, out at the last token, set to "
    "zero and exchanged. Supported if the lower end of the change of accuracy is above a tenth of "
    "it either way, not supported if an upper end is below. Takes 6 tasks of 48 prompts.",
    ClaimId.MOVES_UP: "Supported if the first working patch moves up by more than half a layer without these two "
    "layers, and more than without other neighbouring pairs below it, both intervals over tasks, "
    "and a patch still works in more than half of the cases. Takes 5 tasks of 32 pairs.",
    ClaimId.BACKUPS: "Each chosen head exchanged alone; direction and scale of the untouched run. Supported if the "
    "lower end of the share of its direct effect that others recover is above a tenth, over "
    "tasks, and at most 5% of draws of matched heads have as much; undecided where they do. Takes "
    "5 tasks of 100 prompts and 19 draws.",
    ClaimId.EVIDENCE: "Supported if log-odds rise with signed evidence, their slope grows with log((1 - e) / e) at "
    "least half as fast as in proportion, ten labels bend it by a quarter at most, orders of one "
    "sequence differ by less than a tenth of the variance by evidence, and no other reader "
    "explains 5% more, all by their intervals. Takes 4 rates of 100 sequences.",
    ClaimId.ADDS: "What eight examples contribute together over the sum of what each does alone. Supported if "
    "the interval lies between 0.8 and 1.25, not supported if outside, undecided where the sum is "
    "not clearly above zero. Takes 80 sequences.",
    ClaimId.LOOKS_BACK: "Supported if at most 5% of deals of heads' names within layers give chosen heads as much "
    "attention to earlier answers beyond an even one, and as much beyond that to earlier x; not "
    "supported if more than 20% do in either. Takes 5 tasks and 10 heads.",
    ClaimId.IN_PARTS: "A layer counts where, with its part exchanged at the last token, a quarter of one attribute "
    "is clearly lost and at most a tenth of another. Supported if more MLPs than attention layers "
    "count, by the interval over tasks with two attributes; not supported if not. Takes 4 tasks "
    "of 100 prompts.",
}
THEIRS = {
    ClaimId.CONCENTRATED: "claimed of GPT-2 small's inhibition heads",
    ClaimId.THREE_DIMENSIONS: "three dimensions; of behaviour this book's reading",
    ClaimId.LOWERS: "claimed; no number could be read",
    ClaimId.TRAVERSED: "claimed, with a grid of 21 x 21 x 21 settings",
    ClaimId.ORDER: "claimed of the order of items, through the subspace: that link is not judged here; no number could "
    "be read",
    ClaimId.STEERING_GAINS: OVER_20,
    ClaimId.EDIT_GAINS: OVER_20,
    ClaimId.IN_LISTS: "claimed of Open Web Text",
}  # of the paper; the rest could not be read. The post's come with its data.


def theirs(claim: Claim) -> str:
    """What the source shows for a claim."""
    return (THEIRS | post.said()).get(claim.id, UNREAD)


def in_words(found: Measured) -> str:
    """What was measured, with interval and n: ``gain of one setting 3.1 points [1.0, 5.2], n = 200``."""
    value = f"{plain(found.what)} {_number(found.value, found.low, found.high, found.unit)}"
    return f"{value}, n = {found.n:,}{'' if found.n_of == 'prompts' else f' {found.n_of}'}" if found.n else value


def control_in_words(found: Measured) -> str:
    """Its control, empty where there is none."""
    if not found.control_label:
        return ""
    control = _number(found.control, found.control_low, found.control_high, found.unit)
    also = [f"{plain(name)} {value:.3g}" for name, value in found.also.items()]
    p = [] if isnan(found.p) else [p_in_words(found.p)]
    return ", ".join([f"{plain(found.control_label)} {control}", *p, *also])


def p_in_words(p: float) -> str:
    """``p = 0.021``; below what the draws can tell, ``p < 0.0001``."""
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"


def plain(name: object) -> str:
    """A name in code as words."""
    return str(name).replace("_", " ")


def _number(value: float, low: float, high: float, unit: str) -> str:
    if isnan(value):
        return "none"
    digits = 2 if abs(value) >= 0.1 else 3
    interval = "" if isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}{'' if unit in ('', 'share') else f' {unit}'}"


# --- what is known of a claim and a model ---


@dataclass(frozen=True)
class Judged:
    """A claim about one model: verdict, or why there is none; what was measured. reason: why nothing could be, or why
    it is not judged."""

    verdict: Verdict | NoVerdict
    found: Measured | None = None
    reason: str = ""

    @property
    def measured(self) -> str:
        return "; ".join(part for part in (in_words(self.found) if self.found else "", self.reason) if part)

    @property
    def control(self) -> str:
        return control_in_words(self.found) if self.found else ""

    def __str__(self) -> str:
        control = f" (control: {self.control})" if self.control else ""
        return f"{self.verdict}: {self.measured}{control}" if self.measured else str(self.verdict)


def judge(claim: Claim, result: Finished) -> Judged:
    """What a model's finished experiment says of a claim."""
    if result.reason:
        return Judged(NoVerdict.NOT_POSSIBLE, reason=result.reason)
    if result.stale:
        return Judged(NoVerdict.STALE)
    found = claim.measure(result.table)
    return Judged(claim.verdict(found), found, _too_few(claim, found))


def _too_few(claim: Claim, found: Measured) -> str:
    """Why a rule may not judge what was measured; empty where it may, or where there is no rule."""
    lacking = claim.rule.lacking(found) if claim.rule else {}
    return " and ".join(f"{has} {plain(unit)}, where 80% power takes {least}" for unit, (has, least) in lacking.items())


def judged(results: Mapping[str, Mapping[str, Finished]], claim: Claim) -> dict[str, Judged]:
    """Model -> what is known of a claim, for models whose chapters hold it; a toy that was not asked is left out."""
    found = {}
    for model, done in results.items():
        if claim.experiment in done:
            found[model] = judge(claim, done[claim.experiment])
        elif model in known_models() and claim.chapter in chapters_of(model):
            found[model] = Judged(NoVerdict.NOT_RUN)
    return found


def judged_of(model: str, claim: ClaimId) -> Judged:
    """What is known of a claim and a model of the scorecard."""
    return judged({model: finished(model)}, BY_ID[claim])[model]


def models() -> list[str]:
    """Every model of the scorecard: the known real ones, then the planted ones."""
    return [
        GPT2_WEIGHTS,
        *known_models(),
        *TOYS,
    ]


def all_results(root: Path | None = None) -> dict[str, dict[str, Finished]]:
    """Model -> its finished experiments, for every model of the scorecard. Raises as :func:`store.finished` does."""
    return {model: finished(model, root) for model in models()}


# --- as a page shows it ---

MATRIX = Template(
    "<table class='claims'><thead><tr><th scope='col'>claim</th>$heads</tr></thead><tbody>$rows</tbody></table>"
)
MATRIX_ROW = Template("<tr><th scope='row'>$number. <a href='#claim-$id'>$claim</a></th>$cells</tr>")
CELL = Template(
    "<td title='$model: $verdict'><span aria-hidden='true'>$mark</span>"
    "<span class='visually-hidden'>$verdict</span></td>"
)
TABLE = Template(
    "<table class='scorecard'><thead><tr><th scope='col'>claim</th><th scope='col'>theirs</th>"
    "<th scope='col'>ours, by model</th></tr></thead><tbody>$rows</tbody></table>"
)
ROW = Template(
    "<tr id='claim-$id'><th scope='row'>$number. $claim<br><small>the $source; "
    "<a href='../notebooks/$page.html#$where'>chapter $chapter</a>$rule$why</small></th>"
    "<td>$theirs</td><td>$lines</td></tr>"
)
RULE = Template("; <a href='rules.html#rule-$id'>judged by a frozen rule</a>")
LINE = Template(
    "<p class='$kind'><span class='verdict'>$mark</span> <b>$model</b> <em>$verdict</em>$measured$control</p>"
)


def _filled(template: Template, html: Mapping[str, str] | None = None, **text: object) -> str:
    """A template with text, escaped, and parts that are HTML already."""
    return template.substitute({name: escape(str(value)) for name, value in text.items()} | dict(html or {}))


def as_matrix(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The scorecard at a glance: a row per claim, a column per model, a mark for each verdict. Models that were not run
    come last, since a phone shows the first columns alone."""
    found = {claim: judged(results, claim) for claim in CLAIMS}
    last = {m for m in results if all(by[m].verdict == NoVerdict.NOT_RUN for by in found.values() if m in by)}
    ordered = sorted(results, key=last.__contains__)
    rows = []
    for number, (claim, by_model) in enumerate(found.items(), 1):
        cells = [_cell(model, by_model[model]) if model in by_model else "<td></td>" for model in ordered]
        row = dict(number=number, id=claim.id, claim=SENTENCES[claim.id])
        rows.append(_filled(MATRIX_ROW, {"cells": "".join(cells)}, **row))
    heads = "".join(f"<th scope='col'><span>{escape(model)}</span></th>" for model in ordered)
    return MATRIX.substitute(heads=heads, rows="".join(rows))


def _cell(model: str, known: Judged) -> str:
    return _filled(CELL, model=model, verdict=known.verdict, mark=MARKS[known.verdict])


def as_html(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The scorecard in full: a row per claim; within it a line per model, with what was measured and its control."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        lines = "".join(_line(model, known) for model, known in judged(results, claim).items())
        html = {"lines": lines, "rule": RULE.substitute(id=claim.id) if claim.rule else ""}
        rows.append(_filled(
            ROW, html, number=number, id=claim.id, claim=SENTENCES[claim.id], source=claim.source,
            page=PAGES[claim.chapter], where=claim.where, chapter=claim.chapter, theirs=theirs(claim),
            why=f"; not judged: {claim.unsound}" if claim.unsound else "",
        ))  # fmt: skip
    return TABLE.substitute(rows="".join(rows))


def _line(model: str, known: Judged) -> str:
    control = f" <small>Control: {escape(known.control)}.</small>" if known.control else ""
    return _filled(
        LINE, {"control": control}, kind="toy" if model in TOYS else "real", mark=MARKS[known.verdict], model=model,
        verdict=known.verdict, measured=f": {known.measured}" if known.measured else "",
    )  # fmt: skip


def not_run(model: str) -> str:
    """What makes a real model's results, as the command to type."""
    dtype = " --dtype bfloat16" if known_models()[model].gigabytes() > 20 else ""
    return f"python -m talking_heads_utils reproduce --model {model}{dtype} --device cuda"


def real_models(chapter: int) -> str:
    """What a chapter's page says of real models, as Markdown: what is known of its claims and how that was made, or
    that they were not run and what runs them."""
    parts = []
    for model in (name for name, known in known_models().items() if chapter in known.chapters):
        done = finished(model)
        lines = [
            f"* {SENTENCES[claim.id]}: {known}{f'; not judged: {claim.unsound}' if claim.unsound else ''}."
            for claim in CLAIMS
            if claim.chapter == chapter and claim.experiment in done
            for known in judged({model: done}, claim).values()
        ]
        made = next((r.describe() for r in done.values() if r.about["chapter"] == chapter), None)
        run = f"**{model}: not run yet.** This makes its results:\n\n```bash\n{not_run(model)}\n```"
        parts.append("\n".join([f"**{model}, real model.**\n", *lines, f"\nMade with: {made}."]) if lines else run)
    return "\n\n".join(parts)


def to_run(model: str | None, chapter: int) -> list[str]:
    """The model that a chapter's page adds to the book's own: none where none is named or its results are finished."""
    if model is None:
        return []
    done = finished(model) if model in known_models() else {}
    return [] if done and all(e.name in done for e in EXPERIMENTS if e.chapter == chapter) else [model]


def result_of(model: str, experiment: str) -> Finished:
    """A model's finished experiment. Raises :class:`OptionError` where there is no table."""
    result = finished(model).get(experiment)
    if result is None or result.reason:
        raise OptionError(f"{experiment} is not finished for {model}: the command reproduce makes it.")
    return result


def table_of(model: str, experiment: str) -> pd.DataFrame:
    """The table of a model's finished experiment. Raises :class:`OptionError` where there is none."""
    return result_of(model, experiment).table
