"""What runs a model in a page: files out of packages of the npm registry, whose versions and sums stand here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from talking_heads_utils.site.npm import NpmPackage

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
        name="onnxruntime-web",
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        licence="MIT",
        files={
            name: f"dist/{name}"
            for script, program in ENGINES.values()
            for name in (script, program, program.replace(".wasm", ".mjs"))
        },
        notice="ONNX Runtime Web 1.30.0\nCopyright (c) Microsoft Corporation. All rights reserved.\nNotices of what it "
        f"holds: https://github.com/microsoft/onnxruntime/blob/main/ThirdPartyNotices.txt\n\n{MIT}",
    ),
    NpmPackage(
        name="@huggingface/tokenizers",
        version="0.2.0",
        integrity="sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        licence="Apache-2.0",
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
