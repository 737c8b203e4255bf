"""One store of parts: stopped, resumed, and what is damaged or of another run is refused."""

import pytest

from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.resume import Store, differing

NAMES = ["a", "b", "c", "d", "e"]
SHARED = {"model": "planted", "values": (1, 2.5)}


def fill(folder, names=NAMES, plan=SHARED, suffix=".txt", **key):
    store = Store(folder, plan, suffix)
    for name in store.left(names):
        with store.part(name) as part:
            if suffix != ".json":
                part.file.write_text(f"content of {name}")
            part.note.update(key, rows=3)
    return store


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_a_stopped_run_goes_on_with_what_is_left(tmp_path, suffix):
    store = Store(tmp_path / "run", SHARED, suffix)
    with pytest.raises(KeyboardInterrupt):
        with store.part("a"):
            raise KeyboardInterrupt
    assert not list(tmp_path.rglob("*.*")), "a part that does not end well leaves nothing, no plan either"
    fill(store.folder, NAMES[:2], suffix=suffix)
    assert store.left(NAMES) == NAMES[2:] and store.names() == NAMES[:2]
    note = store.note("a")
    assert note["rows"] == 3 and note["seconds"] >= 0 and note["machine"]["name"] and note["versions"]["torch"]
    assert Store.of(store.folder).plan == {"model": "planted", "values": [1, 2.5]}


def test_another_plan_is_refused_by_the_names_of_its_fields(tmp_path):
    fill(tmp_path, NAMES[:1])
    other = Store(tmp_path, {"model": "gpt2", "values": (1, 2.5), "seed": 0}, ".txt")
    for ask in (lambda: other.left(NAMES), lambda: fill(tmp_path, NAMES, other.plan)):
        with pytest.raises(OptionError, match="other model, seed"):
            ask()
    with pytest.raises(OptionError, match="no run"):
        Store.of(tmp_path / "nowhere")
    assert differing({"a": (1,), "b": None}, {"a": [1]}) == ["b"]


def test_a_part_of_another_key_is_named_and_made_again(tmp_path):
    store = fill(tmp_path, code="old")
    assert store.stale("a", {"code": "new"}) == ["code"] and store.stale("a", {"code": "old"}) is None
    keys = dict.fromkeys(NAMES, {"code": "old"}) | {"b": {"code": "new"}}
    assert store.left(NAMES, keys=keys) == ["b"] and store.stale("z", {}) == []
    with store.part("b") as part:
        part.file.write_text("newer")
        part.note["code"] = "new"
    assert not store.left(NAMES, keys=keys) and store.path("b").read_text() == "newer"


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_what_is_damaged_is_named(tmp_path, suffix):
    store = fill(tmp_path, suffix=suffix)
    note = store.path("b").with_suffix(".json")
    whole = note.read_text()
    for damage in (whole.replace('"rows": 3', '"rows": 4'), "", "[]", "[" * 100_000, whole[:-20]):
        note.write_text(damage)
        with pytest.raises(ResultError, match=r"b\.\w+ or its note"):
            store.left(NAMES)
    note.write_text(whole)
    assert not store.left(NAMES)
    if suffix != ".json":
        store.path("b").write_text("changed")
        with pytest.raises(ResultError, match="b.txt"):
            store.left(NAMES)


def test_a_note_that_never_was_written_means_that_the_part_is_not_there(tmp_path):
    store = fill(tmp_path)
    store.path("b").with_suffix(".json").unlink()
    assert store.left(NAMES) == ["b"]
    fill(tmp_path)
    assert not store.left(NAMES)
