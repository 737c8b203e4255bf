"""Every experiment with its model on a device called ``cuda`` gives the tables that it gives on the CPU, and these
are what it declares.

No GPU is needed: see ``pretended_gpu``. What this cannot show is speed, memory and the rounding of a real one.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_prompts, shrink
from pretended_gpu import PretendedGPU

from talking_heads_utils import models
from talking_heads_utils.ablation import ablate
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments import context
from talking_heads_utils.experiments.catalogue import chapters_of
from talking_heads_utils.experiments.claims import CLAIMS
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import whole
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.run import chosen
from talking_heads_utils.experiments.verdicts import Verdict
from talking_heads_utils.known import PLANTED
from talking_heads_utils.metrics import METRICS, Outcome, answer_logits, attention
from talking_heads_utils.patching import patch
from talking_heads_utils.prompts.ioi import build_ioi

pytestmark = pytest.mark.usefixtures("few_draws")
RUNS = {
    (model, device): Context(model, quick=True, device=device)
    for model in (PLANTED, "mini-icl") for device in ("cuda", "cpu")
}  # what a chapter's experiments share is made once on either  # fmt: skip


def table_of(experiment, run):
    """Or why this model has none."""
    try:
        return experiment.table(run).reset_index(drop=True)
    except NotApplicable as reason:
        return pd.DataFrame({"reason": [str(reason)]})


CASES = [(model, e) for model in (PLANTED, "mini-icl") for e in chosen(chapters_of(model), of_own=True)]


def test_accuracy_is_asked_on_the_models_device(checkpoints, monkeypatch):
    monkeypatch.setattr(models, "check_complete", lambda *args: None)
    prompts = random_prompts()
    with PretendedGPU():
        there = answer_logits(models.load_model(checkpoints["qwen3"], "cuda"), prompts)
        measured = {name: metric(Outcome(there[:, None], prompts)).cpu() for name, metric in METRICS.items()}
    here = answer_logits(models.load_model(checkpoints["qwen3"]), prompts)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
    for name, metric in METRICS.items():
        torch.testing.assert_close(measured[name], metric(Outcome(here[:, None], prompts)), atol=1e-4, rtol=1e-4)


def interventions(bridge):
    """Values of ablations and patches on the planted model, wherever it is."""
    prompts, swapped = (build_ioi(bridge.tokenizer, 12, counterfactual=c) for c in (None, "swap names"))
    metric = attention("L2H0", "IO", "S1")
    for how, at in (("mean", None), ("resample", "L2H0.query"), ("zero", "L2H0.key"), ("mean", "L2H0.value")):
        yield ablate(bridge, ["L1H0", "L1H0.0"], prompts, metric, at=at, how=how, positions="end")
    for positions in (["S2", "end"], "together"):
        sites = ["resid_pre", "z", "L1H0.0"]
        yield patch(bridge, prompts, swapped, sites=sites, positions=positions, metric="logit_diff")
        yield patch(bridge, prompts, swapped, sites="attn_out", positions=positions, metric=metric)


def test_interventions_run_on_the_models_device(monkeypatch):
    monkeypatch.setattr(models, "check_complete", lambda *args: None)
    here = [frame["value"].to_numpy() for frame in interventions(models.load_model(PLANTED))]
    with PretendedGPU():
        there = [frame["value"].to_numpy() for frame in interventions(models.load_model(PLANTED, "cuda"))]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_mixed_devices_fail_as_on_a_gpu():
    with PretendedGPU():
        there, here = torch.arange(3.0, device="cuda"), torch.ones(3)
        assert there.device.type == "cuda" and (there + there.to("cuda")).cpu().tolist() == [0, 2, 4]
        for mixed in (lambda: there + here, lambda: here @ there, lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()
        assert (there + torch.tensor(1.0)).sum().item() == 6, "a single number may come from anywhere"


@pytest.fixture(autouse=True)
def less_of_everything(monkeypatch):
    monkeypatch.setattr(context, "QUICK_LENGTHS", (4, 6))
    shrink(monkeypatch)


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(models, "check_complete", lambda *args: None)  # asks for the memory of a real GPU
    return PretendedGPU()


@pytest.mark.parametrize(("model", "e"), [pytest.param(*case, id=f"{case[0]} {case[1].name}") for case in CASES])
def test_a_table_made_on_a_gpu_is_the_same_and_is_what_was_declared(model, e, a_gpu):
    with a_gpu:
        found = table_of(e, RUNS[model, "cuda"])
    here = table_of(e, RUNS[model, "cpu"])
    tied = ["answer", "attended", "answered", "right"] if e.name == "map" else []
    if tied:  # rounding decides where two items are as good, in one or two of the 20 lists
        assert (found[tied[:2]] == here[tied[:2]]).mean().min() > 0.97
        assert (found[tied[2:]] - here[tied[2:]]).abs().max().max() < 2.01 / 20
    pd.testing.assert_frame_equal(found.drop(columns=tied), here.drop(columns=tied), atol=1e-3, rtol=1e-3)
    assert len(here)
    if "reason" in here:
        assert e.chapter == 4, "a toy knows numbers alone"
    else:
        assert_as_declared(e, here)


def assert_as_declared(e, table):
    """Its columns, and what claims measure in it."""
    assert not e.row or list(table.columns) == [c.name for c in e.row.columns()]
    for claim in (claim for claim in CLAIMS if claim.experiment == e.name):
        found = claim.measure(table)
        assert found.n or claim.verdict(found) == Verdict.NOT_JUDGED, claim.id
        assert not (found.value < found.low or found.value > found.high), claim.id
        assert claim.rule or claim.verdict(found) == Verdict.NOT_JUDGED


def test_whole_answers_are_read_on_the_models_device(a_gpu):
    def table(device):
        return frame(whole.functions(Context("mini-icl", quick=True, device=device)))

    with a_gpu:
        found = table("cuda")
    pd.testing.assert_frame_equal(found, table("cpu"), atol=1e-3, rtol=1e-3)
