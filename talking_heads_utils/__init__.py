"""Which attention heads talk to which, through which components: read from weights, tested by intervention.

>>> import talking_heads_utils as th

loads nothing heavy. ``th.load_model``, ``th.ask``, ``th.ablate``, ``th.patch``, ``th.steer`` and ``th.edit`` are
functions, ``th.prompts``, ``th.metrics``, ``th.scores``, ``th.roles`` and ``th.figures`` modules, ``th.Head`` and
``th.Component`` labels; each is loaded at its first use.

What one does to a model:

``asking``       ``ask``: one prompt, with heads and components moved by hand
``ablation``     ``ablate``: a metric without heads, components or MLPs, everywhere or for one reader
``patching``     ``patch``: what one run had at a site, put into another run
``steering``     ``steer``: directions added at some positions, over a grid of amounts
``editing``      ``edit`` and ``bake``: components scaled, removed, set or rotated in the weights

What one gives it, and what is measured:

``models``       ``load_model``: a Hub id, folder, GGUF file or known name; ``as_bridge`` for a model at hand
``known``        the models that the book knows by name
``labels``       names of heads and components: ``L8H10``, ``L8H10.1``
``prompts``      prompt sets: ``from_texts`` for one's own, IOI, lists, in-context tasks
``metrics``      one value per prompt: logit difference, accuracy, attention, loss, or one's own

What is read from weights:

``weights``      a model's attention weights, out of a checkpoint or a bridge, and their processing
``components``   singular components of a head's matrices
``scores``       composition scores: which later heads read what a component writes
``roles``        head roles: published ones with their source, and those found here

What runs underneath:

``forward``      the engine: layers run one by one, recorded, for many variants at once
``variants``     many variants of one run, measured by one metric: what ablation, patching and steering share
``inputs``       what these three and ``asking`` check of what they are given
``effects``      what every component does to a mover, in closed form
``edits``        edits as data, and their algebra on the weights
``planted``      models whose answer is known by construction
``stats``        intervals, exact tests, rank correlation
``batches``      how much is run at once, and halving it where memory runs out
``device``       the device that something is to run on
``progress``     bars for what takes long, where somebody asked for them
``resume``       work in parts: stopped and resumed
``cluster``      units of work on Ray
``files``        where data lies, and files that are written whole or not at all
``provenance``   versions, machine and weights that a result was made with
``settings``     values that several modules and the command line share
``errors``       every error that is raised on purpose

What makes the book:

``experiments``  what each chapter asks of a model: typed rows, claims, the store of results
``figures``      plotly figures; they take rows, never a model
``site``         what only the pages need
``training``     small models in which a channel can arise by training
``cli``          ``python -m talking_heads_utils ...``
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("talking-heads-utils")
except PackageNotFoundError:  # the sources on the path, not installed
    __version__ = "0+uninstalled"

MODULES = ("prompts", "metrics", "scores", "roles", "figures")  # loaded at their first use
NAMES = {  # public name -> the module that holds it; never a module's own name, whose import would take its place
    "load_model": "models",
    "as_bridge": "models",
    "Head": "labels",
    "Component": "labels",
    "ask": "asking",
    "ablate": "ablation",
    "patch": "patching",
    "steer": "steering",
    "edit": "editing",
}


def __getattr__(name: str) -> Any:
    """What :data:`MODULES` and :data:`NAMES` promise, imported when it is asked for."""
    if name in NAMES:
        return getattr(import_module(f"{__name__}.{NAMES[name]}"), name)
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, *NAMES})
