"""The examples in public docstrings."""

import doctest
from importlib import import_module

import pytest

MODULES = ("ablation", "editing", "figures.heads", "metrics", "prompts.texts", "steering")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(import_module(f"talking_heads_utils.{name}"))
    assert found.attempted and not found.failed
