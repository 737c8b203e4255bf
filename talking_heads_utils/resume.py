"""Work in parts that can be stopped at any point and resumed, by one process or by many that write to one folder.

A :class:`Store` is a folder of one run. ``plan.json`` says what all its numbers depend on. Every part is a file with a
note beside it, ``<part>.json``: what it is, how long it took, on what machine, with which versions, and a SHA-256 over
note and file. The note is written last, so a part without one is not there. A part whose suffix is ``.json`` is its
note alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talking_heads_utils.errors import OptionError, ResultError
from talking_heads_utils.files import written_whole

PLAN = "plan.json"
NOTE = ".json"  # suffix of notes


@dataclass
class Part:
    """A part that is being made: write its content to ``file``, and what it is into ``note`` (JSON values)."""

    file: Path
    note: dict[str, Any]


@contextmanager
def written(path: Path, device: str = "cpu") -> Iterator[Part]:
    """Make one part within the block; it and its note are there only if the block ends well.

    device: the one that computes, told in the note. The seconds are those of the block, unless the note has some.
    Raises :class:`OptionError` where nothing can be written.
    """
    from talking_heads_utils.provenance import machine, versions

    path, note = Path(path), path.with_suffix(NOTE)
    started = time.perf_counter()
    with written_whole(path) as file:
        part = Part(file, {})
        yield part
        own = {"seconds": round(time.perf_counter() - started, 3), "machine": machine(device), "versions": versions()}
        about = json.loads(json.dumps(own | part.note, allow_nan=False))
        about["sha256"] = _sum(about, None if path == note else file)
        if path == note:
            _write_json(file, about)
        else:
            note.unlink(missing_ok=True)  # until the new one is there the part is not: no note of another file
    if path != note:
        with written_whole(note) as file:
            _write_json(file, about)


def read_note(path: Path) -> dict[str, Any]:
    """The note of a part, its sum verified over note and file. Raises :class:`ResultError` naming a damaged part."""
    note = Path(path).with_suffix(NOTE)
    try:
        about = json.loads(note.read_text(encoding="utf-8"))
        told = about.pop("sha256")
        if told != _sum(about, None if path == note else path):
            raise ValueError("its sum is another")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ResultError(
            f"{path} or its note is damaged ({str(error)[:200]}). Remove both and run this again."
        ) from error
    return about


def _sum(about: Mapping[str, Any], file: Path | None) -> str:
    """SHA-256 of a note and, where there is one, its file."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    if file is not None:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: total)
    return total.hexdigest()


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Store:
    """The parts of one run.

    plan: all that every part depends on, as JSON values. It is written with the first part, so that work that cannot
    be done leaves nothing behind. suffix: of the parts' files.
    """

    folder: Path
    plan: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ".parquet"

    @classmethod
    def of(cls, folder: Path, suffix: str = ".parquet") -> Store:
        """The store in a folder, with its own plan. Raises :class:`OptionError` where there is none."""
        try:
            plan = json.loads((Path(folder) / PLAN).read_text(encoding="utf-8"))
            if not isinstance(plan, dict):
                raise ValueError("its plan is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise OptionError(f"{str(folder)[:200]} holds no run with a plan ({error}).") from error
        return cls(Path(folder), plan, suffix)

    def path(self, name: str) -> Path:
        """Where a part's file is, or will be."""
        return Path(self.folder) / f"{name}{self.suffix}"

    def check(self) -> bool:
        """Whether the folder has this plan already. Raises :class:`OptionError` naming the fields of another one."""
        if not (Path(self.folder) / PLAN).exists():
            return False
        if changed := differing(self.plan, Store.of(self.folder).plan):
            raise OptionError(
                f"{self.folder} holds a run with other {', '.join(changed)}. Nothing was mixed in: choose another "
                "folder, or the same options."
            )
        return True

    def left(self, parts: Iterable[str], keys: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
        """The parts that are still to be made, in the order given.

        keys: what a part depends on beyond the plan, compared with its note; a part made for another key is left to be
        made again. Raises :class:`OptionError` for another plan, :class:`ResultError` naming a damaged part.
        """
        self.check()
        return [name for name in parts if self.stale(name, (keys or {}).get(name, {})) is not None]

    def stale(self, name: str, key: Mapping[str, Any]) -> list[str] | None:
        """None for a part that is whole and made for this key, else the fields in which it differs (empty: not there).

        Raises :class:`ResultError` for a damaged part.
        """
        if not self.path(name).with_suffix(NOTE).exists():
            return []
        note = self.note(name)
        return differing(key, {name: note.get(name) for name in key}) or None

    def note(self, name: str) -> dict[str, Any]:
        """A part's note, verified. Raises :class:`ResultError` for a part that is missing or damaged."""
        return read_note(self.path(name))

    @contextmanager
    def part(self, name: str, device: str = "cpu") -> Iterator[Part]:
        """Make a part within the block, see :func:`written`; the plan is written first unless it is there.

        Raises :class:`OptionError` for a folder with another plan.
        """
        self.check()
        with written(self.path(name), device) as part:
            yield part
            if not self.check():
                with written_whole(Path(self.folder) / PLAN) as file:
                    _write_json(file, self.plan)

    def names(self) -> list[str]:
        """The parts that are there, sorted."""
        return sorted(path.stem for path in Path(self.folder).glob(f"*{NOTE}") if path.name != PLAN)


def differing(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Fields in which two plans differ, as JSON compares them."""
    mine, other = json.loads(json.dumps(mine)), json.loads(json.dumps(other))
    return [name for name in {**mine, **other} if name not in mine or name not in other or mine[name] != other[name]]
