"""Names of the package lead to the file and the lines where they stand."""

import re
from pathlib import Path

import pytest

from talking_heads_utils.errors import LabelError
from talking_heads_utils.site.sources import locate

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "path", "begins", "ends"),
    [
        ("stats.bootstrap_mean", "stats.py", "def bootstrap_mean(", "    return"),
        ("resume.Store.part", "resume.py", "    @contextmanager", "                    _write_json("),
        ("training.loop.Run.round", "training/loop.py", "    @property", "        return self.spec"),
        ("labels.Head", "labels.py", "@dataclass", "        return cls("),
    ],
)
def test_a_name_leads_to_its_lines(name, path, begins, ends):
    place = locate(f"talking_heads_utils.{name}")
    assert place.path == f"talking_heads_utils/{path}"
    first, last = place.lines
    lines = (ROOT / place.path).read_text().splitlines()
    assert lines[first - 1].startswith(begins) and lines[last - 1].startswith(ends)
    assert place.url("https://host/of", "main") == f"https://host/of/blob/main/{place.path}#L{first}-L{last}"


def test_a_module_is_named_whole():
    place = locate("talking_heads_utils.experiments.icl.swaps")
    assert place == ("talking_heads_utils/experiments/icl/swaps.py", None)
    assert place.url("https://host/of", "main").endswith("of/blob/main/talking_heads_utils/experiments/icl/swaps.py")


@pytest.mark.parametrize("name", ["resume.nope", "nope", "resume.PLAN", "resume.json", "labels.Head.nope"])
def test_an_unknown_name_is_one_clear_error(name):
    with pytest.raises(LabelError, match=re.escape(f"talking_heads_utils.{name}")):
        locate(f"talking_heads_utils.{name}")


def test_names_of_other_packages_are_refused():
    with pytest.raises(LabelError, match="nosuchpackage"):
        locate("nosuchpackage.a")
    with pytest.raises(LabelError, match="torch.nn.Linear"):
        locate("torch.nn.Linear")
