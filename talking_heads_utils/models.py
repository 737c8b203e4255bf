"""Loading a whole model for experiments: by a known name, a Hub id or a folder, always by the same call.

TransformerLens' own loading fills tensors that a checkpoint lacks at random, without a word, and reads pickles. So the
header is checked against the config first, and only safetensors are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talking_heads_utils import roles
from talking_heads_utils.device import check_device, free_memory, free_on_all
from talking_heads_utils.errors import CheckpointError, ModelError, OptionError
from talking_heads_utils.files import data_dir
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.prefix import add_prefix, begin_ids
from talking_heads_utils.settings import FINAL
from talking_heads_utils.weights.checkpoints import GGUF, Checkpoint, as_folder, open_checkpoint
from talking_heads_utils.weights.heads import NO_NORM, Processing
from talking_heads_utils.weights.packages import SMOLLM2, Package

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLANTED = "planted"
SPREAD = "auto"  # in place of a device: over all GPUs there are
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True)
class KnownModel:
    """A model that the book's chapters know. ``revision`` pins what the Hub or a package gives; ``roles`` are published
    claims. ``prefix``: the tokens that stand in front of every prompt, as text, ``""`` for none."""

    name: str
    revision: str
    gated: bool
    n_params: int
    chapters: tuple[int, ...]
    prefix: str
    roles: Mapping[str, list[Head]] = field(default_factory=dict)
    roles_source: str | None = None
    package: Package | None = None  # where its file comes from instead of the Hub

    @property
    def shown(self) -> str:
        """What every figure of it must say it shows."""
        return f"{self.name}, real model" + (f", quantised to {self.package.quantised}" if self.package else "")

    def gigabytes(self, dtype: torch.dtype = torch.float32) -> float:
        """Memory that the weights alone take, in 10^9 bytes."""
        return self.n_params * dtype.itemsize / 1e9


def known_models() -> dict[str, KnownModel]:
    """The models of the book, by name."""
    models = (
        KnownModel(
            name="gpt2",
            revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
            gated=False,
            n_params=124_439_808,
            chapters=(1, 2, 3, 4),  # its tokenizer keeps 0 to 361 whole, which chapter 4 needs
            prefix="<|endoftext|>",  # TransformerLens' convention; the tokenizer adds nothing
            roles=roles.gpt2_small_roles(),
            roles_source=roles.GPT2_SMALL_SOURCE,
        ),
        KnownModel(
            name="EleutherAI/pythia-160m",
            revision="50f5173d932e8e61f858120bcb800b97af589f46",
            gated=False,
            n_params=162_322_944,
            chapters=(1, 2, 3),
            prefix="<|endoftext|>",  # as GPT-2's
        ),
        KnownModel(
            name="meta-llama/Meta-Llama-3-8B",
            revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920",
            gated=True,
            n_params=8_030_261_248,
            chapters=(4,),
            prefix="<|begin_of_text|>",
        ),
        KnownModel(
            name=SMOLLM2.name,
            revision=SMOLLM2.revision,
            gated=False,
            n_params=134_515_008,
            chapters=(1, 2, 3, 4),
            prefix="",
            package=SMOLLM2,
        ),
    )
    return {model.name: model for model in models}


def load_model(
    name_or_folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    processing: Processing | None = None,
    revision: str | None = None,
) -> TransformerBridge:
    """A model as a ``TransformerBridge``: by one name for all kinds of model.

    ``planted``, or a small model that ships with the book (:func:`shipped_models`), or a known name pinned to its
    revision, or another Hub id, or a folder in the Hub's format, or a GGUF file, dequantised to ``dtype``. Weights are
    processed as in :class:`~talking_heads_utils.weights.heads.HeadWeights`, by default for the model's norm;
    ``Processing(False, False)`` leaves them raw. ``planted`` has no norm and nothing to process;
    :func:`~planted.model.plant` gives the truth about it as well. Attention is eager, so that patterns can
    be read. The bridge's tokenizer, and with it ``to_tokens``, adds by itself what stands in front of a prompt: a known
    model's ``prefix``, else what it adds anyway. device: also ``"auto"``, which spreads the layers over all GPUs; what
    runs single layers by itself (:mod:`talking_heads_utils.forward.suffix`) then refuses.

    Raises :class:`CheckpointError` for a checkpoint that is missing, partial, damaged or without its tokenizer,
    :class:`DownloadError` if the Hub cannot be reached or asks for a token, :class:`ModelError` if there is too little
    memory, :class:`OptionError` for a device that is not there, and :class:`ProcessingError` for a processing that
    would change the model.
    """
    if not isinstance(dtype, torch.dtype):
        raise OptionError(f"dtype is one of torch's, such as torch.float32, not {dtype!r}.")
    spread = device == SPREAD
    one = check_device("cpu" if spread else str(device))
    if name_or_folder == PLANTED:
        return _load_planted(one, dtype, processing)
    checkpoint = find_checkpoint(name_or_folder, revision)
    processing = (processing or Processing.default(checkpoint.family.norm)).check(checkpoint.family.norm)
    check_complete(checkpoint, None if spread else torch.device(one), dtype)
    tokenizer = _tokenizer(checkpoint, name_or_folder)
    model = _read(checkpoint, dtype, device_map="auto") if spread else _read(checkpoint, dtype).to(one)
    return _boot(model.eval(), tokenizer, checkpoint, None if spread else one, dtype, processing)


def model_source(name_or_folder: str | Path, revision: str | None = None) -> tuple[str | Path, str | None]:
    """Where a model's checkpoint is, and its revision: folders of the book's own, known names pinned to theirs. A
    ``Path`` is always that folder, a string first a name.

    Raises :class:`ModelError` for a small model that does not ship.
    """
    if isinstance(name_or_folder, Path):
        return name_or_folder, revision
    shipped, asked = shipped_models(), name_or_folder
    if asked.startswith("mini-"):
        asked = asked.removesuffix("/final")
    if asked.startswith("mini-") and asked not in shipped and not as_folder(asked).is_dir():
        raise ModelError(f"No small model {name_or_folder!r} ships with the book; there are {', '.join(shipped)}.")
    known = known_models().get(asked)
    return shipped.get(asked, name_or_folder), revision or (known.revision if known else None)


def find_checkpoint(name_or_folder: str | Path, revision: str | None = None) -> Checkpoint:
    """The checkpoint that a name stands for, whose ``revision`` is the Hub's commit, or None for a folder.

    Raises as :func:`load_model` does.
    """
    source, revision = model_source(name_or_folder, revision)
    return open_checkpoint(source, revision, also=(*TOKENIZER_FILES, "generation_config.json"))


def revision_of(name_or_folder: str | Path) -> str | None:
    """The Hub's commit that a name stands for; None for a model that comes from this machine."""
    return None if name_or_folder == PLANTED else find_checkpoint(name_or_folder).revision


