"""Progress bars: nowhere unless asked for, and never what is gone through."""

import io
from contextlib import redirect_stderr

import pytest

from talking_heads_utils import batches, progress
from talking_heads_utils.cli import main
from talking_heads_utils.figures.page import BUILD_VARIABLE
from talking_heads_utils.site import notebook


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "AFTER", 0.0)
    yield
    progress.hide()


def drawn(n: int = 5) -> str:
    """What is drawn while a loop runs."""
    screen = io.StringIO()
    with redirect_stderr(screen):
        assert list(progress.follow(range(n), "blocks of prompts")) == list(range(n))
    return screen.getvalue()


def test_a_bar_is_drawn_only_where_it_was_asked_for(monkeypatch):
    assert drawn() == ""
    progress.show()
    assert drawn() == "", "this output is no terminal"
    progress.show(always=True)
    assert "blocks of prompts" in drawn()
    assert drawn(1) == "", "there is nothing to follow"
    progress.hide()
    monkeypatch.setenv(BUILD_VARIABLE, "1")
    notebook.show_bars()
    assert drawn() == "", "a page of the book shows none"
    monkeypatch.delenv(BUILD_VARIABLE)
    notebook.show_bars()
    assert "blocks of prompts" in drawn()


def test_a_command_leaves_no_bars_on(capsys):
    assert main(["seeds", "/nowhere", "--out", "/nowhere/too"]) == 2
    assert drawn() == ""


@pytest.mark.parametrize("n, usual, sizes", [(10, 4, [4, 4, 2]), (3, 8, [3]), (0, 4, [])])
def test_blocks_are_all_rows_once(n, usual, sizes):
    blocks = list(batches.blocks(n, usual))
    assert [b.stop - b.start for b in blocks] == sizes
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(n))
    with batches.divided_by(2):
        assert max([b.stop - b.start for b in batches.blocks(n, usual)], default=0) <= max(1, usual // 2)
