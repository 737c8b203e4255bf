"""What the site takes out of packages of the npm registry, whole or not at all: what runs a model in a page, whose
folder is made once or says why it is empty, and the plotly.js that a figure needs."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import tarfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from plotly.offline import get_plotlyjs_version

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.site import npm, page_model
from talking_heads_utils.site.npm import CARTESIAN, WHOLE, NpmPackage, bundles, is_flat
from talking_heads_utils.weights.packages import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "file:///nowhere"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a registry that is a folder, and an empty cache."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in {"dist/run.mjs": b"export {};", "unused.js": b"0"}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    place = tmp_path / "registry" / "@who" / "it" / "-"
    place.mkdir(parents=True)
    (place / "it-1.2.0.tgz").write_bytes(archive.getvalue())
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, (tmp_path / "registry").as_uri() + "/")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    sum = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    return NpmPackage("@who/it", "1.2.0", f"sha512-{sum}", {"run.mjs": "dist/run.mjs"}, notice="MIT, by them")


def test_a_package_is_fetched_once_and_held_against_its_sum(package, tmp_path, monkeypatch):
    wanted = {"run.mjs": b"export {};", "it.LICENSE": b"MIT, by them"}
    assert package.read() == wanted and package.cached.parent == tmp_path / "cache" / "npm"
    registry = os.environ[npm.REGISTRY_VARIABLE]
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, NOWHERE)
    assert package.read() == wanted, "out of the cache"
    package.cached.write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="could not be fetched .*nowhere"):
        package.read()
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, registry)
    assert package.read() == wanted, "fetched anew"


def test_a_package_of_another_sum_is_not_kept(package, tmp_path):
    (tmp_path / "registry" / "@who" / "it" / "-" / "it-1.2.0.tgz").write_bytes(b"another")
    with pytest.raises(DownloadError, match="has another sum than @who/it 1.2.0"):
        package.read()
    assert not package.cached.exists()


def test_the_site_names_the_licence_of_all_that_it_holds(monkeypatch, tmp_path, package):
    monkeypatch.setattr(npm, "RUNTIME", (package,))
    files, folder = npm.write_runtime(tmp_path / "runtime"), tmp_path / "runtime"
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {n: f["bytes"] for n, f in files.items()}
    assert files["run.mjs"]["sha256"] == hashlib.sha256(b"export {};").hexdigest() and "it.LICENSE" in files


@pytest.fixture
def book_model(monkeypatch):
    """The extension, with nothing exported and nothing fetched. ``made`` counts."""
    spec = importlib.util.spec_from_file_location("book_model", ROOT / "book" / "_ext" / "book_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.made = []

    def write_model(source, folder):
        (folder / "layer-00.bin").write_bytes(b"weights")
        module.made.append(source)
        return {"files": {"layer-00.bin": {"bytes": 7}}}

    def write_runtime(folder):
        folder.mkdir(parents=True)
        (folder / "run.wasm").write_bytes(b"wasm")
        return {"run.wasm": {"bytes": 4}}

    monkeypatch.setattr(page_model, "write_model", write_model)
    monkeypatch.setattr(npm, "write_runtime", write_runtime)
    monkeypatch.setattr(npm, "ENGINES", {"wasm": ("run.mjs", "run.wasm")})
    return module


def test_the_model_is_made_once_for_each_sum(book_model, tmp_path):
    folder = tmp_path / "model"
    for _ in range(2):
        book_model.write(folder)
    assert book_model.made == ["smollm2"]
    about = json.loads((folder / "model.json").read_text())
    assert about["name"] == "smollm2" and about["licence"] == "Apache-2.0" and len(about["gguf_sha256"]) == 64
    assert about["runtime"] == {"run.wasm": {"bytes": 4}} and about["files"]["layer-00.bin"]["bytes"] == 7
    (folder / "of-before.bin").touch()
    book_model.write(folder, model=book_model.MODEL | {"gguf_sha256": "of another file"})
    assert len(book_model.made) == 2 and not (folder / "of-before.bin").exists()


@pytest.mark.parametrize(
    "error", [DownloadError("No registry."), ModuleNotFoundError("No module named onnx", name="onnx")]
)
def test_a_site_without_its_model_says_why_and_the_next_build_tries_again(book_model, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    working = page_model.write_model
    monkeypatch.setattr(page_model, "write_model", fail)
    book_model.write(tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert list(about) == ["missing"] and about["missing"].count(".") == 1 and str(error) not in about["missing"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.json"]
    monkeypatch.setattr(page_model, "write_model", working)
    book_model.write(tmp_path / "model")
    assert book_model.made


def test_the_build_puts_the_model_into_the_site_or_leaves_it_out(book_model, tmp_path, monkeypatch):
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path / "html")
    (tmp_path / "html" / "_static").mkdir(parents=True)
    book_model.write(tmp_path / "model")
    app.model = SimpleNamespace(wait=lambda: 0)
    for _ in range(2):
        book_model.finish(app, None)
    site = tmp_path / "html" / "_static" / "model"
    assert (site / "layer-00.bin").read_bytes() == b"weights" and (site / "runtime" / "run.wasm").exists()
    assert (site / "about.mjs").read_text().startswith('export const megabytes = {"wasm": 0};')
    monkeypatch.setenv(book_model.SWITCH, "0")
    del app.model
    book_model.begin(app)
    book_model.finish(app, None)
    assert json.loads((site / "model.json").read_text()) == {"missing": book_model.LEFT_OUT}
    assert not (site / "layer-00.bin").exists() and (tmp_path / "model" / "layer-00.bin").exists()
    app.model = SimpleNamespace(wait=lambda: 1)
    (tmp_path / "model.log").write_text("what went wrong")
    with pytest.raises(RuntimeError, match="what went wrong"):
        book_model.finish(app, None)


@pytest.mark.parametrize("drawn, frames, flat", [
    (["bar", "heatmap", None], None, True), (["scatter", "scatter3d"], [], False), (["scatter"], ["scattergl"], False),
    ([], None, True),
])  # fmt: skip
def test_the_traces_of_a_figure_decide_what_draws_it(drawn, frames, flat):
    data, moved = ([{"type": kind} if kind else {} for kind in kinds or ()] for kinds in (drawn, frames))
    assert is_flat({"data": data, "frames": [{"data": moved}] if moved else frames}) is flat


def test_flat_figures_are_drawn_by_the_part_or_quietly_by_the_whole(package, monkeypatch):
    part = replace(package, version=get_plotlyjs_version())
    part.cached.parent.mkdir(parents=True)
    part.cached.write_bytes(package.find())
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, NOWHERE)
    assert list(bundles(part)) == ["run.mjs", "it.LICENSE", WHOLE] and len(bundles(part)[WHOLE]) > 1e6
    assert list(bundles(replace(part, version="0.1.0"))) == [WHOLE], "of another version than the wheel's"
    part.cached.unlink()
    assert list(bundles(part)) == [WHOLE], "no registry"


def test_the_part_is_of_the_version_that_the_book_pins():
    (pinned,) = re.findall(r"^plotly==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    if version("plotly") != pinned:
        pytest.skip(f"another plotly than the constraints' {pinned} is installed")
    assert CARTESIAN.version == get_plotlyjs_version()
    assert f"plotly-cartesian-{CARTESIAN.version}.min.js" in CARTESIAN.files
