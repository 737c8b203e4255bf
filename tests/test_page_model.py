"""The model that runs in the page: graphs in onnxruntime and its engine in node, against the package."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import STRICT_VARIABLE

import talking_heads_utils as th
from talking_heads_utils.components import direction_of, ov_svd
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


class Native:
    """The graphs in onnxruntime, their weights put together out of the folder's files as the page does."""

    def __init__(self, folder: Path, place: Path):
        self.about = json.loads((folder / "model.json").read_text())
        self.folder, self.place, self.s = folder, place, self.about["shape"]
        self.layers = [self.read(f"layer-{n:02}.bin", "layer") for n in range(self.s["n_layers"])]
        self.head = self.read("embedding.bin", "embedding")
        attention, mlp = ["attn_norm", "W_Q", "W_K", "W_V", "W_O"], ["mlp_norm", "W_gate", "W_in", "W_out"]
        self.attention = [self.session("attention", [held[name] for name in attention]) for held in self.layers]
        self.mlp = [self.session("mlp", [held[name] for name in mlp]) for held in self.layers]

    def read(self, name: str, parts: str) -> dict[str, np.ndarray]:
        """Part -> its values, a row an output, dequantised by the gguf library."""
        data = np.frombuffer((self.folder / name).read_bytes(), np.uint8)
        return {part["name"]: self.values(data, **part) for part in self.about[parts]}

    def values(self, data, name, kind, rows, cols, offset):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        raw = data[offset : offset + rows * cols // block * size].reshape(rows, -1)
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(rows, cols)

    def session(self, name: str, weights: list[np.ndarray]):
        place = Path(tempfile.mkdtemp(dir=self.place))  # a session maps its weights from there
        (place / page_model.WEIGHTS).write_bytes(b"".join(np.ascontiguousarray(w.T).tobytes() for w in weights))
        shutil.copy(self.folder / f"{name}.onnx", place)
        return onnxruntime.InferenceSession(place / f"{name}.onnx", providers=["CPUExecutionProvider"])

    def run(self, ids, probe=None, *, scale=None, past=None, added=None):
        """Tokens whose predecessors' keys and values are ``past``. added: layer -> what attention writes more at the
        last token. Out: logits, and layer by layer keys and values, pattern, z and what heads write along the probe."""
        x, found = self.head["W_E"][ids], {"kv": [], "pattern": [], "z": [], "direct": []}
        none = np.zeros((0, self.s["n_kv"], self.s["d_head"]), np.float32)
        probe = np.zeros(self.s["d_model"], np.float32) if probe is None else probe
        for n, (attention, mlp) in enumerate(zip(self.attention, self.mlp)):
            ones = np.ones(self.s["n_heads"], np.float32)
            given = dict(x=x, scale=(scale or {}).get(n, ones), probe=probe)
            given |= dict(zip(("past_k", "past_v"), past[n] if past else (none, none)))
            x, k, v, pattern, z, direct = attention.run(["out", "k", "v", "pattern", "z", "direct"], given)
            if added and n in added:
                x[-1] += added[n]
            (x,) = mlp.run(None, {"x": x})
            for name, value in dict(kv=(k, v), pattern=pattern, z=z, direct=direct).items():
                found[name].append(value)
        normed = x[-1] / np.sqrt((x[-1] ** 2).mean() + self.s["eps"]) * self.head["final_norm"][0]
        return found | {"logits": self.head["W_E"] @ normed}


def close(found, wanted) -> None:
    torch.testing.assert_close(torch.tensor(np.array(found)).float(), torch.as_tensor(wanted).detach().float(), **CLOSE)


def test_graphs_and_blocks_are_the_packages_model(folder, file, bridge, tmp_path):
    native, ids = Native(folder, tmp_path), bridge.tokenizer(TEXT)["input_ids"]
    logits, cache = bridge.run_with_cache(torch.tensor([ids]))
    a, b = (bridge.tokenizer(text)["input_ids"][0] for text in PAIR)
    embedding = native.head["W_E"]
    probe = (embedding[a] - embedding[b]) * native.head["final_norm"][0]
    found = native.run(ids, probe)
    close(found["logits"], logits[0, -1])
    for n in range(2):
        z, W_O = cache[f"blocks.{n}.attn.hook_z"][0, -1], bridge.blocks[n].attn.W_O
        close(found["pattern"][n], cache[f"blocks.{n}.attn.hook_pattern"][0, :, -1])
        close(found["z"][n], z)
        close(found["direct"][n], torch.einsum("hk,hkd,d->h", z, W_O, bridge.W_U[:, a] - bridge.W_U[:, b]))
    assert max(len(set(np.round(p[:, 0], 3))) for p in found["pattern"]) > 2  # heads that share a key look elsewhere

    past = [(k[:-1], v[:-1]) for k, v in found["kv"]]
    again = native.run(ids[-1:], probe, past=past)
    for name in ("logits", "pattern", "z", "direct"):
        close(again[name], torch.as_tensor(np.asarray(found[name])))

    weights, at = head_weights_from_bridge(bridge), Component(0, 3, 2)
    v = direction_of(weights, at)[0].float()
    coefficient = cache["blocks.0.attn.hook_z"][0, -1, 3] @ weights.W_O[0, 3] @ v
    last = (torch.arange(len(ids)) == len(ids) - 1)[:, None]
    hook = "blocks.0.hook_attn_out", lambda t, hook: t + last * (5 - coefficient) * v
    moved = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[hook])
    maps, W_O = native.layers[0]["maps"].reshape(4, 32, 32)[3], native.layers[0]["W_O"].T.reshape(4, 32, 64)[3]
    write = (maps @ W_O)[2]
    now = native.run(ids)["z"][0][3] @ W_O @ write
    close(native.run(ids[-1:], past=past, added={0: (5 - now) * write})["logits"], moved[0, -1])
    assert (moved[0, -1] - logits[0, -1]).abs().max() > 0.1

    scale = {1: np.array([1, 0, 1, -2], np.float32)}
    hook = "blocks.1.attn.hook_z", lambda z, hook: z * torch.tensor([1, 0, 1, -2])[:, None]
    heads = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[hook])
    close(native.run(ids, scale=scale)["logits"], heads[0, -1])


