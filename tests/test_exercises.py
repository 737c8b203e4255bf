"""The chapters' exercises: every answer unfolds, and holds lines of code that run as they stand."""

import contextlib
import doctest
import io
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from talking_heads_utils.errors import LabelError
from talking_heads_utils.site.sources import COLAB, PACKAGE, REPOSITORY, locate, page_url

ROOT = Path(__file__).resolve().parent.parent
every_chapter = pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def answers(path):
    """``(question, lines of code)`` of every exercise."""
    (text,) = [cell.partition("## Exercises")[2] for cell in cells(path, "markdown") if "## Exercises" in cell]
    return [
        (question, re.findall(r"```python\n(.*?)\n```", body, re.S))
        for question, body in re.findall(r"````\{dropdown\} \d\. (.+?)\n(.*?)\n````", text, re.S)
    ]


@every_chapter
def test_every_answer_runs_as_it_stands(path):
    found = answers(path)
    assert 2 <= len(found) <= 3
    for question, blocks in found:
        (code,) = blocks
        assert question.endswith("?") and "assert " in code and code.count("\n") < 15
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, question, "exec"), {})


@every_chapter
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


MODULES = ("ablation", "editing", "edits.bake", "figures.heads", "metrics", "prompts.texts", "steering")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(import_module(f"talking_heads_utils.{name}"))
    assert found.attempted and not found.failed


def test_the_readme_begins_as_the_page_does():
    page = (ROOT / "book" / "own_model.md").read_text(encoding="utf-8")
    first = page.split("```{code-cell} ipython3\n")[1].split("```")[0]
    assert first in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, path, begins, ends", [
    ("stats.bootstrap_mean", "stats.py", "def bootstrap_mean(", "    return"),
    ("resume.Store.part", "resume.py", "    @contextmanager", "                    _write_json("),
    ("training.loop.Run.round", "training/loop.py", "    @property", "        return self.spec"),
    ("labels.Head", "labels.py", "@dataclass", "        return cls("),
])  # fmt: skip
def test_a_name_leads_to_its_lines(name, path, begins, ends):
    place = locate(f"{PACKAGE}.{name}")
    assert place.path == f"{PACKAGE}/{path}"
    first, last = place.lines
    lines = (ROOT / place.path).read_text().splitlines()
    assert lines[first - 1].startswith(begins) and lines[last - 1].startswith(ends)
    assert place.url("https://host/of", "main") == f"https://host/of/blob/main/{place.path}#L{first}-L{last}"


def test_a_module_is_named_whole_and_an_unknown_name_is_one_clear_error():
    place = locate("talking_heads_utils.experiments.icl.swaps")
    assert place == ("talking_heads_utils/experiments/icl/swaps.py", None)
    assert place.url("https://host/of", "main").endswith("of/blob/main/talking_heads_utils/experiments/icl/swaps.py")
    own = (f"{PACKAGE}.{name}" for name in ("resume.nope", "nope", "resume.PLAN", "resume.json", "labels.Head.nope"))
    for name in (*own, "nosuchpackage.a", "torch.nn.Linear"):
        with pytest.raises(LabelError, match=re.escape(name)):
            locate(name)


@every_chapter
def test_links_of_a_notebook_lead_somewhere_on_colab_too(path):
    """There nothing lies beside the notebook: links are whole addresses of files, or names in its text."""
    text, code = ("\n".join(cells(path, kind)) for kind in ("markdown", "code"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert f'<a name="{target[1:]}"></a>' in text and f'name="{target[1:]}",' in code, target
            continue
        host, _, place = target.partition("/blob/main/")
        assert host in (REPOSITORY, COLAB)
        assert (ROOT / place.partition("#")[0]).is_file() and place.endswith(".ipynb") == ("colab" in host), target


def test_the_repository_has_one_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"]
    assert config["url"] == REPOSITORY == cited
    assert page_url("book/rules.md").startswith(f"{REPOSITORY}/blob/{config['branch']}/")
