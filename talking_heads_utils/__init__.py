"""Shared code of *Talking Heads, the book*: channels between attention heads, read from weights.

Import what you need from the submodule that holds it; importing the package itself loads nothing heavy.

==================  =====================================================================
``labels``          names of heads and components: ``L8H10``, ``L8H10.1``
``roles``           head roles that others published, with their source
``weights``         a model's attention weights, out of a checkpoint or a bridge, and their processing
``channels``        components of heads, composition scores, and the links of a circuit
``models``          whole models for experiments: ``load_model``, and the table of known ones
``device``          the device that something is to run on
``tasks``           IOI and Laundry List prompts with named positions, and their metrics; functions
``evaluate``        answers of a model on prompts, and its accuracy by list length
``gate``            which tasks a model can do well enough to be asked how
``prefixes``        which prefix a model does its tasks best behind
``training``        small models in which a channel can arise by training
``planted``         a model whose whole circuit is planted
``runs``            one forward pass recorded; the last token alone through the upper layers
``inhibition``      chapter 1: what components do to a mover, who inhibits, what travels
``steering``        moving the last token along write directions: engine and sweeps
``positional``      chapter 2: where prompts sit in a subspace, and what moving them buys
``editing``         chapter 3: edits of single components, applied, baked, searched for, judged
``icl``             chapter 4: prompts of functions, ablation, patching, redundancy, belief
``seeds``           what varies between training runs of one small model
``reproduce``       every experiment on one model as finished results, and the scorecard
``verdicts``        what is said of a claim, by fixed rules
``result_files``    a finished result as two files that belong together
``notebook``        which model a chapter adds, and whether it fits where it runs
``progress``        bars for what takes long, where somebody asked for them
``statistics``      intervals and exact tests
``errors``          every error that is raised on purpose
``settings``        values that several modules and the command line share
``files``           where data lies, and files that are written whole or not at all
``provenance``      versions, machine and weights that a result was made with
``sources``         where a function stands in the repository
``data_dictionary`` what the files in ``data/`` hold, field by field
``citation``        how to cite the book
``figures``         plotly figures; they take results, never a model
``benchmarks``      ours beside the plain way, in one process, on the same work
``commands``        ``python -m talking_heads_utils ...``
==================  =====================================================================
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
