"""Shared fixtures: small random checkpoints of every family, and GPT-2's real weights where there are any."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from talking_heads_utils.errors import DownloadError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.files import GPT2_VARIABLE
from talking_heads_utils.known import PLANTED
from talking_heads_utils.prompts import toy
from talking_heads_utils.prompts.prefix import add_prefix
from talking_heads_utils.weights.checkpoints import load_head_weights

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network; the cache is still read

FAMILY_NAMES = ("gpt2", "gpt_neox", "llama", "llama3", "mistral", "qwen2", "qwen3")
BILINEAR = FAMILY_NAMES[:-1]  # those that do not normalise queries and keys
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 256}  # pairs of all three kinds: untouched, between, slowed
STRICT_VARIABLE = "TALKING_HEADS_NO_SKIP"


def build_model(family: str, vocab_size: int = 50):
    """A tiny random model; norms and biases are random too, so that a fold that is left out shows."""
    import transformers as tf

    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(vocab_size=vocab_size)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "gpt2":
        config = tf.GPT2Config(
            vocab_size=vocab_size, n_positions=32, n_embd=24, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
        )
    elif family == "gpt_neox":
        config = tf.GPTNeoXConfig(
            **sizes, rope_parameters=rope | {"partial_rotary_factor": 0.67}, max_position_embeddings=128
        )
    else:
        sizes |= dict(num_key_value_heads=2, max_position_embeddings=512)
        rope |= LLAMA3 if family in ("llama3", "qwen2") else {}
        name = {"llama3": "Llama", "mistral": "Mistral"}.get(family, family.capitalize())
        own = dict(head_dim=6) if family in ("mistral", "qwen3") else {}
        config = getattr(tf, f"{name}Config")(**sizes, **own, rope_parameters=rope)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (0.7 if parameter.ndim == 1 else 0.0))
    return model


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", bos_token="w0", eos_token="w0").save_pretrained(
        folder
    )


def edit(folder: Path, target: Path, change) -> Path:
    """A copy of a checkpoint whose tensors ``change`` has altered in place."""
    copied = shutil.copytree(folder, target)
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


def edit_config(folder: Path, target: Path, **changes) -> Path:
    """A copy of a checkpoint whose config says something else, or nothing where a value is ``...``."""
    path = shutil.copytree(folder, target) / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return target


def pytest_collection_modifyitems(items) -> None:
    """The longest tests begin first."""
    items.sort(key=lambda item: "longest" not in item.keywords)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Family -> folder in the Hub's format, one safetensors file each."""
    folders = {}
    for family in FAMILY_NAMES:
        folders[family] = tmp_path_factory.mktemp(family) / "checkpoint"
        build_model(family).save_pretrained(folders[family])
        save_tokenizer(folders[family])
    return folders


@pytest.fixture(params=FAMILY_NAMES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def small(checkpoints):
    """Weights of the small GPT-2 in float64, for comparison with dense algebra."""
    return load_head_weights(checkpoints["gpt2"], dtype=torch.float64)


@pytest.fixture(scope="session")
def gpt2_source() -> str:
    """Where GPT-2 small's real attention weights are: $TALKING_HEADS_GPT2, else the Hugging Face cache, else skip.

    With $TALKING_HEADS_NO_SKIP set, as in CI, missing weights are a failure.
    """
    wanted = os.environ.get(GPT2_VARIABLE)
    if wanted:
        return wanted
    try:
        load_head_weights("gpt2")
    except DownloadError as error:
        reason = f"GPT-2's weights are neither in ${GPT2_VARIABLE} nor in the Hugging Face cache: {error}"
        if os.environ.get(STRICT_VARIABLE):
            pytest.fail(reason)
        pytest.skip(reason)
    return "gpt2"


@pytest.fixture(scope="session")
def gpt2(gpt2_source):
    """GPT-2 small's real attention weights."""
    return load_head_weights(gpt2_source)


@pytest.fixture(scope="session")
def word_tokenizer():
    """A word-level tokenizer that lacks some of the words, as a small model's does, and puts nothing in front."""
    tokenizer = toy.word_tokenizer(60, 60, 60)
    add_prefix(tokenizer, "")
    return tokenizer


@pytest.fixture(scope="session")
def gpt2_tokenizer(gpt2_source):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gpt2_source)


