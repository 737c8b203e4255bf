"""A finished result as two files: a table, and what it is and how it was made.

The description holds a sum over both, so that neither can change, nor be of another result, unseen. It is written last:
without it the table is no result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talking_heads_utils.errors import ResultError
from talking_heads_utils.files import written_whole
from talking_heads_utils.models import PLANTED, is_real, known_models, shipped_models, shown_as

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1


def write(about: Mapping[str, Any], table: pa.Table, path: Path, **options: Any) -> Path:
    """Write ``path`` (parquet, with pyarrow's ``options``) and the description beside it. Returns the table's path."""
    import pyarrow.parquet as pq

    with written_whole(path) as part:
        pq.write_table(table, part, compression="zstd", **options)
    content = dict(about) | {"sha256": _sum(about, path)}
    with written_whole(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


def read(path: Path, again: str) -> tuple[dict[str, Any], pa.Table]:
    """The description in ``path`` (JSON) and the table beside it. again: what makes the result anew, for the error.

    Raises :class:`ResultError` for a file that is missing, damaged or of another format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ResultError(f"{path} has format {about['format']}; this package reads {FORMAT}. Make it again.")
        if about.pop("sha256") != _sum(about, path.with_suffix(".parquet")):
            raise ResultError(f"{path} and the table beside it are damaged, or not of one result. {again}")
        return about, pq.read_table(path.with_suffix(".parquet"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise ResultError(f"{path} is no whole result ({error!r}). {again}") from error


def _sum(about: Mapping[str, Any], table: Path) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + table.read_bytes()).hexdigest()


def shown(model: str, revision: str | None) -> str:
    """What a figure of a result must say it shows; a real model is one whose revision is the known one."""
    if is_real(model, revision):
        return known_models()[model].shown
    if model == PLANTED or model in shipped_models():
        return shown_as(model)
    return f"rehearsal on {Path(model).name}, no known real model"


def results_folder(root: Path, model: str, revision: str | None) -> Path:
    """Where a model's results go below ``root``; what is no known real model never goes where one would."""
    name = model.replace("/", "-")
    if is_real(model, revision):
        name = model.rsplit("/", 1)[-1]
    elif model != PLANTED and model not in shipped_models():
        name = f"rehearsal-{Path(model).name}"
    return Path(root) / name
