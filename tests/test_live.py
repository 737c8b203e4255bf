"""Panels for a kernel, driven without one: what is typed is computed anew, and what cannot be asked gets a sentence."""

import html

import plotly.io
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import slider
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Head
from talking_heads_utils.patching import patch
from talking_heads_utils.prompts.texts import from_texts
from talking_heads_utils.site import live, notebook

PLOTLY = "application/vnd.plotly.v1+json"
CLEAN = "When Mary and John went to the school, John gave the hat to"
CORRUPTED = "When Mary and John went to the school, Mary gave the hat to"


@pytest.fixture(scope="module")
def c():
    return Context(PLANTED, quick=True)


@pytest.fixture(scope="module")
def table():
    return notebook.Tables(PLANTED, live=False)["slider"]


@pytest.fixture(scope="module")
def names(c, table):
    return live.slider(c, table, CLEAN, "Mary", "John")


@pytest.fixture(scope="module")
def grid(c):
    return live.patch_grid(c.bridge, CLEAN, CORRUPTED, "Mary", "John")


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    """As in a notebook: what is displayed goes to the cell."""
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    return InteractiveShell.instance()


def typed(panel, **values):
    """The figures that the button brings with these values."""
    for name, value in values.items():
        panel.fields[name].value = value
    with capture_output() as shown:
        panel.button.click()
    return [out.data[PLOTLY] for out in shown.outputs if PLOTLY in out.data]


def test_any_prompt_moves_in_the_slider_figure(c, table, names):
    text = "When John and Mary went to the school, Mary gave the hat to"
    (figure,) = typed(names, text=text, answer="John", other="Mary")
    by_hand = frame(slider.text_rows(c, table, text, "John", "Mary"))
    assert names.table.equals(by_hand)
    own = by_hand[(by_hand["direction"] == "component") & (by_hand["name"] == "first")]
    assert figure["data"][0]["y"] == pytest.approx(own["attention"].tolist(), abs=1e-3)
    assert f"{own['plain'].iloc[0]:+.1f}" in names.message.value


@pytest.mark.parametrize("values, sentence", [
    (dict(text=" "), "Type a prompt"),
    (dict(text=CLEAN.replace("Mary", "Susan")), "'Mary' is not in the prompt"),
    (dict(other="Mary"), "two different names"),
    (dict(answer=""), "Type both words"),
    (dict(text=f"{CLEAN} {CLEAN * 8}"), "tokens; type one of at most"),
    (dict(answer="Zebedee", text=CLEAN.replace("Mary", "Zebedee")), "does not know 'Zebedee'"),
])  # fmt: skip
def test_a_prompt_that_has_not_two_names_gets_one_sentence(names, values, sentence):
    assert typed(names, **dict(text=CLEAN, answer="Mary", other="John") | values) == [] and names.table is None
    assert sentence in html.unescape(names.message.value)


def test_names_of_several_tokens_or_at_the_beginning_are_refused(gpt2_tokenizer):
    live._check_names("After Alice and Robert left, Robert wrote to", ["Alice", "Robert"], gpt2_tokenizer)
    for text, names, sentence in (
        ("After Zebedee and Robert left, Robert wrote to", ["Zebedee", "Robert"], "tokens to this model"),
        ("Alice and Robert left, Robert wrote to", ["Alice", "Robert"], "behind a space"),
        ("After Roberts and Alice left, Robert wrote to", ["Alice", "Robert"], "behind a space"),
    ):
        with pytest.raises(TaskError, match=sentence):
            live._check_names(text, names, gpt2_tokenizer)


def test_any_two_prompts_make_a_patch_grid(c, grid):
    assert grid.fields["layers"].value == (c.bridge.cfg.n_layers - 1,) * 2  # a third of few layers
    clean, corrupted = (text.replace("hat", "book") for text in (CLEAN, CORRUPTED))
    (figure,) = typed(grid, clean=clean, corrupted=corrupted, layers=(0, c.bridge.cfg.n_layers - 1))
    pair = [from_texts([text], ["Mary"], ["John"], c.tokenizer) for text in (clean, corrupted)]
    by_hand = patch(c.bridge, *pair, sites="z")
    assert grid.table["change"].tolist() == by_hand["change"].tolist()
    (drawn,) = figure["data"]
    for row in by_hand.sample(20, random_state=0).itertuples():
        y = drawn["y"].index(str(Head(row.layer, row.head)))
        assert drawn["z"][y][int(row.position)] == pytest.approx(row.change, abs=1e-4)
    differs = int((pair[0].tokens != pair[1].tokens).nonzero()[0, 1])
    assert drawn["x"][differs] == f"{differs} John / Mary"
    assert f"{by_hand.attrs['clean']:+.1f} after the clean prompt" in grid.message.value


@pytest.mark.parametrize("values, sentence", [
    (dict(corrupted=f"{CORRUPTED} the"), "the same number"),
    (dict(corrupted=CLEAN), "The two prompts are the same"),
    (dict(wrong="Mary"), "two different words"),
    (dict(clean=""), "Type a prompt"),
])  # fmt: skip
def test_prompts_that_are_no_pair_get_one_sentence(grid, values, sentence):
    assert typed(grid, **dict(clean=CLEAN, corrupted=CORRUPTED, wrong="John") | values) == [] and grid.table is None
    assert sentence in grid.message.value


def test_the_static_page_has_no_panel(c, table, monkeypatch):
    monkeypatch.setattr(live, "building_book", lambda: True)
    assert live.slider(c, table, CLEAN, "Mary", "John") is None
    assert live.patch_grid(c.bridge, CLEAN, CORRUPTED, "Mary", "John") is None
    monkeypatch.undo()
    assert live.slider(c, table.iloc[:0], CLEAN, "Mary", "John") is None