def test_components_of_the_files_are_those_of_the_weights(folder, bridge, tmp_path):
    native, weights = Native(folder, tmp_path), head_weights_from_bridge(bridge, dtype=torch.float64)
    for n, held in enumerate(native.layers):
        svd, W_O = ov_svd(weights, n), held["W_O"].T.reshape(4, 32, 64)
        close(held["singular"], svd.S)
        write = torch.as_tensor(held["maps"].reshape(4, 32, 32) @ W_O)
        kept = svd.S[:, :8] > 1e-6
        close((write.double() * svd.V.mT).sum(-1).abs()[:, :8][kept], torch.ones(int(kept.sum())))
        assert (write.gather(-1, write.abs().argmax(-1, keepdim=True))[:, :8] > 0).all()


@pytest.mark.parametrize("family, sizes, quantised, kinds, said", [
    ("llama", dict(head_dim=32), "Q8_0", {}, "runs Llama models with tied embeddings"),
    ("qwen2", SIZES, "Q8_0", {}, "runs Llama models with tied embeddings"),
    ("llama", dict(tie_word_embeddings=True), "Q8_0", {}, "multiples of 32"),
    ("llama", SIZES, "Q5_1", {}, "stored as Q5_1; the page reads"),
    ("llama", SIZES, "Q8_0", {"token_embd.weight": "Q4_1"}, "embedding is stored as Q4_1; the page reads Q8_0"),
    ("llama", SIZES, "Q8_0", {"blk.1.ffn_up.weight": "F32"}, "Layer 1 is stored in other ways"),
])  # fmt: skip
def test_what_the_page_cannot_run_is_one_clear_error(tmp_path, family, sizes, quantised, kinds, said):
    path = gguf_files.write(gguf_files.build(family, **sizes), tmp_path / "odd.gguf", quantised, kinds=kinds)
    with pytest.raises(CheckpointError, match=said):
        page_model.write_model(path, tmp_path / "made")
    assert not (tmp_path / "made" / "model.json").exists()


def test_a_checkpoint_that_is_no_gguf_file_is_refused(tmp_path, checkpoints):
    with pytest.raises(CheckpointError, match="out of a GGUF file"):
        page_model.write_model(checkpoints["llama"], tmp_path / "made")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Path:
    """What runs the model in a page. It is fetched where nothing may be skipped, as in CI."""
    if not shutil.which("node"):
        pytest.skip("node is not on this machine")
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
