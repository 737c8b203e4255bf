"""Claims by id, what is measured for them, and the scorecard that is made of finished results alone."""

import json
import re
from html import escape
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from pyarrow.parquet import read_schema
from safetensors import safe_open

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments import store
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.claims import BY_ID, CLAIMS, ClaimId
from talking_heads_utils.experiments.store import Finished
from talking_heads_utils.experiments.verdicts import Measured, Verdict
from talking_heads_utils.files import data_dir
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, known_models
from talking_heads_utils.site import claim_words, notebook, scorecard
from talking_heads_utils.site.citation import bibtex, names, reproduced_works
from talking_heads_utils.site.data_dictionary import DATA_FILES
from talking_heads_utils.site.scorecard import NoVerdict

EXPERIMENT_NAMES = {e.name for e in EXPERIMENTS}
ROOT = Path(__file__).resolve().parent.parent
JOINT = BY_ID[ClaimId.REDUNDANT]


def finished(table=None, reason=None, stale=()):
    table = pd.DataFrame() if table is None else table
    return Finished({"not_possible": reason, "chapter": 2, "shows": "x"}, table, stale)


def sets():
    """A table of chapter 4's, of fewer tasks than its rule takes."""
    table = store.finished("smollm2")["sets"].table
    return table[table["task"].isin(["plural", "antonyms"])]


def test_every_claim_has_an_experiment_a_figure_and_words():
    assert [claim.id for claim in CLAIMS] == list(ClaimId)
    assert set(claim_words.SENTENCES) == set(claim_words.SHORT) == set(ClaimId)
    for claim in CLAIMS:
        assert claim.experiment in EXPERIMENT_NAMES, claim.id
        assert (claim.rule is None) == bool(claim.unsound), claim.id
        page = (ROOT / "notebooks" / f"{scorecard.PAGES[claim.chapter]}.ipynb").read_text(encoding="utf-8")
        assert f'name=\\"{claim.where}\\"' in page, claim.id
        assert claim_words.theirs(claim)
        assert (claim.rule is not None) == (claim.id in claim_words.RULES), claim.id


def test_words_hold_every_number_that_was_measured():
    found = Measured("gain_of_x", 3.1, 1.0, 5.2, "points", 200, control_label="random_ones", control=0.04, p=0.03)
    told, control = claim_words.in_words(found), claim_words.control_in_words(found)
    assert all(part in told for part in ("gain of x", "3.1", "[1.0, 5.2]", "points", "200"))
    assert all(part in control for part in ("random ones", "0.0 points", "0.03"))
    share = Measured("share_of_x", -1.655, -2.945, -0.366, control_label="of_y", control=0.04, also={"more_low": 0.2})
    assert claim_words.in_words(share) == "share of x: -166% [-294%, -37%]"
    assert claim_words.control_in_words(share) == "of y 4.0%, more than the control by at least 20%"
    assert "nan" not in claim_words.in_words(Measured("x", float("nan")))
    assert not claim_words.control_in_words(Measured("x", 1.0))


@pytest.mark.parametrize("result, verdict", [
    (finished(sets()), Verdict.NOT_JUDGED),
    (finished(reason="the tokenizer splits 23"), NoVerdict.NOT_POSSIBLE),
    (finished(sets(), stale=("source",)), NoVerdict.STALE),
])  # fmt: skip
def test_what_is_known_of_a_claim_is_shown_where_its_cell_leads(result, verdict):
    known = scorecard.judge(JOINT, result)
    assert known.verdict == verdict and (known.found is None) == (verdict != Verdict.NOT_JUDGED)
    results = {"gpt2": {"sets": result}}
    html, matrix = scorecard.as_html(results), scorecard.as_matrix(results)
    assert html.count(f"<em>{verdict}</em>") == 1 and known.measured[1:] in html and known.control in html
    mark = f"><span aria-hidden='true'>{scorecard.MARKS[verdict]}"
    (target,) = re.findall(rf"href='#(claim-{JOINT.id}-[^']*)'[^>]*{mark}", matrix)
    assert f"id='{target}'" in html
    assert ("results/gpt2/sets.parquet" in html) == (known.found is not None)
    if verdict == Verdict.NOT_JUDGED:  # which units are too few
        unit, (has, least) = next(iter(JOINT.rule.lacking(known.found).items()))
        assert known.short == f"{has}/{least} {unit}" and f">{known.short}</span>" in matrix


def test_a_real_model_without_results_is_not_run_and_a_toy_never_stands_for_it():
    results = scorecard.all_results()
    of = [scorecard.judged(results, claim) for claim in CLAIMS]
    toys = [model for claim, by in zip(CLAIMS, of) if claim.chapter == 1 for model in by if model.startswith("mini-")]
    assert not toys and next(iter(results)) == GPT2_WEIGHTS
    for model, known in known_models().items():
        if not results[model]:
            asked = sum(c.chapter in known.chapters and c.experiment in EXPERIMENT_NAMES for c in CLAIMS)
            assert [by[model].verdict for by in of if model in by] == [NoVerdict.NOT_RUN] * asked
    html, matrix = scorecard.as_html(results), scorecard.as_matrix(results)
    for shown, entry in ((html, "<details class='claim'"), (matrix, "<th scope='row'><a href='#claim-")):
        assert shown.count(entry) == len(CLAIMS)
    assert set(re.findall("href='#([^']*)'", matrix)) <= set(re.findall("id='([^']*)'", html))


