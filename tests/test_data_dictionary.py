"""What the data page says of the files in data/ is what is in them; the citation is that of CITATION.cff."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pyarrow.parquet import read_schema
from safetensors import safe_open

from talking_heads_utils.files import data_dir
from talking_heads_utils.site.citation import bibtex, names, reproduced_works
from talking_heads_utils.site.data_dictionary import DATA_FILES

ROOT = Path(__file__).resolve().parent.parent


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


def test_the_citation_says_what_the_citation_file_says():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entry = bibtex(cff, "1.2.3")
    assert entry.startswith("@software{") and entry.count("{") == entry.count("}")
    for part in (cff["title"], cff["repository-code"], "1.2.3", cff["authors"][0]["name"]):
        assert part in entry
    assert len(reproduced_works(cff)) == len(cff["references"])
    assert all(str(work["year"]) in line for work, line in zip(cff["references"], reproduced_works(cff)))


def test_zenodo_is_told_what_the_citation_file_says():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
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
