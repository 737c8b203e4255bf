"""Weights by Hub id: out of its cache, and one clear error for each way in which they cannot be had."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import build_model
from huggingface_hub import constants, errors

from talking_heads_utils import files
from talking_heads_utils.errors import CheckpointError, DownloadError
from talking_heads_utils.weights import checkpoints as module
from talking_heads_utils.weights.checkpoints import load_head_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(checkpoints, tmp_path, monkeypatch):
    """A Hugging Face cache that holds ``someone/small`` at one commit."""
    repo = tmp_path / "models--someone--small"
    shutil.copytree(checkpoints["gpt2"], repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    return repo


def test_without_a_network_the_cache_is_read_and_the_commit_recorded(cache, checkpoints):
    weights, local = load_head_weights("someone/small"), load_head_weights(checkpoints["gpt2"])
    assert torch.equal(weights.W_Q, local.W_Q) and weights.source.sha256 == local.source.sha256
    assert (weights.source.name, weights.source.revision) == ("someone/small", COMMIT)
    assert torch.equal(load_head_weights("someone/small", revision=COMMIT).W_O, local.W_O)


def test_what_is_not_whole_in_the_cache_is_named_with_the_way_out(cache):
    with pytest.raises(DownloadError, match="could not be reached for 'someone/else'.*give a folder"):
        load_head_weights("someone/else")
    with pytest.raises(DownloadError, match="someone/small"):
        load_head_weights("someone/small", revision="another-branch")
    snapshot = cache / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="could not be reached for 'someone/small'"):
        load_head_weights("someone/small")
    build_model("gpt2").save_pretrained(snapshot, max_shard_size="10KB")
    assert (snapshot / "model.safetensors.index.json").exists()
    assert load_head_weights("someone/small").n_layers == 3


def test_a_file_that_the_hub_names_by_its_sum_is_not_read_for_it(cache, monkeypatch):
    file, blobs = cache / "snapshots" / COMMIT / "model.safetensors", cache / "blobs"
    wanted = load_head_weights("someone/small").source.sha256
    blobs.mkdir()
    file.symlink_to(file.rename(blobs / wanted))
    monkeypatch.setattr(files, "_sum_at", lambda *path: pytest.fail("read"))
    assert load_head_weights("someone/small").source.sha256 == wanted


def answer(status: int) -> SimpleNamespace:
    """As much of an HTTP response as the Hub's errors look at."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("x", response=answer(403)), "is gated: accept its terms"),
        (errors.RepositoryNotFoundError("x", response=answer(404)), "the Hub knows no model 'a/b'"),
        (errors.RevisionNotFoundError("x", response=answer(404)), "Check the name"),
        (errors.HFValidationError("x"), "Check the name"),
        (ConnectionError("broken pipe"), "could not be reached .*broken pipe"),
    ],
)
def test_what_the_hub_answers_becomes_one_clear_error(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DownloadError, match=message):
        load_head_weights("a/b")


@pytest.mark.parametrize("model_type", ["gpt2", "mamba"])
def test_nothing_is_fetched_of_an_unknown_family_and_no_pickle_at_all(monkeypatch, tmp_path, model_type):
    asked = []
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    monkeypatch.setattr(module, "hub_answers", lambda: True)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **how: asked.append(how["allow_patterns"]) or str(tmp_path)
    )
    with pytest.raises(CheckpointError, match="never a pickle" if model_type == "gpt2" else "'mamba', which is not"):
        load_head_weights("a/b")
    assert len(asked) == (2 if model_type == "gpt2" else 1) and not any("bin" in name for name in sum(asked, []))
