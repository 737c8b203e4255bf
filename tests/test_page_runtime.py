"""What the page's model is made of beside the build: packages of a registry, whole or not at all, and a folder that is
made once, or says why it is empty."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.site import npm, page_model
from talking_heads_utils.site.npm import NpmPackage
from talking_heads_utils.weights.packages import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


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
    monkeypatch.setenv(npm.REGISTRY_VARIABLE, "file:///nowhere")
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
    files = npm.write_runtime(tmp_path / "runtime")
    assert {path.name: path.stat().st_size for path in (tmp_path / "runtime").iterdir()} == {
        name: about["bytes"] for name, about in files.items()
    }
    assert files["run.mjs"]["sha256"] == hashlib.sha256(b"export {};").hexdigest()


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
