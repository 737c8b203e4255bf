"""The numbers of a figure as a table: what is drawn in every state of menu and slider, and what made it."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from talking_heads_utils.errors import LabelError
from talking_heads_utils.figures import data
from talking_heads_utils.figures.style import restyle_slider, slider, stacked, with_views
from talking_heads_utils.site.sources import made_by

ROOT = Path(__file__).resolve().parent.parent


def spec(figure):
    """As a page holds it, arrays packed."""
    return json.loads(figure.to_json())


def written(figure, folder):
    return pd.read_csv(data.write(spec(figure), folder, "fig-x"))


def test_points_carry_their_bars_names_of_ticks_and_panel(tmp_path):
    figure = stacked(2, ("above", "below"), 300, 0.2)
    bars = dict(array=[0.5, 1.0], arrayminus=[0.25, 2.0])
    figure.add_scatter(
        x=np.array([0.1, 1.0]), y=np.array([3.0, 4.0]), error_y=bars, name="a<br>b", text=["s", None], row=2, col=1
    )
    figure.add_bar(x=["u", "v", "w"], y=[1, None, 2], marker_color=[5, 6, 7], row=1, col=1)
    figure.update_xaxes(tickvals=[0, 1], ticktext=["first", "<b>second</b>"], row=2, col=1)
    figure.update_yaxes(title_text="share", row=1, col=1)
    found = written(figure, tmp_path)
    lower, upper = found[found["panel"] == "below"], found[found["panel"] == "above"]
    assert lower["trace"].tolist() == ["a b"] * 2 and lower["x"].astype(float).tolist() == [0.1, 1]
    assert lower["x_label"].tolist() == ["first", "second"] and lower["text"].tolist()[:1] == ["s"]
    assert lower["y_low"].tolist() == [2.75, 2.0] and lower["y_high"].tolist() == [3.5, 5.0]
    assert upper[["x", "y", "colour", "y_axis"]].values.tolist() == [["u", 1, 5, "share"], ["w", 2, 7, "share"]]


def test_a_matrix_gives_a_row_a_cell(tmp_path):
    z, told = np.arange(6.0).reshape(2, 3), [[[f"{i}", j] for j in range(3)] for i in range(2)]
    found = written(go.Figure(go.Heatmap(x=["a", "b", "c"], y=[5, 6], z=z, customdata=told)), tmp_path)
    assert found["z"].tolist() == [0, 1, 2, 3, 4, 5] and found["x"].tolist() == list("abcabc")
    assert found["y"].tolist() == [5] * 3 + [6] * 3 and found["customdata_1"].tolist() == [0, 1, 2] * 2


def test_every_state_of_menu_and_slider_is_there_once(tmp_path):
    views = {view: [go.Scatter(x=[1, 2], y=[k, k + 1], name=view)] for k, view in enumerate("ab")}
    figure = with_views(go.Figure(), views, layouts=[{"xaxis.title.text": f"of {view}"} for view in views])
    figure.add_scatter(x=[0], y=[9], name="always")
    steps = {name: {"y": [[n, n], [-n, -n], [9]], "selectedpoints": [[0]]} for n, name in ((1, "low"), (2, "high"))}
    figure.update_layout(sliders=[restyle_slider(steps, "", pad=0)])
    figure.layout.updatemenus[0].buttons[0].args[0]["visible"] += (True,)
    figure.layout.updatemenus[0].buttons[1].args[0]["visible"] += (True,)
    found = written(figure, tmp_path)
    always = found[found["trace"] == "always"]
    assert always[["x", "y"]].values.tolist() == [[0, 9]] and always[["menu", "slider"]].isna().all(axis=None)
    axes = found.groupby("menu")["x_axis"].unique().to_dict()
    assert {menu: titles.tolist() for menu, titles in axes.items()} == {"a": ["of a"], "b": ["of b"]}
    rest = found[found["trace"] != "always"].groupby(["menu", "trace", "slider"])["y"].apply(list).to_dict()
    assert rest == {("a", "a", "low"): [1, 1], ("a", "a", "high"): [2, 2], ("b", "b", "low"): [-1, -1],
                    ("b", "b", "high"): [-2, -2]}  # fmt: skip


def test_frames_replace_the_traces_that_they_name(tmp_path):
    figure = go.Figure([go.Scatter(x=[0], y=[0], name="still"), go.Scatter(x=[0], y=[1], name="moved")])
    figure.frames = [go.Frame(name=str(n), data=[go.Scatter(y=[n])], traces=[1]) for n in (1, 2)]
    found = written(figure.update_layout(sliders=[slider(["1", "2"], "", pad=0)]), tmp_path)
    assert found[["trace", "y"]].values.tolist() == [["still", 0], ["moved", 1], ["moved", 2]]
    assert found["slider"].tolist()[1:] == [1, 2] and pd.isna(found["slider"][0])


def test_a_large_table_is_parquet(tmp_path, monkeypatch):
    figure = go.Figure(go.Scatter(x=["a", 1, 2.5], y=[1, 2, 3]))
    monkeypatch.setattr(data, "LARGEST", 10)
    path = data.write(spec(figure), tmp_path, "fig-x")
    assert path.suffix == ".parquet" and pd.read_parquet(path)["y"].tolist() == [1, 2, 3]


CELLS = [
    "%pip install x\nimport os\nfrom talking_heads_utils.figures import roles as c, page\nother = 1",
    "base = {k: os.sep for k in 'ab'}\nother = base",
    "two = len(base)\npage.show(\n    lambda: c.sketch(\n        two,\n    ),\n    name='fig-a',\n)",
]


def test_what_made_a_figure_is_what_it_goes_back_to():
    made = made_by(CELLS, "fig-a")
    assert made.lines.splitlines() == [
        "import os", "from talking_heads_utils.figures import roles as c", "base = {k: os.sep for k in 'ab'}",
        "two = len(base)", "c.sketch(", "    two,", ")",
    ]  # fmt: skip
    assert made.function == "talking_heads_utils.figures.roles.sketch"
    with pytest.raises(LabelError, match="fig-b"):
        made_by(CELLS, "fig-b")


@pytest.mark.parametrize("name", ["fig-exchange", "fig-listeners"])
def test_the_lines_of_a_chapter_make_its_figure_by_themselves(name):
    chapter = nbformat.read(ROOT / "notebooks" / "01_inhibition_heads.ipynb", 4)
    cells = [cell.source for cell in chapter.cells if cell.cell_type == "code"]
    at = next(i for i, source in enumerate(cells) if f'name="{name}"' in source)
    *before, last = made_by(cells[: at + 1], name).lines.splitlines()
    made: dict = {}
    exec("\n".join([*before, f"figure = {last}"]), made)
    assert len(data.tidy(spec(made["figure"]))) > 10
