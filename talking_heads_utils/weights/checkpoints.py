"""Attention weights straight out of safetensors or GGUF: a folder, the Hub, a file. The model itself is never loaded.

Nothing else is read: a pickle can run code, so a checkpoint that has nothing else is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from talking_heads_utils.errors import CheckpointError, DownloadError
from talking_heads_utils.files import known_sha256
from talking_heads_utils.settings import EARLY, FINAL
from talking_heads_utils.weights.families import Family, Shape, family_of
from talking_heads_utils.weights.heads import HeadWeights, Processing, Source, assemble
from talking_heads_utils.weights.packages import PACKAGES

if TYPE_CHECKING:
    from talking_heads_utils.weights.gguf import GgufFile

GGUF = ".gguf"
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "generation_config.json",
)  # fmt: skip
FILES = (CONFIG, INDEX, "model*.safetensors", *OTHER_FILES)  # of a model on the Hub
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class SafeTensors:
    """The tensors of a checkpoint in safetensors, in one file or in shards: name -> the file that holds it."""

    files: dict[str, Path]

    def __len__(self) -> int:
        return len(self.files)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor. Raises :class:`CheckpointError` for one that is no plain float."""
        with safe_open(self.files[name], "pt") as file:
            header = file.get_slice(name)
            shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {self.files[name]} is stored as {dtype}, which is no plain float: a quantised checkpoint "
                f"cannot be scored unless it is a GGUF file. Take one in {', '.join(DTYPES.values())}."
            )
        return shape, DTYPES[dtype]

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Part -> tensor of that name, as it is stored."""
        for part, name in names.items():
            with safe_open(self.files[name], "pt") as file:
                yield part, file.get_tensor(name)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose header has been read and found to hold every attention tensor.

    folder: where it lies; of a GGUF file, the file. dtype: how the attention weights are stored, quantisation included.
    """

    name: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    family: Family
    shape: Shape
    stored: SafeTensors | GgufFile
    prefix: str
    dtype: str

    @property
    def files(self) -> dict[str, Path]:
        """Tensor name -> the file that holds it."""
        return self.stored.files

    @property
    def gguf(self) -> GgufFile | None:
        """The tensors of a GGUF file; None for a checkpoint in safetensors."""
        return None if isinstance(self.stored, SafeTensors) else self.stored

    def sha256(self, *, attention: bool = False) -> str:
        """Sum of the one file, as ``sha256sum`` prints it; of the files' sums, one a line, where there are several.

        attention: only of the files that hold attention tensors. A file in the Hub's cache is not read for it: the Hub
        names it by its sum.
        """
        held = set(self.files.values())
        if attention:
            layers = map(self.family.tensor_names, range(self.shape.n_layers))
            names = {self.prefix + name for layer in layers for name in layer.values()}
            held = {path for name, path in self.files.items() if name in names}
        sums = [known_sha256(path) for path in sorted(held)]
        return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def read_layer(
        self, layer: int, dtype: torch.dtype | None, device: str | torch.device = "cpu"
    ) -> dict[str, torch.Tensor]:
        """One layer's attention tensors by part, as they lie in the file; dtype None keeps the one that is stored.

        Nothing else is read. Raises :class:`CheckpointError` naming a tensor that is not finite.
        """
        names = {part: self.prefix + name for part, name in self.family.tensor_names(layer).items()}
        found = {}
        for part, tensor in self.stored.read({part: name for part, name in names.items() if name in self.files}):
            found[part] = tensor.to(device=device, dtype=dtype)
            if not torch.isfinite(found[part]).all():
                raise CheckpointError(
                    f"{names[part]} in {self.files[names[part]]} holds NaN or infinite values "
                    f"(as {found[part].dtype}): it is damaged or training diverged. Take another checkpoint."
                )
        return found


