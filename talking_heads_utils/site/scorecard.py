"""All claims and all models side by side, made of results files and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from pathlib import Path
from string import Template

import pandas as pd

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.catalogue import chapters_of
from talking_heads_utils.experiments.claims import CLAIMS, Claim
from talking_heads_utils.experiments.result_files import results_folder
from talking_heads_utils.experiments.store import Finished, finished
from talking_heads_utils.experiments.verdicts import Measured, Verdict, listed
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, known_models
from talking_heads_utils.site.claim_words import (
    NOTED,
    NOTES,
    SENTENCES,
    SHORT,
    WRITTEN,
    control_in_words,
    in_words,
    plain,
    theirs,
)
from talking_heads_utils.site.sources import REPOSITORY
from talking_heads_utils.weights.packages import SMOLLM2


class NoVerdict(StrEnum):
    """Why a model has no verdict on a claim."""

    NOT_RUN = "not run yet"
    NOT_POSSIBLE = "not possible"
    STALE = "to be run again"  # the code has changed since


TOYS = (PLANTED, CONTROL)
SHOWN = {GPT2_WEIGHTS: "GPT-2 weights", SMOLLM2.name: "SmolLM2", PLANTED: "planted", CONTROL: "no channel"}
MARKS = {Verdict.SUPPORTED: "✓", Verdict.NOT_SUPPORTED: "✗", Verdict.UNDECIDED: "?", Verdict.NOT_JUDGED: "○",
         NoVerdict.NOT_RUN: "·", NoVerdict.NOT_POSSIBLE: "–", NoVerdict.STALE: "↻"}  # fmt: skip
PAGES = {1: "01_inhibition_heads", 2: "02_positional_subspace", 3: "03_weight_editing", 4: "04_icl_redundancy"}


@dataclass(frozen=True)
class Judged:
    """A claim about one model: verdict, or why there is none; what was measured.

    reason: why nothing could be measured. lacking: unit -> how many there are and how many the rule takes, where they
    are too few for it to judge.
    """

    verdict: Verdict | NoVerdict
    found: Measured | None = None
    reason: str = ""
    lacking: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """Why there is no verdict; empty where there is one."""
        few = [f"{least:,} {plain(unit)} (here {has:,})" for unit, (has, least) in self.lacking.items()]
        return f"for 80% power the rule takes {listed(few)}" if few else self.reason

    @property
    def short(self) -> str:
        """The verdict in a word or two; where there is none, why: ``4/6 listeners``, of those that the rule takes."""
        few = [f"{has:,}/{least:,} {unit.partition('_')[0]}" for unit, (has, least) in self.lacking.items()]
        return few[0] if few else str(self.verdict)

    @property
    def measured(self) -> str:
        return "; ".join(part for part in (in_words(self.found) if self.found else "", self.why) if part)

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
    return Judged(claim.verdict(found), found, claim.unsound, claim.rule.lacking(found) if claim.rule else {})


def judged(results: Mapping[str, Mapping[str, Finished]], claim: Claim) -> dict[str, Judged]:
    """Model -> what is known of a claim, for models whose chapters hold it; a toy that was not asked is left out."""
    found = {}
    for model, done in results.items():
        if claim.experiment in done:
            found[model] = judge(claim, done[claim.experiment])
        elif model in known_models() and claim.chapter in chapters_of(model):
            found[model] = Judged(NoVerdict.NOT_RUN)
    return found


def all_results() -> dict[str, dict[str, Finished]]:
    """Model -> its finished experiments, for every model of the scorecard: the known real ones, then the planted ones.
    Raises as :func:`store.finished` does."""
    return {model: finished(model) for model in (GPT2_WEIGHTS, *known_models(), *TOYS)}


# --- as a page shows it ---

MATRIX = Template(
    "<table class='claims'><thead><tr><td colspan='2'></td>$groups</tr>"
    "<tr><th scope='col' colspan='2'>claim</th>$heads</tr></thead>$bodies</table>"
)
ROW = Template("<tr>$chapter<th scope='row'><a href='#claim-$id' title='$sentence'>$claim</a></th>$cells</tr>")
CHAPTER = Template(
    "<th scope='rowgroup' rowspan='$n' class='chapter'><a href='../notebooks/$page.html' "
    "title='the $source, chapter $number'>$number</a></th>"
)
CELL = Template(
    "<td class='$kind $group'><a href='#claim-$id-$column' title='$title'>"
    "<span aria-hidden='true'>$mark</span> <span class='said'>$text</span>$note</a></td>"
)
NOTE = Template("<sup title='$meaning'>$note</sup>")
EMPTY = Template(
    "<td class='none $group' rowspan='$n'><span aria-hidden='true'>$mark</span> <span class='said'>$text</span></td>"
)
ENTRY = Template(
    "<details class='claim' id='claim-$id'><summary><span class='marks'>$marks</span>$number. $claim</summary>"
    "<p>The $source: $theirs. <a href='../notebooks/$page.html#$where'>The figure in chapter $chapter</a>$rule</p>"
    "$lines</details>"
)
RULE = Template("; <a href='rules.html#rule-$id'>the rule, frozen before the run, and its power</a>.")
LINE = Template(
    "<p class='$kind' id='claim-$id-$column'><span class='verdict' aria-hidden='true'>$mark</span> <b>$model</b>: "
    "<em>$verdict</em>$measured$control$note$table</p>"
)
DATA = Template(" <a href='$address' title='the table that this is computed from'><code>$name</code></a>")


def _filled(template: Template, html: Mapping[str, str] | None = None, **text: object) -> str:
    """A template with text, escaped, and parts that are HTML already."""
    return template.substitute({name: escape(str(value)) for name, value in text.items()} | dict(html or {}))


def columns(results: Mapping[str, Mapping[str, Finished]]) -> tuple[list[str], list[str]]:
    """The models that something is known of: real ones, and controls."""
    there = [model for model, done in results.items() if done]
    return [m for m in there if m not in TOYS], [m for m in there if m in TOYS]


def in_a_sentence(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """How often each verdict falls, real model by real model, as Markdown."""
    parts = []
    for model in columns(results)[0]:
        found = [judged({model: results[model]}, claim) for claim in CLAIMS]
        counts = Counter(known.verdict for by_model in found for known in by_model.values())
        asked = sum(n for verdict, n in counts.items() if verdict in list(Verdict))
        told = listed(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
        seen = [NOTED[model, claim.id] for claim, by in zip(CLAIMS, found) if by and (model, claim.id) in NOTED]
        blind = f" ({len(seen)} not blind: {', '.join(dict.fromkeys(seen))})" if seen else ""
        parts.append(f"**{shown(model)}**, asked about {asked} of {len(CLAIMS)} claims: {told}{blind}.")
    return " ".join(parts)


def legend(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """What the marks in :func:`as_matrix` mean, of those that it has."""
    seen = {known.verdict for claim in CLAIMS for known in judged(results, claim).values()}
    return ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items() if verdict in seen - {NoVerdict.NOT_RUN})


def notes(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """What the small marks in :func:`as_matrix` mean, of those that it has."""
    seen = {_note(model, claim, known) for claim in CLAIMS for model, known in judged(results, claim).items()}
    return " ".join(f"{mark} {meaning}" for mark, meaning in NOTES.items() if mark in seen)


def _note(model: str, claim: Claim, known: Judged) -> str:
    """The mark of what must be known of a verdict; a control's is for one that looks as if it had failed."""
    mark = NOTED.get((model, claim.id), "")
    return mark if known.found and (mark != WRITTEN or known.verdict == Verdict.SUPPORTED) else ""


