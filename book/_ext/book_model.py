"""Sphinx extension: the language model that runs in the page, in ``_static/model/``, and the script that runs it.

Its files are made from the checkpoint in a process beside the build, and kept in the build folder by the checkpoint's
sum and that of the code that makes them. ``BOOK_MODEL=0`` leaves the model out. Where it is not there, ``model.json``
says why. Run as a program, this writes the files.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.experiments.source_sum import source_sum
from talking_heads_utils.weights.packages import SMOLLM2

SWITCH = "BOOK_MODEL"  # 0: no model
LEFT_OUT = f"This site was built without its model, by {SWITCH}=0."
ABOUT = "model.json"
MODEL = {"name": SMOLLM2.name, "gguf_sha256": SMOLLM2.sha256, "quantised": SMOLLM2.quantised, "licence": "Apache-2.0",
         "licence_file": "runtime/tokenizers.LICENSE"}  # fmt: skip
MAKERS = ("talking_heads_utils.site.page_model", "talking_heads_utils.site.npm")
TOOLS = ("torch", "onnx", "onnxscript")
INSTRUMENT = re.compile(r'<[a-z]+ [^>]*class="(?:[^"]* )?instrument[ "]')


def made_of(model):
    """A sum of all that the files depend on. Raises ImportError where one of the tools is not installed."""
    parts = [model, *map(source_sum, MAKERS), *map(version, TOOLS), inspect.getsource(write)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write(folder, source=SMOLLM2.name, model=MODEL):
    """The model's files and the runtime's, made anew where they are of another sum; else why they are not there."""
    about = folder / ABOUT
    try:
        key = made_of(model)
        if about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("made_of") == key:
            return
        from talking_heads_utils.site.npm import ENGINES, write_runtime
        from talking_heads_utils.site.page_model import write_model

        shutil.rmtree(folder, ignore_errors=True)
        more = model | {"runtime": write_runtime(folder / "runtime"), "engines": ENGINES, "made_of": key}
        about.write_text(json.dumps(write_model(source, folder) | more), encoding="utf-8")
    except DownloadError as error:
        print(error)  # it may name places on this machine, which are of no use to a reader
        leave_out(folder, "This site was built where its model could not be fetched.")
    except ImportError as error:
        print(f"{error.name} is not installed: run `pip install '.[book]'`.")
        leave_out(folder, "This site was built where what makes its model was not installed.")


def leave_out(folder, why):
    """A folder that says why there is no model. The next build tries again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ABOUT).write_text(json.dumps({"missing": why}), encoding="utf-8")


def begin(app):
    if app.builder.format == "html" and os.environ.get(SWITCH) != "0":
        build = Path(app.outdir).parent
        with (build / "model.log").open("wb") as log:  # torch's exporter tells much
            app.model = subprocess.Popen([sys.executable, __file__, build / "model"], stdout=log, stderr=log)


def finish(app, exception):
    """The files go where the page looks for them, whose folder a fresh build has only now."""
    if app.builder.format != "html":
        return
    kept, target = Path(app.outdir).parent / "model", Path(app.outdir) / "_static" / "model"
    log = kept.with_suffix(".log")
    process = getattr(app, "model", None)
    if exception is not None:
        if process:
            process.kill()
    elif process is None:
        leave_out(target, LEFT_OUT)
        tell(target)
    elif process.wait():
        raise RuntimeError(f"The page's model could not be made:\n{log.read_text('utf-8')}")
    else:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kept, target, copy_function=linked)
        tell(target)
        if not (target / "runtime").exists():
            print("The book is built without the model of its pages:", log.read_text("utf-8"))


def tell(target):
    """What the instrument says before the model is there, as a module of the site."""
    about = json.loads((target / ABOUT).read_text(encoding="utf-8"))
    size = sum(file["bytes"] for file in about.get("files", {}).values())
    engines = {name: about["runtime"][program]["bytes"] for name, (_, program) in about.get("engines", {}).items()}
    megabytes = {name: round((size + program) / 1e6) for name, program in engines.items()}
    lines = [
        f"export const megabytes = {json.dumps(megabytes)};",
        f"export const missing = {json.dumps(about.get('missing'))};",
    ]
    (target / "about.mjs").write_text("\n".join(lines) + "\n", encoding="utf-8")


def linked(source, target):
    """The same file under a second name, or a copy where file systems have no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def add_script(app, page, template, context, doctree):
    if INSTRUMENT.search(context.get("body", "")):
        app.add_js_file("instrument.js", loading_method="defer")


def setup(app):
    app.connect("builder-inited", begin)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(5)  # the build goes first
    write(Path(sys.argv[1]))
