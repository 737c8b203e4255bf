"""Units of work that need no model, in a module that a worker imports at once."""

import os
import sys
import time
from pathlib import Path

from talking_heads_utils.cluster import Unit, run_units
from talking_heads_utils.errors import OptionError


def silent(text):
    pass


def slowly(folder, name):
    """A unit that tells its process and then waits, the first time."""
    with (folder / f"{name}.pid").open("a") as told:
        told.write(f"{os.getpid()}\n")
    if name == "a" and len((folder / "a.pid").read_text().split()) == 1:
        time.sleep(600)
    (folder / f"{name}.done").write_text(name)


def fails():
    raise OptionError("no such thing")


def kept(folder, name):
    """A unit that does nothing where its part is there, and tells that it ran; the last ones take their time."""
    if not (folder / name).exists():
        time.sleep(600 * (name > "b" and not (folder / "again").exists()))
        (folder / name).write_text(name)


if __name__ == "__main__":
    import ray_units  # its functions under the name that workers know

    run_units([Unit(name, ray_units.kept, (Path(sys.argv[1]), name)) for name in "abcd"], sys.argv[2], say=silent)