def load_head_weights(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    processing: Processing | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> HeadWeights:
    """Read the attention weights of a checkpoint folder, a Hub id (``gpt2``, ``EleutherAI/pythia-160m``), a GGUF file
    or a model that comes in a package (``smollm2``).

    Reads just the attention tensors, from ``model.safetensors``, the shards of its index or the GGUF file, for the
    families of :data:`~talking_heads_utils.weights.families.FAMILIES`. Quantised weights are dequantised. Raises
    :class:`CheckpointError` for a folder that is missing, partial, not finite or of an unknown family, and
    :class:`DownloadError` if the Hub, or the package index, cannot be reached.
    """
    return assembled(open_checkpoint(name_or_folder, revision), processing=processing, dtype=dtype, device=device)


def assembled(
    checkpoint: Checkpoint,
    layers: Sequence[int] | None = None,
    *,
    processing: Processing | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> HeadWeights:
    """The attention weights of a checkpoint that is open, or of some layers of it; the rest as
    :func:`load_head_weights`."""
    family, shape = checkpoint.family, checkpoint.shape
    layers = range(shape.n_layers) if layers is None else layers
    sha256 = checkpoint.sha256(attention=True)
    return assemble(
        (family.unpack(checkpoint.read_layer(layer, dtype, device), shape) for layer in layers),
        len(layers),
        norm=family.norm,
        source=Source(checkpoint.name, family.name, sha256, checkpoint.revision, checkpoint.dtype),
        processing=processing,
        rotary=family.rotary(checkpoint.config, shape),
    )


def open_checkpoint(name_or_folder: str | Path, revision: str | None = None) -> Checkpoint:
    """Find the checkpoint and check its header against its config. No weight is read yet."""
    if (package := PACKAGES.get(str(name_or_folder))) is not None and not isinstance(name_or_folder, Path):
        return _open_gguf(package.find(), package.name, package.revision)
    folder, name = as_folder(name_or_folder), str(name_or_folder)
    if folder.suffix == GGUF and not folder.is_dir():
        return _open_gguf(folder)
    if folder.is_dir():
        name, revision = _name_of(folder.resolve()), None
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"No such folder: {name_or_folder}. Give a folder with {CONFIG} and {SINGLE}, a {GGUF} file, "
            "or a Hub id such as gpt2 or EleutherAI/pythia-160m."
        )
    else:
        folder = _from_hub(name, revision)
        revision = folder.name
    config = _read_json(_held(folder, CONFIG))
    family_of(config, f"The checkpoint {name}")
    return _checked(name, revision, folder, config, _tensors_in(folder))


def _open_gguf(path: Path, name: str | None = None, revision: str | None = None) -> Checkpoint:
    from talking_heads_utils.weights.gguf import GgufFile

    if not path.is_file():
        raise CheckpointError(f"No such file: {path}. Give a {GGUF} file, a checkpoint folder or a Hub id.")
    file = GgufFile(path)
    return _checked(name or path.name, revision, path, file.config, file)


def _checked(
    name: str, revision: str | None, place: Path, config: dict[str, Any], stored: SafeTensors | GgufFile
) -> Checkpoint:
    """The checkpoint, once its header was found to fit its config."""
    family = family_of(config, f"The checkpoint {name}")
    shape = family.shape(config)
    if shape.n_layers > len(stored):
        raise CheckpointError(f"The config of {name} says {shape.n_layers} layers, the file has {len(stored)} tensors.")
    prefix, dtype = _check_header(family, shape, stored, name)
    return Checkpoint(name, revision, place, config, family, shape, stored, prefix, dtype)


def _name_of(folder: Path) -> str:
    """A folder's own name, with its run's before it where it is a stage of one."""
    return f"{folder.parent.name}/{folder.name}" if folder.name in (EARLY, FINAL) else folder.name


def as_folder(name_or_folder: str | Path) -> Path:
    """The path it would be as a folder. Raises :class:`CheckpointError` for a name that no system takes as a path."""
    try:
        if not str(name_or_folder):
            raise ValueError("it is empty")
        str(name_or_folder).encode()
        folder = Path(name_or_folder).expanduser()
        folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{str(name_or_folder)[:80]!r} can be no folder and no Hub id: {error}.") from error
    return folder


def _from_hub(repo: str, revision: str | None) -> Path:
    """The folder in the Hub's cache, called by its commit, that holds a model's files; they are fetched first."""
    from huggingface_hub import errors, snapshot_download

    def fetch(*files: str) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files), local_files_only=offline))

    offline = not hub_answers()
    try:
        folder = fetch(CONFIG)
        if (folder / CONFIG).is_file():  # of a family that is not known nothing else is fetched
            family_of(_read_json(folder / CONFIG), f"The checkpoint {repo}")
            folder = fetch(*FILES)
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its terms on its page at the Hub, then `hf auth login` or set HF_TOKEN, and run "
            "this again."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise DownloadError(
            f"No folder {repo} here, and the Hub knows no model {repo!r}"
            f"{f' at revision {revision}' if revision else ''}. Check the name."
        ) from error
    except Exception as error:  # a connection that broke; the Hub's client has changed its HTTP library twice
        raise DownloadError(f"{_unreachable(repo)} ({type(error).__name__}: {error})") from error
    if offline and not any((folder / file).is_file() for file in (SINGLE, INDEX)):
        raise DownloadError(_unreachable(repo))
    return folder


