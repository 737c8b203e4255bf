"""What quantising the weights does to the scores: nothing where nothing is rounded, and what the shipped table says."""

import json

import gguf_files
import pandas as pd
import pytest
import torch

from talking_heads_utils.errors import CheckpointError
from talking_heads_utils.experiments.inhibition.quantised import (
    CONTROL,
    QUANTISATIONS,
    quantised,
    quantised_frame,
)
from talking_heads_utils.files import data_dir
from talking_heads_utils.weights.checkpoints import assembled, load_head_weights, open_checkpoint


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rounded_weights_are_those_of_a_file_of_that_quantisation(family, tmp_path):
    """The other route: the model is written as a GGUF file and read back; its float weights lie in a folder."""
    model = gguf_files.build(family)
    model.save_pretrained(tmp_path / "folder")
    file = gguf_files.write(model, tmp_path / "model.gguf", "Q4_1")
    rounded, wanted = assembled(quantised(open_checkpoint(tmp_path / "folder"), "Q4_1")), load_head_weights(file)
    plain = load_head_weights(tmp_path / "folder")
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(getattr(rounded, name), getattr(wanted, name))
        assert not torch.equal(getattr(rounded, name), getattr(plain, name))
    with pytest.raises(CheckpointError):
        quantised(open_checkpoint(file), "Q4_0")


def test_the_more_is_rounded_the_more_moves_and_nothing_without(tmp_path):
    gguf_files.build("llama").half().save_pretrained(tmp_path)
    frame = quantised_frame(open_checkpoint(tmp_path), kinds="V").set_index("quantisation")
    assert tuple(frame.index) == QUANTISATIONS and (frame["n"] == 4 * 16 * 4).all()
    control = frame.loc[CONTROL]
    assert control["median_change"] == control["p95_change"] == 0
    assert control[["same_best", "same_direction"]].eq(1).all() and control["spearman"] == pytest.approx(1)
    assert frame["median_change"].is_monotonic_increasing and frame.loc["Q4_0", "median_change"] > 0.01


def test_the_shipped_table_is_what_gpt2s_weights_give(gpt2_source):
    content = json.loads((data_dir() / "gpt2-small" / "quantised.json").read_text())
    about, shipped = content["about"], pd.DataFrame(content["rows"])
    checkpoint = open_checkpoint(gpt2_source)
    if checkpoint.dtype == about["checkpoint_dtype"]:
        assert checkpoint.sha256() == about["checkpoint_sha256"]
    found = quantised_frame(checkpoint, ["Q8_0"], kinds="Q").iloc[0].to_dict()
    row = shipped[(shipped["quantisation"] == "Q8_0") & (shipped["kind"] == "Q")].iloc[0].to_dict()
    assert found == {name: pytest.approx(v, abs=2e-3) if isinstance(v, float) else v for name, v in row.items()}
    control = shipped[shipped["quantisation"] == CONTROL]
    assert len(control) == 3 and (control["median_change"] == 0).all() and (control["same_best"] == 1).all()
