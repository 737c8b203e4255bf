"""The plotly.js that a page loads: a third of it draws every flat figure, the whole of it what stands in space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly
from plotly.offline import get_plotlyjs_version

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.site.npm import NpmPackage

WHOLE = f"plotly-{get_plotlyjs_version()}.min.js"
PATIENCE = 10  # seconds: without a registry the book is built all the same
PART = "4.1.1"  # that the plotly of constraints.txt brings along
# What it can draw stands in the archive's README.
CARTESIAN = NpmPackage(
    name="plotly.js-cartesian-dist-min",
    version=PART,
    integrity="sha512-o8GrFeusncwBIxbBynRJpY4pkgVB6caM+JLpwrLYbbsO7dZ8FJ+SVN2Fr+L7kiG/Z6w4P5O0Jus/Qr5EefHVeg==",
    licence="MIT",
    files={f"plotly-cartesian-{PART}.min.js": "plotly-cartesian.min.js", "plotly.LICENSE": "LICENSE"},
)
FLAT = frozenset(
    "bar box contour heatmap histogram histogram2d histogram2dcontour image pie scatter scatterternary violin".split()
)


def is_flat(spec: Mapping[str, Any]) -> bool:
    """Whether the part draws all traces of a figure, those of its frames too."""
    drawn = [spec, *(spec.get("frames") or ())]
    return FLAT.issuperset(trace.get("type", "scatter") for part in drawn for trace in part.get("data") or ())


def bundles(part: NpmPackage = CARTESIAN) -> dict[str, bytes]:
    """The site's files by name: what draws flat figures comes first. That is the wheel's own, the whole, alone where
    the part is of another version or cannot be had."""
    whole = {WHOLE: (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()}
    try:
        return part.read(PATIENCE) | whole if part.version == get_plotlyjs_version() else whole
    except DownloadError:
        return whole
