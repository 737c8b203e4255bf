"""Which plotly.js a figure needs, and what the site has where the part of it cannot be had."""

import base64
import hashlib
import io
import re
import tarfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs_version

from talking_heads_utils.site import npm
from talking_heads_utils.site.npm import CARTESIAN, WHOLE, bundles, is_flat
from talking_heads_utils.weights.packages import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("spec", "flat"),
    [
        ({"data": [{"type": "bar"}, {"type": "heatmap"}, {}]}, True),
        ({"data": [{"type": "scatter"}, {"type": "scatter3d"}]}, False),
        ({"data": [{"type": "scatter"}], "frames": [{"data": [{"type": "scattergl"}]}]}, False),
        ({"data": [], "frames": None}, True),
    ],
)
def test_the_traces_of_a_figure_decide_what_draws_it(spec, flat):
    assert is_flat(spec) is flat


@pytest.fixture
def part(tmp_path, monkeypatch):
    """An archive in the cache, and no registry."""
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, "file:///nowhere")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("package/part.js"))
    sum = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    package = npm.NpmPackage("part", get_plotlyjs_version(), f"sha512-{sum}", {"part.js": "part.js"})
    package.cached.parent.mkdir()
    package.cached.write_bytes(archive.getvalue())
    return package


def test_flat_figures_are_drawn_by_the_part_or_quietly_by_the_whole(part):
    assert list(bundles(part)) == ["part.js", WHOLE] and len(bundles(part)[WHOLE]) > 1e6
    assert list(bundles(replace(part, version="0.1.0"))) == [WHOLE], "of another version than the wheel's"
    part.cached.unlink()
    assert list(bundles(part)) == [WHOLE], "no registry"


def test_the_part_is_of_the_version_that_the_book_pins():
    (pinned,) = re.findall(r"^plotly==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    if version("plotly") != pinned:
        pytest.skip(f"another plotly than the constraints' {pinned} is installed")
    assert CARTESIAN.version == get_plotlyjs_version()
    assert f"plotly-cartesian-{CARTESIAN.version}.min.js" in CARTESIAN.files