def draw_few(patch: pytest.MonkeyPatch) -> None:
    """A tenth of the draws behind a control, each of which goes through the same lines. A p takes them eleven times,
    since it wants 99. What is learned is learned in four steps."""
    from talking_heads_utils.experiments.dealt import drawn_test
    from talking_heads_utils.experiments.editing import moves
    from talking_heads_utils.experiments.inhibition import exchange
    from talking_heads_utils.experiments.positional import crowding, decoding, interchange, order, subspace, traversal
    from talking_heads_utils.experiments.positional.interchange import fit

    for module in (crowding, decoding, order, traversal):
        patch.setattr(module, "drawn_test", lambda x, drawn: drawn_test(x, drawn.repeat(11 if len(drawn) < 99 else 1)))
    patch.setattr(interchange, "fit", lambda *given, steps, **more: fit(*given, steps=min(steps, 4), **more))
    patch.setattr(subspace, "N_MATCHED", 9)
    patch.setattr(exchange, "N_DRAWS", 9)
    patch.setattr(moves, "N_DRAWS", 2)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Less of everything that a whole experiment does many times over, where it need only go through its lines."""
    from talking_heads_utils.experiments.editing import costs, moves, removal
    from talking_heads_utils.experiments.inhibition import attends, says
    from talking_heads_utils.experiments.positional import steering, traversal

    for module, sizes in (
        (costs, dict(N_POS=64, N_TOKENS_OWN=2000, N_TOKENS_TRIED=2000)), (moves, dict(N_SINGLE=2)),
        (removal, dict(N_MATCHED=19)), (attends, dict(N_WINDOWS=300)), (says, dict(N_SHUFFLED=4)),
        (steering, dict(N_DRAWS=4)), (traversal, dict(ON_LINE=5, ON_MAP=5)),
    ):  # fmt: skip
        for name, size in sizes.items():
            patch.setattr(module, name, size)


@pytest.fixture(scope="module")
def planted():
    """A quick run of the planted model's experiments."""
    return Context(PLANTED, quick=True)


@pytest.fixture(scope="module")
def few_draws():
    """For a module whose whole experiments should run on few draws."""
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        yield


def at_end(values, prompts):
    """Of each prompt what stands at its last token."""
    return values[torch.arange(len(prompts)), prompts.positions["end"]]


@torch.no_grad()
def run_with(bridge, prompts, changes=(), keep=()):
    """Logits at ``end`` of a whole run with hooks, and what stood at the hooks ``keep``.

    changes: (hook, change) pairs; a change alters the copy that it gets, or gives another value.
    """
    seen = {}

    def changed(change):
        def hook(value, hook):
            value = value.clone()
            new = change(value)
            return value if new is None else new

        return hook

    def look(name):
        return lambda value, hook: seen.update({name: value.clone()})

    hooks = [(name, changed(change)) for name, change in changes] + [(name, look(name)) for name in keep]
    return at_end(bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks), prompts), seen


def twins_of(prompts):
    """The same prompts of other tokens but for the last one."""
    tokens, rows, end = 49 - prompts.tokens, torch.arange(len(prompts)), prompts.positions["end"]
    tokens[rows, end] = prompts.tokens[rows, end]
    return type(prompts)(**vars(prompts) | {"tokens": tokens})


def made(kind, **values):
    """A row of a table with these values and nothing in its other columns."""
    empty = {str: "", int: 0, float: 0.0, bool: False}
    return kind(**{c.name: values.get(c.name, empty[c.kind]) for c in kind.columns()})


KINDS_OF_MODEL = ("gpt2", "gpt_neox", "qwen2", "native")  # qwen2: grouped heads, biases, scaled rotary positions


def random_prompts(n: int = 6, n_pos: int = 9):
    """Random ids of different length, with the named positions of IOI."""
    from talking_heads_utils.prompts.sets import PromptSet, Recipe

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 49, (n, n_pos), generator=generator)
    end = torch.randint(5, n_pos, (n,), generator=generator)
    places = {"end": end, "IO": torch.full((n,), 1), "S1": torch.full((n,), 3)}
    mask = torch.arange(n_pos) <= end[:, None]
    info = {"order": [0] * n}
    return PromptSet(tokens, mask, places, tokens[:, 1], tokens[:, 3:4], [""] * n, info, Recipe("ioi", n, 0, ""))


def case_of(kind, checkpoints, dtype=torch.float32):
    """A model and prompts. The planted one with a weak channel: 1e-4 means little where scores are in the hundreds."""
    from talking_heads_utils.models import load_model, moved
    from talking_heads_utils.planted.model import plant
    from talking_heads_utils.prompts import lists as laundry

    if kind == "native":
        planted = plant(strength=20.0)
        return moved(planted.bridge, "cpu", dtype), laundry.build_laundry(planted.tokenizer, 3, 6)
    return load_model(checkpoints[kind], dtype=dtype), random_prompts()


@pytest.fixture(scope="session", params=KINDS_OF_MODEL)
def case(request, checkpoints):
    return case_of(request.param, checkpoints)