def as_matrix(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The scorecard at a glance: a row per claim, a column per model that was run, a mark and a word for each verdict,
    real models first and the controls apart. A cell leads to what it stands on in :func:`as_html`."""
    real, controls = columns(results)
    groups = "".join(
        f"<th scope='colgroup' colspan='{len(names)}' class='{group}'>{title}</th>"
        for group, title, names in (("real", "real models", real), ("toy", "controls", controls))
        if names
    )
    heads = "".join(f"<th scope='col' class='{_group(m)}'>{escape(shown(m))}</th>" for m in (*real, *controls))
    bodies = [_body(chapter, results) for chapter in PAGES]
    return MATRIX.substitute(groups=groups, heads=heads, bodies="".join(bodies))


def _body(chapter: int, results: Mapping[str, Mapping[str, Finished]]) -> str:
    """The rows of a chapter's claims. A model that none of them was asked of has one cell, which says why."""
    found = {claim: judged(results, claim) for claim in CLAIMS if claim.chapter == chapter}
    asked = {model for by_model in found.values() for model in by_model}
    first = _filled(CHAPTER, n=len(found), page=PAGES[chapter], number=chapter, source=next(iter(found)).source)
    rows: list[str] = []
    for claim, by_model in found.items():
        cells = []
        for model in (model for names in columns(results) for model in names):
            if model in by_model:
                cells.append(_cell(claim, model, by_model[model]))
            elif model in asked or not rows:
                cells.append(_empty(model, 1 if model in asked else len(found)))
        html = {"cells": "".join(cells), "chapter": "" if rows else first}
        rows.append(_filled(ROW, html, id=claim.id, claim=SHORT[claim.id], sentence=SENTENCES[claim.id]))
    return f"<tbody>{''.join(rows)}</tbody>"


def _cell(claim: Claim, model: str, known: Judged) -> str:
    text = _no_run(model) if known.verdict == NoVerdict.NOT_POSSIBLE else ""
    note = _note(model, claim, known)
    html = {"note": _filled(NOTE, note=note, meaning=NOTES[note]) if note else ""}
    return _filled(
        CELL, html, kind=str(known.verdict).replace(" ", "-"), group=_group(model), id=claim.id, column=_column(model),
        title=f"{shown(model)}: {known}", mark=MARKS[known.verdict], text=text or known.short,
    )  # fmt: skip


def _empty(model: str, n_rows: int) -> str:
    text = _no_run(model) or ("no tasks in context" if model in TOYS else "not asked")
    return _filled(EMPTY, group=_group(model), n=n_rows, mark=MARKS[NoVerdict.NOT_POSSIBLE], text=text)


def _no_run(model: str) -> str:
    return "weights only" if model == GPT2_WEIGHTS else ""


def shown(model: str) -> str:
    """A model's name on this page."""
    return SHOWN.get(model, model)


def _group(model: str) -> str:
    return "toy" if model in TOYS else "real"


def _column(model: str) -> str:
    """A model's name as part of an address."""
    return re.sub(r"\W+", "-", model)


def as_html(results: Mapping[str, Mapping[str, Finished]]) -> str:
    """What every cell stands on: an entry per claim, folded; within it a line per model, with what was measured, its
    control and the table that both are computed from."""
    entries = []
    there = {model: results[model] for names in columns(results) for model in names}
    for number, claim in enumerate(CLAIMS, 1):
        found = judged(there, claim)
        html = {
            "lines": "".join(_line(claim, model, known) for model, known in found.items()),
            "rule": RULE.substitute(id=claim.id) if claim.rule else ".",
        }
        entries.append(_filled(
            ENTRY, html, number=number, id=claim.id, claim=SENTENCES[claim.id], source=claim.source,
            page=PAGES[claim.chapter], where=claim.where, chapter=claim.chapter, theirs=theirs(claim),
            marks=", ".join(f"{shown(m)} {MARKS[known.verdict]}" for m, known in found.items() if m not in TOYS),
        ))  # fmt: skip
    return f"<div class='scorecard'>{''.join(entries)}</div>"


def _line(claim: Claim, model: str, known: Judged) -> str:
    control = f" Control: {known.control}." if known.control else ""
    table, note = _data(model, claim.experiment) if known.found else "", _note(model, claim, known)
    return _filled(
        LINE, {"table": table}, kind=_group(model), id=claim.id, column=_column(model), mark=MARKS[known.verdict],
        model=shown(model), verdict=known.verdict, control=control, note=f" {note} {NOTES[note]}" if note else "",
        measured=f". {known.measured[0].upper()}{known.measured[1:].rstrip('.')}." if known.measured else ".",
    )  # fmt: skip


def _data(model: str, experiment: str) -> str:
    """A link to a stored table in the repository."""
    known = known_models().get(model)
    folder = results_folder(Path("data/results"), model, known.revision if known else None)
    name = f"{folder.name}/{experiment}.parquet"
    return _filled(DATA, address=f"{REPOSITORY}/blob/main/{folder.parent.as_posix()}/{name}", name=name)


def not_run(model: str) -> str:
    """What makes a real model's results, as the command to type."""
    dtype = " --dtype bfloat16" if known_models()[model].gigabytes() > 20 else ""
    return f"python -m talking_heads_utils reproduce --model {model}{dtype} --device cuda"


def table_of(model: str, experiment: str) -> pd.DataFrame:
    """The table of a model's finished experiment. Raises :class:`OptionError` where there is none."""
    result = finished(model).get(experiment)
    if result is None or result.reason:
        raise OptionError(f"{experiment} is not finished for {model}: the command reproduce makes it.")
    return result.table
