"""The model that runs in the page, by the page's own engine in node, against the package."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from conftest import STRICT_VARIABLE

import talking_heads_utils as th
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.site import page_model
from talking_heads_utils.site.npm import RUNTIME, write_runtime
from talking_heads_utils.weights.bridge import head_weights_from_bridge

TEXT = "hello the 12 and the hello 1"
PAIR = ("hello", " the")
SIZES = dict(head_dim=32, tie_word_embeddings=True)
CLOSE = dict(atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Two query heads share a key; matrices in two kinds of blocks, the embedding in a third, and tied."""
    kinds = {"token_embd.weight": "Q8_0", "blk.1.ffn_up.weight": "F32", "blk.0.attn_q.weight": "Q8_0"}
    kinds |= {"blk.1.attn_q.weight": "Q8_0", "blk.0.ffn_up.weight": "F32"}  # a layer is laid out as every other
    path = tmp_path_factory.mktemp("page") / "tiny.gguf"
    return gguf_files.write(gguf_files.build("llama", **SIZES), path, "Q4_1", kinds=kinds)


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("page-model")
    page_model.write_model(file, made)
    return made


@pytest.fixture(scope="module")
def bridge(file):
    return th.load_model(file)


def close(found, wanted) -> None:
    torch.testing.assert_close(torch.tensor(np.array(found)).float(), torch.as_tensor(wanted).detach().float(), **CLOSE)


def values(data, name, kind, rows, cols, offset) -> np.ndarray:
    """A part of a file, a row an output, dequantised by the gguf library."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = data[offset : offset + rows * cols // block * size].reshape(rows, -1)
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(rows, cols)


def test_components_of_the_files_are_those_of_the_weights(folder, bridge):
    directions, S = write_directions(head_weights_from_bridge(bridge, dtype=torch.float64))
    parts = json.loads((folder / "model.json").read_text())["layer"]
    for n in range(2):
        data = np.frombuffer((folder / f"layer-{n:02}.bin").read_bytes(), np.uint8)
        held = {part["name"]: values(data, **part) for part in parts}
        close(held["singular"], S[n])
        write = torch.as_tensor(held["maps"].reshape(4, 32, 32) @ held["W_O"].T.reshape(4, 32, 64))
        kept = S[n, :, :8] > 1e-6
        close((write.double() * directions[n]).sum(-1).abs()[:, :8][kept], torch.ones(int(kept.sum())))
        assert (write.gather(-1, write.abs().argmax(-1, keepdim=True))[:, :8] > 0).all()


REFUSED = [
    ("llama", dict(head_dim=32), "Q8_0", None, "runs Llama models with tied embeddings"),
    ("qwen2", SIZES, "Q8_0", None, "runs Llama models with tied embeddings"),
    ("llama", dict(tie_word_embeddings=True), "Q8_0", None, "multiples of 32"),
    ("llama", SIZES, "Q5_1", None, "stored as Q5_1; the page reads"),
    ("llama", SIZES, "Q8_0", {"token_embd.weight": "Q4_1"}, "The embedding is stored as Q4_1; the page reads Q8_0"),
    ("llama", SIZES, "Q8_0", {"blk.1.ffn_up.weight": "F32"}, "Layer 1 is stored in other ways"),
]


@pytest.mark.parametrize(("family", "sizes", "kind", "kinds", "message"), REFUSED)
def test_what_the_page_cannot_run_is_one_clear_error(family, sizes, kind, kinds, message, tmp_path):
    path = gguf_files.write(gguf_files.build(family, **sizes), tmp_path / "model.gguf", kind, kinds=kinds)
    with pytest.raises(CheckpointError, match=message):
        page_model.write_model(path, tmp_path / "made")
    assert not (tmp_path / "made" / "model.json").exists()


def test_the_page_runs_no_folder(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="out of a GGUF file"):
        page_model.write_model(checkpoints["llama"], tmp_path)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Path:
    """What runs the model in a page. It is fetched where nothing may be skipped, as in CI."""
    if not shutil.which("node"):
        (pytest.fail if os.environ.get(STRICT_VARIABLE) else pytest.skip)("node is not on this machine")
    if not all(package.cached.is_file() for package in RUNTIME) and not os.environ.get(STRICT_VARIABLE):
        pytest.skip("the page's runtime is not in the cache")
    place = tmp_path_factory.mktemp("runtime")
    write_runtime(place)
    return place


def move(label: str, how: str, amount: float) -> dict:
    """A move as the page writes it."""
    at = Component.parse(label) if "." in label else Head.parse(label)
    return vars(at) | ({"amount": amount} if isinstance(at, Head) else {"how": how, "amount": amount})


CASES = [
    {}, {"set": {"L1H2.0": 4.0}}, {"set": {"L0H3.1": -3.0}}, {"scale": {"L0H3.1": -2.0}}, {"add": {"L1H0.2": 2.5}},
    {"scale": {"L0H1": 0.0}}, {"scale": {"L0H1": -1.5, "L1H2.0": 3.0}, "add": {"L1H2.1": 1.0}, "set": {"L0H3.0": 2.0}},
    {"set": {"L1H2.0": 4.0}},
]  # fmt: skip


def test_the_engine_of_the_page_is_ask(folder, runtime, bridge):
    """In one go, where a run goes on from what it has in common with the one before, and each anew."""
    pair = [bridge.tokenizer(text)["input_ids"][0] for text in PAIR]
    moves = [[move(label, how, n) for how, parts in case.items() for label, n in parts.items()] for case in CASES]
    asked = [dict(moves=m, pair=pair, head=[1, 2], fresh=fresh) for fresh in (False, True) for m in moves]
    script = Path(__file__).with_suffix("").with_name("page_model.mjs")
    done = subprocess.run(
        ["node", script, folder, runtime, TEXT], input=json.dumps(asked), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    whole = th.ask(bridge, TEXT)
    assert said["ids"] == whole.tokens.tolist()
    for case, going_on, anew in zip(CASES, said["runs"][: len(CASES)], said["runs"][len(CASES) :]):
        wanted = th.ask(bridge, TEXT, **case)
        for run in (going_on, anew):
            close(run["logits"], wanted.logits)
            close(np.reshape(run["pattern"], wanted.pattern.shape), wanted.pattern)
            close(np.reshape(run["z"], wanted.z.shape), wanted.z)
            close(np.array(run["direct"]) / run["rms"], wanted.direct(*PAIR))
            close(run["coefficients"][:4], torch.tensor([wanted.coefficient(f"L1H2.{k}") for k in range(4)]))
        assert not case or (wanted.logits - whole.logits).abs().max() > 0.05
