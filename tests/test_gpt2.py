"""GPT-2 small's real weights: what the chapter says of them, by another route, and what ships of them."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from talking_heads_utils import roles
from talking_heads_utils.components import relative_gap, write_directions
from talking_heads_utils.files import data_dir
from talking_heads_utils.scores.composition import head_level, iter_composition
from talking_heads_utils.scores.scores import SHIPPED, load_shipped_scores

VALUES = "b3a8eb82340344665c2690373da9136302d9fb8397d8832432bc52436077c996"  # of all tensors' bytes, by name


@pytest.fixture(scope="module")
def shipped():
    return load_shipped_scores()


def test_shipped_scores_are_small_and_say_where_they_come_from(shipped):
    path = data_dir() / "gpt2-small" / SHIPPED
    assert path.stat().st_size <= 4_000_000
    values = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        values.update(tensor.numpy().tobytes() if name != "crc32" else b"")
    assert values.hexdigest() == VALUES, "not one value has changed since they were made"
    about = shipped.about
    assert len(about["checkpoint_sha256"]) == 64 and about["checkpoint_dtype"] == "float16"
    assert about["d_model_effective"] == 767 and about["versions"]["talking-heads-utils"][0].isdigit()
    assert sum(block.score.numel() for block in shipped.blocks.values()) == 3 * 66 * 144 * 64


def test_shipped_scores_are_those_of_the_weights(shipped, gpt2):
    """A slice computed anew: every score into layers 3 and 9.

    Where singular values nearly agree a component can turn into its neighbour: by the order of sums on another
    processor, and sooner from another rounding of the same weights (the Hub's are float32). There only what does not
    depend on their order is compared.
    """
    same = gpt2.source.sha256 == shipped.about["checkpoint_sha256"]
    clear = relative_gap(shipped.singular_values) > (0.002 if same else 0.05)
    assert clear.double().mean() > (0.9 if same else 0.05), "or little would be compared"
    for block in iter_composition(gpt2, layers=[3, 9]):
        stored = shipped.blocks[block.kind, block.layer]
        kept = clear[: block.layer]
        atol = 2e-4 if same else 2e-3
        torch.testing.assert_close(stored.score[kept], block.score[kept], atol=atol, rtol=1e-3)  # stored as float16
        S = shipped.singular_values
        torch.testing.assert_close(head_level(stored.score, S), head_level(block.score, S), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(stored.null_mean, block.null_mean, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(stored.null_std, block.null_std, atol=1e-5, rtol=5e-3)


def test_the_inhibition_channel_by_the_dense_route(shipped, gpt2):
    """L8H10.1 into the query of L9H9, with the full 768 x 768 matrices and no code of ours."""
    W_Q, W_K = gpt2.W_Q[9, 9].double(), gpt2.W_K[9, 9].double()
    ov = gpt2.W_V[8, 10].double() @ gpt2.W_O[8, 10].double()
    v, M = torch.linalg.svd(ov)[2][1], W_Q @ W_K.T
    assert shipped.pair("L8H10", "L9H9", "Q")[1].item() == pytest.approx(
        (v @ M).norm().item() / M.norm().item(), rel=2e-3
    )


def test_weights_are_gpt2s(gpt2):
    assert (gpt2.n_layers, gpt2.n_heads, gpt2.n_kv_heads, gpt2.d_model, gpt2.d_head) == (12, 12, 12, 768, 64)
    assert gpt2.source.family == "gpt2" and gpt2.d_model_effective == 767
    assert write_directions(gpt2)[1][8, 10, 0].item() == pytest.approx(7.45, abs=0.01)


def test_what_the_chapter_says(shipped):
    """Three inhibition heads have one component that leads in every mover; the fourth has none."""
    heads = roles.gpt2_small_roles()
    leading = {
        str(writer): {int(shipped.pair(writer, mover, "Q").argmax()) for mover in heads[roles.NAME_MOVER]}
        for writer in heads[roles.S_INHIBITION]
    }
    assert len(leading.pop("L7H9")) > 1 and leading == {"L7H3": {1}, "L8H6": {2}, "L8H10": {1}}