def hub_answers() -> bool:
    """Whether the Hub can be reached, asked once: its own downloads would retry for half a minute first."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # as above; any failure means the same here
        return False
    return True


def _unreachable(repo: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"No folder {repo} here, and the Hub could not be reached for {repo!r} (nor is it whole in the cache "
        f"{HF_HUB_CACHE}). Without a network, give a folder that holds {CONFIG} and {SINGLE}."
    )


def _held(folder: Path, file: str) -> Path:
    if not os.path.isfile(folder / file):  # no error for a name that cannot be one
        raise CheckpointError(f"{folder} holds no {file[:80]}: it is not a whole Hugging Face checkpoint.")
    return folder / file


def _tensors_in(folder: Path) -> SafeTensors:
    """Of a checkpoint in shards every shard's own header is what counts."""
    if (folder / SINGLE).is_file():
        return _headers([folder / SINGLE])
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} holds neither {SINGLE} nor {INDEX}. Only safetensors are read, never a pickle (*.bin, *.pt): "
            "load the model with transformers and save it again with save_pretrained()."
        )
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} lists no shards under 'weight_map'. Download it again.")
    return _headers([_held(folder, file) for file in sorted(set(map(str, weight_map.values())))])


def _headers(paths: Sequence[Path]) -> SafeTensors:
    found: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file ({error}). Download it again.") from error
    return SafeTensors(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no table of names and values")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Download it again.") from error
    return content


def _check_header(family: Family, shape: Shape, stored: SafeTensors | GgufFile, name: str) -> tuple[str, str]:
    """The prefix under which the tensors stand, and how they are stored, what holds most of them first.

    Raises :class:`CheckpointError` naming attention tensors that are missing, and the first that does not fit the
    config.
    """
    parts = [part for layer in range(shape.n_layers) for part in family.tensor_names(layer).items()]

    def missing(prefix: str) -> list[str]:
        wanted = [prefix + tensor for part, tensor in parts if part not in family.optional]
        return [tensor for tensor in wanted if tensor not in stored.files]

    prefix = min(family.prefixes, key=lambda p: len(missing(p)))
    if lacking := missing(prefix):
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        raise CheckpointError(
            f"The checkpoint {name} is partial: {len(lacking)} attention tensors are missing: "
            f"{', '.join(lacking[:8])}{more}. Download it again, or take a folder that holds them."
        )
    if beyond := [t for end in family.tensor_names(shape.n_layers).values() if (t := prefix + end) in stored.files]:
        raise CheckpointError(
            f"The config of {name} says {shape.n_layers} layers, but the file also holds {beyond[0]}."
        )
    sizes, held = family.sizes(shape), Counter[str]()
    for part, tensor in ((part, prefix + tensor) for part, tensor in parts if prefix + tensor in stored.files):
        found, dtype = stored.header(tensor)
        if found != sizes[part]:
            raise CheckpointError(
                f"{tensor} of {name} is {list(found)}, but its config makes it {list(sizes[part])}. "
                "The two do not belong together: take both from one place."
            )
        held[dtype] += math.prod(found)
    return prefix, ", ".join(dtype for dtype, _ in held.most_common())
