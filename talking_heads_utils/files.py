"""Where the project's data lies, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from talking_heads_utils.errors import CheckpointError, OptionError

_SHA256 = re.compile("[0-9a-f]{64}")
GPT2_VARIABLE = "TALKING_HEADS_GPT2"  # a folder with GPT-2 small's weights, for tests and commands


def data_dir() -> Path:
    """The book's ``data/``: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "data", package / "data"):
        if (folder / "gpt2-small").is_dir():
            return folder
    raise CheckpointError("The book's data/ folder is missing: install the package again, or work in a checkout.")


def gpt2_source() -> str:
    """The folder named by TALKING_HEADS_GPT2, else the Hub id ``gpt2``.

    Raises :class:`CheckpointError` if the variable names no folder.
    """
    named = os.environ.get(GPT2_VARIABLE)
    if named and not Path(named).is_dir():
        raise CheckpointError(f"${GPT2_VARIABLE} names {named}, which is no folder. Correct it or unset it.")
    return named or "gpt2"


def check_file(path: Path) -> Path:
    """The path itself. Raises :class:`OptionError` where no file of that name could be written.

    A command asks before it starts to work, so that hours of it are not lost to a wrong name.
    """
    path = check_folder(path, of_file=True)
    if not path.name or path.is_dir():
        raise OptionError(f"{path} is a folder. Name the file to write in it.")
    return path


def check_folder(path: Path, *, of_file: bool = False) -> Path:
    """The path itself. Raises :class:`OptionError` where no folder of that name could be made.

    of_file: the path is that of a file, and its folder is meant.
    """
    path = Path(path)
    try:
        str(path).encode()
        path.is_dir()  # a name that is too long is told here
        there = next(p for p in ((path.parent if of_file else path), *path.parents) if p.exists())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is no text"
        raise OptionError(f"Cannot write {str(path)[:80]!r}: {reason}. Choose another place.") from error
    if not there.is_dir():
        raise OptionError(f"Cannot write {path}: {there} is no folder. Choose another place.")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name only if the block ends well.

    Raises :class:`OptionError` where nothing can be written there, or if the disk fills up on the way.
    """
    path = check_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OptionError(f"Cannot write {path}: {error.strerror}. Choose another place.") from error
    part = Path(name)
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(path)
    except OSError as error:
        raise OptionError(f"Writing {path} failed: {error}. Is the disk full?") from error
    finally:
        part.unlink(missing_ok=True)


def known_sha256(path: Path) -> str:
    """Sum of a file, as ``sha256sum`` prints it: computed once in a process while the file does not change, and not at
    all for a large file in the Hub's cache, which is a link to one that is called by its sum."""
    if path.is_symlink() and (target := path.resolve()).parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    at = path.stat()
    return _sum_at(path, at.st_mtime_ns, at.st_size)


@cache
def _sum_at(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
