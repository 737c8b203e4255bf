"""The examples in public docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

MODULES = ("ablation", "editing", "edits.bake", "figures.heads", "metrics", "prompts.texts", "steering")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(import_module(f"talking_heads_utils.{name}"))
    assert found.attempted and not found.failed


def test_the_readme_begins_as_the_page_does():
    root = Path(__file__).parent.parent
    page = (root / "book" / "own_model.md").read_text(encoding="utf-8")
    first = page.split("```{code-cell} ipython3\n")[1].split("```")[0]
    assert first in (root / "README.md").read_text(encoding="utf-8")
