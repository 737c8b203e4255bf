"""Loading a whole model: by a known name, a Hub id, a folder or a GGUF file, or what a user has loaded already.

TransformerLens' own loading fills tensors that a checkpoint lacks at random, without a word, and reads pickles. So the
header is checked against the config first, and only safetensors are read. What the book knows by name stands in
:mod:`talking_heads_utils.known`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talking_heads_utils.device import check_device, free_memory
from talking_heads_utils.errors import CheckpointError, ModelError, OptionError
from talking_heads_utils.known import PLANTED, known_models, model_source
from talking_heads_utils.prompts.prefix import add_prefix, begin_ids
from talking_heads_utils.weights.checkpoints import Checkpoint, as_folder, open_checkpoint
from talking_heads_utils.weights.heads import NO_NORM, Processing

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = "auto"  # in place of a device: over all GPUs there are
_BRIDGE = "_talking_heads_bridge"  # on a Hugging Face model that has been wrapped, since it can be only once


def load_model(
    name_or_folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    processing: Processing | None = None,
    revision: str | None = None,
) -> TransformerBridge:
    """A model as a ``TransformerBridge``: by one name for all kinds of model.

    ``planted``, or a small model that ships with the book (``known.shipped_models``), or a known name pinned to its
    revision, or another Hub id, or a folder in the Hub's format, or a GGUF file, dequantised to ``dtype``. Weights are
    processed as in :class:`~talking_heads_utils.weights.heads.HeadWeights`, by default for the model's norm;
    ``Processing(False, False)`` leaves them raw. ``planted`` has no norm and nothing to process;
    :func:`~planted.model.plant` gives the truth about it as well. Attention is eager, so that patterns can
    be read. The bridge's tokenizer, and with it ``to_tokens``, adds by itself what stands in front of a prompt: a known
    model's ``prefix``, else what it adds anyway. device: also ``"auto"``, which spreads the layers over all GPUs; what
    runs single layers by itself (:mod:`talking_heads_utils.forward.engine`) then refuses.

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
        from talking_heads_utils.planted.model import plant

        (processing or Processing.default(NO_NORM)).check(NO_NORM)
        return moved(plant().bridge, one, dtype)
    checkpoint = find_checkpoint(name_or_folder, revision)
    processing = (processing or Processing.default(checkpoint.family.norm)).check(checkpoint.family.norm)
    check_complete(checkpoint, None if spread else torch.device(one), dtype)
    tokenizer = _tokenizer(checkpoint, name_or_folder)
    model = _read(checkpoint, dtype, device_map="auto") if spread else _read(checkpoint, dtype).to(one)
    return _boot(model.eval(), tokenizer, checkpoint, None if spread else one, dtype, processing)


def as_bridge(
    model: TransformerBridge | PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> TransformerBridge:
    """A model as everything here takes it: a ``TransformerBridge``.

    model: what :func:`load_model` gives or any other bridge, in compatibility mode or not, which is returned as it is;
    a Hugging Face model, which then needs its tokenizer; or a name for :func:`load_model`. A Hugging Face model is
    wrapped in place: its weights and logits stay, its attention becomes eager, and a second call gives the same bridge.

    Raises :class:`ModelError` for a model in training mode or of a kind that TransformerLens cannot run, and
    :class:`OptionError` for anything else or a missing tokenizer.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if isinstance(model, str | Path):
        return load_model(model)
    if not isinstance(model, TransformerBridge | PreTrainedModel):
        raise OptionError(
            f"A model is a TransformerBridge, a Hugging Face model or a name, not of the type {type(model).__name__}."
        )
    if model.training:
        raise ModelError("The model is in training mode, where dropout changes every run. Call model.eval() first.")
    if isinstance(model, TransformerBridge):
        return model
    if (made := vars(model).get(_BRIDGE)) is not None:
        return made
    if tokenizer is None:
        raise OptionError("A Hugging Face model needs its tokenizer beside it: as_bridge(model, tokenizer).")
    name = model.name_or_path or str(model.config.model_type)
    vars(model)[_BRIDGE] = bridge = _wrapped(model, tokenizer, name, str(model.device), model.dtype)
    return bridge


def find_checkpoint(name_or_folder: str | Path, revision: str | None = None) -> Checkpoint:
    """The checkpoint that a name stands for, whose ``revision`` is the Hub's commit, or None for a folder.

    Raises as :func:`load_model` does.
    """
    source, revision = model_source(name_or_folder, revision)
    return open_checkpoint(source, revision)


def revision_of(name_or_folder: str | Path) -> str | None:
    """The Hub's commit that a name stands for; None for a model that comes from this machine."""
    return None if name_or_folder == PLANTED else find_checkpoint(name_or_folder).revision


def load_with_tokenizer(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[TransformerBridge, PreTrainedTokenizerBase]:
    """A model as :func:`load_model` gives it, and its tokenizer."""
    bridge = load_model(name, device, dtype)
    return bridge, bridge.tokenizer


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
    free = free_memory(device)
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

            return from_gguf(checkpoint.gguf, attn_implementation="eager", **options)
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

        return tokenizer_of(checkpoint.gguf)
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


def _wrapped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, device: str | None, dtype: torch.dtype
) -> TransformerBridge:
    """A Hugging Face model as a bridge with weights as they are, whose tokenizer stays as it is."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer.init_kwargs["add_bos_token"] = True  # else TransformerLens reads it anew, so that it adds bos
    try:
        bridge = TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"TransformerLens cannot run {name}: {_reason(error)}") from error
    finally:
        del tokenizer.init_kwargs["add_bos_token"]
    bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = bool(begin_ids(tokenizer))
    return bridge


def _boot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, device: str | None,
    dtype: torch.dtype, processing: Processing,
) -> TransformerBridge:  # fmt: skip
    bridge = _wrapped(model, tokenizer, str(checkpoint.folder), device, dtype)
    bridge.cfg.model_name = checkpoint.name  # what errors, tables and edits call it, not a path on this machine
    if processing.fold_ln:
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
