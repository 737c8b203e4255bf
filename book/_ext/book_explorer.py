"""Sphinx extension: what the explorer page draws, a file for each model, which ``atlas.js`` loads when it is chosen.

GPT-2 small's scores ship in ``data/``. SmolLM2's are computed here from its weights, in a process beside the build, and
kept in the build folder by the sum of the code that made them. Run as a program, this writes the files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import talking_heads_utils
from talking_heads_utils.errors import TalkingHeadsError
from talking_heads_utils.experiments.source_sum import source_sum
from talking_heads_utils.figures.atlas import write_atlas
from talking_heads_utils.files import data_dir
from talking_heads_utils.known import model_source
from talking_heads_utils.scores import scores as made_by
from talking_heads_utils.scores.scores import SHIPPED, compute_scores, load_scores, load_shipped_scores, save_scores

MODELS = ("gpt2-small", "smollm2")


def scores_of(model, cache):
    """The scores of a model by name, and the file that they are kept in if they do not ship."""
    if (data_dir() / model / SHIPPED).is_file():
        return load_shipped_scores(model)
    from talking_heads_utils.weights.checkpoints import load_head_weights

    source, revision = model_source(model)
    key = source_sum(made_by.__name__)[:16]
    kept = cache / f"scores-{model}-{revision.split()[-1]}-{key}.safetensors"
    if not kept.is_file():
        scores = compute_scores(load_head_weights(source, revision=revision))
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"scores-{model}-*"):
            old.unlink()
        save_scores(scores, kept)
    return load_scores(kept)


def write(static, cache):
    """Every model's file, anew where anything that it is made from is younger."""
    package = Path(talking_heads_utils.__file__).parent
    made_from = [data_dir() / "gpt2-small" / SHIPPED, *(data_dir() / "results").rglob("*.json"), *package.rglob("*.py")]
    newest = max(path.stat().st_mtime for path in made_from)
    for model in MODELS:
        target = static / f"atlas-{model}.js"
        if target.exists() and target.stat().st_mtime >= newest:
            continue
        try:
            write_atlas(scores_of(model, cache), target)
        except TalkingHeadsError as error:  # where neither the package index nor its file can be had
            missing = f"The scores of {model} were not there when this site was built: {error}"
            target.write_text(f"window.bookAtlas = {json.dumps({'missing': missing})};\n", encoding="utf-8")
            os.utime(target, (0, 0))  # the next build tries again


def begin(app):
    if app.builder.format == "html":
        folder = Path(app.outdir).parent
        (folder / "explorer").mkdir(parents=True, exist_ok=True)
        app.explorer = subprocess.Popen([sys.executable, __file__, folder / "explorer"])


def finish(app, exception):
    """The files go where the page looks for them, whose folder a fresh build has only now."""
    if (process := getattr(app, "explorer", None)) is None:
        return
    if exception is not None:
        process.kill()
    elif process.wait():
        raise RuntimeError("The explorer's data could not be made: see above.")
    else:
        for model in MODELS:
            made = Path(app.outdir).parent / "explorer" / f"atlas-{model}.js"
            (Path(app.outdir) / "_static" / made.name).write_bytes(made.read_bytes())


def setup(app):
    app.connect("builder-inited", begin)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[1]))