def test_what_a_reader_must_know_of_a_verdict_stands_on_its_cell_and_beside_its_numbers():
    results = {m: done for m, done in scorecard.all_results().items() if m in (GPT2_WEIGHTS, CONTROL)}
    matrix, html, notes = scorecard.as_matrix(results), scorecard.as_html(results), scorecard.notes(results)
    for (model, claim), mark in claim_words.NOTED.items():
        known = scorecard.judged(results, BY_ID[claim])[model]
        cell = re.search(rf"href='#claim-{claim}-{scorecard._column(model)}'.*?</td>", matrix).group()
        assert known.found and f">{mark}</sup>" in cell and f"{mark} {claim_words.NOTES[mark]}" in notes
        entry = re.search(rf"id='claim-{claim}-{scorecard._column(model)}'.*?</p>", html).group()
        assert escape(claim_words.NOTES[mark]) in entry
    assert matrix.count("<sup") == len(claim_words.NOTED)
    assert not any(f" {name}_" in html or f"{name}_low" in html for name in claim_words.ALSO)


def test_real_models_stand_before_the_controls_and_what_was_not_run_has_no_column():
    done = {"sets": finished(sets())}
    html = scorecard.as_matrix({"planted": done, "gpt2": {}, "smollm2": done})
    assert re.findall(r"<th scope='col' class='(.*?)'>(.*?)</th>", html) == [("real", "SmolLM2"), ("toy", "planted")]


def test_a_table_is_had_where_it_is_finished(monkeypatch):
    monkeypatch.setattr(scorecard, "finished", lambda model: {"sets": finished(sets())})
    assert len(scorecard.table_of("smollm2", "sets"))
    with pytest.raises(OptionError, match="not finished"):
        scorecard.table_of("smollm2", "parts")


def test_the_place_where_a_notebook_runs(monkeypatch):
    assert notebook.device() == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    assert "0.5 GB" in notebook.prepare("gpt2")
    monkeypatch.setattr(notebook, "free_memory", lambda device: 10_000_000)
    assert "too little" in notebook.prepare("gpt2")
    assert notebook.dtype_for("meta-llama/Meta-Llama-3-8B") == torch.bfloat16
    assert notebook.dtype_for("gpt2") == torch.float32


def fields_in(path):
    """Columns of a table, or names of a safetensors file's tensors with kinds and layers as placeholders."""
    if path.suffix == ".parquet":
        return set(read_schema(path).names)
    with safe_open(path, "pt") as file:
        names = {re.sub(r"^[QKV]\.\d+\.", "<kind>.<layer>.", name) for name in file.keys()}
        return {re.sub(r"^singular_values\.\d+", "singular_values.<layer>", name) for name in names}


def test_every_file_that_ships_is_described_once():
    described = [path for files in DATA_FILES for path in files.paths()]
    notes = [data_dir() / "README.md", data_dir() / "results" / "README.md"]  # of the folders themselves
    files = [path for path in data_dir().rglob("*") if path.is_file() and path not in notes]
    missing = [str(path) for path in files if path not in described]
    assert not missing, f"say in data_dictionary.DATA_FILES what these hold: {missing}"
    assert len(described) == len(set(described))


@pytest.mark.parametrize("files", [files for files in DATA_FILES if files.fields], ids=lambda files: files.pattern)
def test_every_field_of_a_file_is_described_and_no_other(files):
    found = set().union(*map(fields_in, files.paths()))
    notes = [path.with_suffix(".json") for path in files.paths()]
    if not found and all("not_possible" in note.read_text() for note in notes):
        return  # tables without a row
    assert set(files.fields) == found


def test_the_page_and_zenodo_are_told_what_the_citation_file_says():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entry = bibtex(cff, "1.2.3")
    assert entry.startswith("@software{") and entry.count("{") == entry.count("}")
    for part in (cff["title"], cff["repository-code"], "1.2.3", cff["authors"][0]["name"]):
        assert part in entry
    assert all(str(work["year"]) in line for work, line in zip(cff["references"], reproduced_works(cff), strict=True))
    told = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    alike = {"title": "title", "upload_type": "type", "description": "abstract", "license": "license"}
    assert {name: told[name] for name in alike} == {name: cff[of] for name, of in alike.items()}
    assert told["creators"] == [{"name": names([who], "")} for who in cff["authors"]]
    assert told["references"] == [work.replace("*", "") for work in reproduced_works(cff)]
    assert told["related_identifiers"][0]["identifier"] == cff["repository-code"]


def test_people_are_cited_by_family_and_given_name():
    people = [{"family-names": "Curie", "given-names": "Marie"}, {"name": "A team"}]
    cff = {"title": "T", "authors": people, "repository-code": "https://example.org", "license": "MIT"}
    assert "author = {Curie, Marie and {A team}}" in bibtex(cff, "1")
