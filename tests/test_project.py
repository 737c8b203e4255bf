"""The project as a whole: each fact stands once, notebooks are clean, the environment is reproducible."""

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import talking_heads_utils
from talking_heads_utils.weights.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "talking_heads_utils"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def requirements():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_has_both_bounds_and_a_pin_within_them():
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    for requirement in requirements():
        operators = {spec.operator for spec in requirement.specifier}
        assert {">=", "<"} <= operators, f"{requirement} needs a lower and an upper bound"
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_readme_leads_to_files_that_are_there():
    targets = re.findall(r"\]\(((?!http)[^)]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) >= 3 and all((ROOT / target).exists() for target in targets)


def test_the_method_page_names_every_family_of_checkpoints():
    rows = ["| family | models, for example | composition | closed forms, last token alone |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        can = ("V", "no: queries and keys are normalised") if family.qk_norm else ("Q, K, V", "yes")
        rows.append(f"| `{family.name}` | {family.models} | {' | '.join(can)} |")
    assert "\n".join(rows) in (ROOT / "book" / "method.md").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stripped_short_and_tidy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "commit notebooks without outputs"
    assert all(len(cell.source.splitlines()) <= 15 for cell in code), "a cell has at most 15 lines"
    assert "google.colab" in code[0].source, "the first code cell is the bootstrap"
    assert "versions()" in code[-1].source
    assert notebook.cells[0].source.startswith("# ")


def test_benchmark_files_have_the_agreed_rows():
    files = list((ROOT / "data" / "benchmarks").glob("*.json"))
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert path.name == f"{result['benchmark']}-{result['machine']['name']}.json" and result["versions"]["torch"]
        for row in result["rows"]:
            assert set(row) == {"case", "ours_s", "plain_s", "ratio", "max_abs_diff", "ours_peak_mb", "plain_peak_mb"}
            assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"])
            assert row["max_abs_diff"] is None or row["max_abs_diff"] < 1e-4


HEAVY = "('torch', 'numpy', 'pandas', 'plotly', 'pyarrow', 'transformers')"


@pytest.mark.parametrize(
    "code", ["import talking_heads_utils", "from talking_heads_utils.cli import build_parser as b; b()"]
)
def test_importing_the_package_or_the_commands_loads_nothing_heavy(code):
    code += f"; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_public_names_are_there_and_no_module_has_the_name_of_a_function():
    """A module of that name would take the function's place as soon as somebody imports it."""
    names = {path.stem for path in PACKAGE.iterdir()}
    assert not names & set(talking_heads_utils.NAMES) and set(talking_heads_utils.MODULES) <= names
    for name in (*talking_heads_utils.NAMES, *talking_heads_utils.MODULES):
        assert getattr(talking_heads_utils, name).__name__.endswith(name) and name in dir(talking_heads_utils)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = talking_heads_utils.no_such_name


@pytest.mark.parametrize("package", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_says_what_each_of_its_modules_is_for(package):
    """All but ``cli``, whose modules say it by ``--help``."""
    inside = [path for path in package.parent.iterdir() if not path.name.startswith("__")]
    modules = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()}
    said = re.findall(r"^``(\w+)``", package.read_text(encoding="utf-8"), re.M)
    assert package.parent.name == "cli" or sorted(said) == sorted(modules)


def imported(path):
    """Units of the package that a file imports anywhere; not what type checkers alone read."""
    named, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "talking_heads_utils":
            named |= {alias.name for alias in node.names if (PACKAGE / alias.name).exists() or alias.name in UNITS}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            from_where = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            named |= {name.split(".")[1] for name in from_where if name and name.startswith("talking_heads_utils.")}
    return named


BOOK = ("experiments", "figures", "site", "training", "cli")  # what makes the book; everything else is the library
UNITS = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
BELOW: dict[str, set[str]] = {unit: set() for unit in UNITS}
for file in PACKAGE.rglob("*.py"):
    if (unit := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) in UNITS:
        BELOW[unit] |= imported(file) - {unit}


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_the_library_does_not_import_what_makes_the_book(unit):
    """Nor do experiments import figures, pages or commands, nor figures a command or a page's code."""
    above = {"experiments": {"figures", "site", "cli"}, "figures": {"site", "cli"}, "training": {"site", "cli"},
             "site": {"cli"}, "cli": set()}.get(unit, set(BOOK))  # fmt: skip
    assert not BELOW[unit] & above


def test_folders_import_one_way():
    """What a folder or a module beside it imports never imports it back, late imports included."""
    assert len(BELOW) > 20
    tuple(graphlib.TopologicalSorter(BELOW).static_order())  # raises where there is a circle


def test_no_module_is_long():
    long = {str(path.relative_to(PACKAGE)): n for path in PACKAGE.rglob("*.py")
            if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}  # fmt: skip
    assert not long


def test_the_code_is_linted_and_formatted():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--quiet", "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_the_package_fit():
    """With mypy's cache (``.mypy_cache``) a second run takes a second; one without it about 20."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


LONGEST = 60  # lines of a function, its docstring included


def test_a_long_function_says_why():
    """One of more lines has ``# long: the reason`` on the line that names it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= LONGEST:
                assert re.search(r"# long: \w", lines[node.lineno - 1]), (
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
                )