def is_real(name: str, revision: str | None) -> bool:
    """Whether these are the weights that a known name stands for: a folder of that name has no revision."""
    known = known_models().get(name)
    return known is not None and revision == known.revision


def load_with_tokenizer(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[TransformerBridge, PreTrainedTokenizerBase]:
    """A model as :func:`load_model` gives it, and its tokenizer (``planted`` keeps its own beside the bridge)."""
    if name != PLANTED:
        bridge = load_model(name, device, dtype)
        return bridge, bridge.tokenizer
    from talking_heads_utils.planted.model import plant

    truth = plant()
    return moved(truth.bridge, check_device(str(device)), dtype), truth.tokenizer


def load_tokenizer(name_or_folder: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone, which adds by itself what stands in front of a prompt. Raises as :func:`load_model`
    does."""
    if name_or_folder == PLANTED:
        from talking_heads_utils.prompts.toy import word_tokenizer

        return word_tokenizer()
    return _tokenizer(find_checkpoint(name_or_folder, revision), name_or_folder)


def moved(
    bridge: TransformerBridge, device: str | torch.device, dtype: torch.dtype = torch.float32
) -> TransformerBridge:
    """A model that TransformerLens built by itself, on another device and in another dtype.

    TransformerLens prints a line at each move, so a model that is in place is left alone.
    """
    if torch.device(device).type != "cpu":
        bridge = bridge.to(device)
    return bridge if dtype == torch.float32 else bridge.to(dtype)


def minis(stage: str = "", n_items: int = 0) -> list[str]:
    """The trained models whose answers must pass through a mover, as far as they ship and saw lists of ``n_items`` in
    training: at the end, or ``early``."""
    names = [f"{name}/{stage}" if stage else name for name in ("mini-token", "mini-place")]
    return [name for name in names if name in shipped_models() and n_items <= longest_trained(name)]


def longest_trained(name: str) -> float:
    """Items of the longest list that a shipped model saw in training, out of its card; infinity for any other model."""
    folder = shipped_models().get(name)
    if folder is None:
        return math.inf
    return json.loads((folder / "training.json").read_text(encoding="utf-8")).get("longest", math.inf)


def learners() -> list[str]:
    """The trained models that learn functions in context, as far as they ship."""
    names = ("mini-icl", "mini-icl-plain", "mini-icl-noisy")
    return [name for name in names if name in shipped_models()]


def shown_as(name: str) -> str:
    """What every figure of a model must say it shows."""
    if name == PLANTED:
        return "Planted model, the answer is known"
    if name.split("/")[0] in {shipped.split("/")[0] for shipped in shipped_models()}:
        return f"{name}, trained here, a toy"
    if Path(name).is_dir():
        return f"{Path(name).name}, weights of a folder, not known to be a real model"
    if Path(name).suffix == GGUF:
        return f"{Path(name).name}, weights of a file, not known to be a real model"
    return known.shown if (known := known_models().get(name)) else f"{name}, real model"


def shipped_models() -> dict[str, Path]:
    """The small models that come with the book: ``mini-token`` (trained to the end), ``mini-token/early`` and so on."""
    folders = sorted((data_dir() / "models").glob("*/*/config.json"))
    names = {f"{path.parent.parent.name}/{path.parent.name}": path.parent for path in folders}
    return {name.removesuffix(f"/{FINAL}"): folder for name, folder in names.items()}


def _load_planted(device: str | torch.device, dtype: torch.dtype, processing: Processing | None) -> TransformerBridge:
    from talking_heads_utils.planted.model import plant

    (processing or Processing.default(NO_NORM)).check(NO_NORM)
    return moved(plant().bridge, device, dtype)


def check_complete(checkpoint: Checkpoint, device: torch.device | None, dtype: torch.dtype) -> None:
    """Every tensor of the model is in the file with the right shape, and the device, or all GPUs, have room for them.

    Nothing is loaded: transformers matches names and shapes on the meta device, where tensors hold no values.
    Raises :class:`CheckpointError` naming the tensors that are missing, and :class:`ModelError` for too little memory.
    """
    model, found = _from_pretrained(checkpoint, device_map="meta", output_loading_info=True)
    if lacking := sorted(found["missing_keys"]):
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        raise CheckpointError(
            f"The checkpoint {checkpoint.name} is partial: {len(lacking)} tensors are missing: "
            f"{', '.join(lacking[:8])}{more}. No forward pass is possible. What needs attention weights alone can be "
            "had from it: talking_heads_utils.weights.checkpoints.load_head_weights."
        )
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    free = free_memory(device) if device else free_on_all()
    if free is not None and needed > free:
        raise ModelError(
            f"{checkpoint.name} in {dtype} needs {needed / 1e9:.1f} GB on {device or 'all GPUs'}; {free / 1e9:.1f} GB "
            "are free. Load it with dtype=torch.bfloat16 (half of float32), or on a machine with more memory."
        )


def _from_pretrained(checkpoint: Checkpoint, **options: Any) -> Any:
    """The checkpoint by transformers, eager, from safetensors or GGUF alone, without its reports on the way."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    how = dict(use_safetensors=True, trust_remote_code=False, local_files_only=True, attn_implementation="eager")
    try:
        if checkpoint.gguf is not None:
            from talking_heads_utils.weights.gguf_model import from_gguf

            return from_gguf(checkpoint.gguf, checkpoint.config, attn_implementation="eager", **options)
        return AutoModelForCausalLM.from_pretrained(checkpoint.folder, **how, **options)
    except CheckpointError:
        raise
    except Exception as error:  # transformers and the classes behind it refuse a config by errors of many kinds
        raise CheckpointError(
            f"{checkpoint.name} does not fit its config: {_reason(error)} Take both from one place."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _read(checkpoint: Checkpoint, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    model = _from_pretrained(checkpoint, dtype=dtype, **options)
    if bad := [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]:
        raise CheckpointError(f"{bad[0]} of {checkpoint.name} holds NaN or infinite values. Take another checkpoint.")
    return model


def _tokenizer(checkpoint: Checkpoint, name: str | Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, which adds a known model's prefix by itself."""
    tokenizer = _read_tokenizer(checkpoint)
    known = known_models().get(str(name))
    if known is not None and not as_folder(name).is_dir():
        add_prefix(tokenizer, known.prefix)
    return tokenizer


def _read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if checkpoint.gguf is not None:
        from talking_heads_utils.weights.gguf_model import tokenizer_of

        return tokenizer_of(checkpoint.gguf.file)
    if not any((checkpoint.folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer: {checkpoint.folder} holds neither tokenizer.json nor vocab.json. "
            "Copy those of the model that it was made from."
        )
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as with a config
        raise CheckpointError(
            f"The tokenizer in {checkpoint.folder} is damaged ({_reason(error)}). Download it again."
        ) from error


def _reason(error: Exception) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[-1].strip()}"


def _boot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, device: str | None,
    dtype: torch.dtype, processing: Processing,
) -> TransformerBridge:  # fmt: skip
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer.init_kwargs["add_bos_token"] = True  # else TransformerLens reads it anew, so that it adds bos
    try:
        bridge = TransformerBridge.boot_transformers(
            str(checkpoint.folder), hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"TransformerLens cannot run {checkpoint.name}: {_reason(error)}") from error
    finally:
        del tokenizer.init_kwargs["add_bos_token"]
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = bool(begin_ids(tokenizer))
    if processing.fold_ln:
        if checkpoint.gguf is not None:
            checkpoint.gguf.file.let_go()
        unembedding = _square_unembedding(bridge, processing.center)
        bridge.enable_compatibility_mode(
            disable_warnings=True,
            fold_ln=True,
            center_writing_weights=processing.center,
            center_unembed=False,  # logits stay the model's own
            # TransformerLens copies the whole model for it, also where no norm and no layer has a bias
            fold_value_biases=any(name.endswith(".bias") for name, _ in model.named_parameters()),
        )
        if unembedding is not None:
            with torch.no_grad():
                for tensor, right in zip((bridge.unembed.original_component.weight, bridge.unembed.b_U), unembedding):
                    tensor.copy_(right)
    return bridge


def _square_unembedding(bridge: TransformerBridge, center: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The unembedding with the last norm folded in, ``[d_vocab, d_model]``, and its bias, where the two are as long.

    TransformerLens (4.3) tells the matrix's sides apart by their length and folds a square one along the wrong side.
    None for any other.
    """
    if bridge.cfg.d_vocab != bridge.cfg.d_model:
        return None
    norm, W = bridge.ln_final, bridge.unembed.original_component.weight.detach().clone()
    bias = getattr(norm, "bias", None)
    b = bridge.unembed.b_U.detach().clone()
    b = b if bias is None else b + W @ bias.detach()
    W = W * norm.weight.detach()
    return (W - W.mean(-1, keepdim=True) if center else W), b
