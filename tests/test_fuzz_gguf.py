"""Every command that reads a GGUF file, with 200 damaged ones from one seed.

Each ends well, or with one clear line and a status of 2; little memory is taken, and nothing is left behind.
"""

from __future__ import annotations

import math
import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from test_fuzz import SWEEP, files, refused, run

from talking_heads_utils.weights.gguf import _Reader

SEED, EACH = 0, 25  # cases of each kind of damage
ROOM = 512 << 20  # bytes beyond what the process has mapped; the file takes under 1 MB
ENDS = (0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
COMMANDS = {  # most cases go to what reads the header and the attention alone
    "composition": ["composition", "--weights", "{model}", "--out", "{out}"],
    "streamed": ["composition", "--stream", "--weights", "{model}", "--out", "{out}"],
    "sweep": ["sweep", "--model", "{model}", *SWEEP, "--out", "{out}"],
}


Places = dict[str, list[tuple[int, int]]]


def places_of(path: Path) -> Places:
    """Where a whole file holds what: kind -> offsets and sizes in bytes, told by the library's views into the file."""
    reader, found = gguf.GGUFReader(path), {"version": [(4, 4)], "count": [(8, 8), (16, 8)]}

    def note(*parts: tuple[str, np.ndarray]) -> None:
        for kind, part in parts:
            at = part.ctypes.data - reader.data.ctypes.data
            found.setdefault(kind, []).extend((at + i * part.itemsize, part.itemsize) for i in range(part.size))

    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):  # what the library adds
            (length, _, kind, first, *rest), (outer, *inner) = field.parts, field.types
            is_list, is_text = outer == gguf.GGUFValueType.ARRAY, outer == gguf.GGUFValueType.STRING
            note(("length", length), ("value type", kind))
            note(("value type" if is_list else "length" if is_text else "value", first))
            if is_list:
                of_text = inner == [gguf.GGUFValueType.STRING]
                note(("length", rest[0]), *(("token" if of_text else "item", part) for part in rest[1 :: 1 + of_text]))
    for tensor in reader.tensors:
        length, _, n_dims, dims, kind, offset = tensor.field.parts
        note(("length", length), ("shape", n_dims), ("shape", dims), ("tensor type", kind), ("offset", offset))
    return found


KINDS = ("cut", "magic", "count", "length", "shape", "tensor type", "offset", "value type")


def damaged(content: bytes, places: Places, kind: str, draw: random.Random) -> tuple[bytes, str]:
    """The file with one damage, and what it is."""
    if kind == "cut":
        at = draw.randrange(len(content) if draw.random() < 0.5 else sum(places["offset"][-1]))
        return content[:at], f"cut at {at}"
    if kind == "magic":
        if draw.random() < 0.5:
            start = draw.choice([b"GGML", b"FUGG", b"gguf", b"PK\3\4", b"\0" * 4, draw.randbytes(4)])
            return start + content[4:], f"begins with {start!r}"
        kind = "version"
    at, size = draw.choice(places[kind] + (places["value"] if kind == "value type" else []))
    if kind in ("tensor type", "value type") and draw.random() < 0.7:
        new = draw.randrange(42)
    else:
        old = int.from_bytes(content[at : at + size], "little")
        new = draw.choice([*ENDS, old + 1, max(0, old - 1), 2 * old, draw.getrandbits(8 * size)])
    new &= (1 << 8 * size) - 1
    return content[:at] + new.to_bytes(size, "little") + content[at + size :], f"{kind} at {at} is {new}"


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than ROOM beyond what the process has mapped: what wants more fails at once."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


CASES = [(kind, i) for kind in KINDS for i in range(EACH)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return gguf_files.write(gguf_files.build("llama"), tmp_path_factory.mktemp("whole") / "model.gguf", "Q8_0")


@pytest.fixture(scope="module")
def cases(whole) -> dict[tuple[str, int], tuple[bytes, str]]:
    content, places = whole.read_bytes(), places_of(whole)
    draws = {kind: random.Random(f"{SEED} {kind}") for kind in KINDS}
    return {(kind, i): damaged(content, places, kind, draws[kind]) for kind, i in CASES}


@pytest.mark.parametrize(("kind", "i"), CASES)
def test_a_damaged_gguf_file_is_one_clear_line(kind, i, cases, tmp_path):
    """A value that may be is another model, which nothing but a published sum could tell."""
    bad, what = cases[kind, i]
    (tmp_path / "model.gguf").write_bytes(bad)
    command = [*COMMANDS.values(), COMMANDS["composition"]][i % 4]
    with little_memory():
        code, lines = run(*[part.format(model=tmp_path / "model.gguf", out=tmp_path / "out") for part in command])
    if code == 0:
        assert kind not in ("cut", "magic") or what.startswith("version"), what
        return
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (what, lines)
    assert "memory" not in lines[0].lower() and "alloc" not in lines[0].lower(), (what, lines)
    assert files(tmp_path) == ["model.gguf"], what


def test_a_scale_that_is_infinite_is_one_line_alone(whole, tmp_path, recwarn):
    content = bytearray(whole.read_bytes())
    (tensor,) = (t for t in gguf.GGUFReader(whole).tensors if t.name == "blk.0.attn_q.weight")
    content[tensor.data_offset : tensor.data_offset + 3] = struct.pack("<eb", math.inf, 0)  # the product is no number
    (tmp_path / "model.gguf").write_bytes(content)
    arguments = ("composition", "--weights", tmp_path / "model.gguf", "--out", tmp_path / "out")
    refused(*arguments, says="NaN or infinite")
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


class Endless(BaseException):
    """Past every net that catches errors."""


def test_a_list_that_is_longer_than_the_file_is_not_read(whole, tmp_path, monkeypatch):
    """More reads than the header has bytes are none of the file's."""
    content, read, reads, places = whole.read_bytes(), _Reader._get, count(), places_of(whole)
    at = places["item"][0][0] - 8  # the length of a list of numbers
    (tmp_path / "model.gguf").write_bytes(content[:at] + struct.pack("<Q", 2**40) + content[at + 8 :])

    def counted(self, *arguments, **options):
        if next(reads) > sum(places["offset"][-1]):
            raise Endless
        return read(self, *arguments, **options)

    monkeypatch.setattr(_Reader, "_get", counted)
    refused("composition", "--weights", tmp_path / "model.gguf", "--out", tmp_path / "out", says="GGUF file")


@pytest.mark.parametrize(("by", "says"), [(4, "no multiple of 32"), (-32, "lies over"), (-(2**12), "lies over")])
def test_a_tensor_lies_where_the_format_lets_it_and_over_no_other(by, says, whole, tmp_path):
    """Read from there it would be other numbers, and no sum would tell."""
    content, (at, _) = whole.read_bytes(), places_of(whole)["offset"][-2]
    (offset,) = struct.unpack_from("<Q", content, at)
    assert offset > 2**12
    moved = content[:at] + struct.pack("<Q", offset + by) + content[at + 8 :]
    (tmp_path / "model.gguf").write_bytes(moved)
    refused("composition", "--weights", tmp_path / "model.gguf", "--out", tmp_path / "out", says=says)
