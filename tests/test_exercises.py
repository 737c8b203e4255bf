"""The chapters' exercises: every answer unfolds, and holds lines of code that run as they stand."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from talking_heads_utils.site.sources import PACKAGE, locate

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def answers(path):
    """``(question, lines of code)`` of every exercise."""
    (text,) = [cell.partition("## Exercises")[2] for cell in cells(path, "markdown") if "## Exercises" in cell]
    return [
        (question, re.findall(r"```python\n(.*?)\n```", body, re.S))
        for question, body in re.findall(r"````\{dropdown\} \d\. (.+?)\n(.*?)\n````", text, re.S)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_answer_runs_as_it_stands(path):
    found = answers(path)
    assert 2 <= len(found) <= 3
    for question, blocks in found:
        (code,) = blocks
        assert question.endswith("?") and "assert " in code and code.count("\n") < 15
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, question, "exec"), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_section_with_a_figure_names_the_functions_behind_it(path):
    """Full names in code type, which the book's pages turn into links to the repository."""
    notebook = json.loads(path.read_text())["cells"]
    texts = "".join("\n\n" + ("# code\n" if c["cell_type"] == "code" else "") + "".join(c["source"]) for c in notebook)
    sections = re.split(r"\n(?=##+ )", texts)
    with_figures = [section for section in sections if "page.show(" in section]
    assert len(with_figures) >= 4
    for section in with_figures:
        assert re.search(rf"^Code: `{PACKAGE}\.", section, re.M), section[:60]
    for name in re.findall(rf"`({PACKAGE}(?:\.\w+)+)`", texts):
        locate(name)
