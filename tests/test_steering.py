"""The steering engine against whole runs with hooks, setting by setting, on every family of model."""

from itertools import product

import numpy as np
import pytest
import torch
from conftest import random_prompts, run_with

from talking_heads_utils import steering
from talking_heads_utils.components import write_vectors
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.experiments.positional.grid import ATTENTION, LOGITS, grid, prepare, steer
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import attention, logit_difference
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.prompts.sets import PromptSet, Recipe, item_positions

WRITERS = (Component(0, 1, 0), Component(1, 2, 1), Component(1, 0, 0))
MOVERS = (Head(2, 0), Head(2, 3))


def plain(bridge, prompts, directions, setting, movers):
    """One setting by a whole run: added to what attention writes at ``end``, in each writer's own layer."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]

    def add(layer):
        chosen = [k for k, w in enumerate(WRITERS) if w.layer == layer]

        def change(tensor):
            tensor[rows, end] += setting[chosen] @ directions[chosen]

        return f"blocks.{layer}.hook_attn_out", change

    patterns = [f"blocks.{m.layer}.attn.hook_pattern" for m in movers]
    logits, seen = run_with(bridge, prompts, [add(0), add(1)], patterns)
    return torch.stack([seen[name][rows, m.head, end] for name, m in zip(patterns, movers)], 1), logits


@pytest.mark.parametrize("at", ["all", "end", "S1"])
@torch.no_grad()
def test_steer_is_a_hooked_run(at, checkpoints):
    bridge, prompts = load_model(checkpoints["gpt2"]), random_prompts()
    labels, where = [str(w) for w in WRITERS], torch.arange(prompts.tokens.shape[1])
    mask = torch.ones(len(prompts), len(where)) if at == "all" else where == prompts.positions[at][:, None]

    def hooked(**added):
        """Mean logit difference with these vectors added at these hooks, where the mask says so."""
        changes = [(name, lambda t, a=a: t + mask[..., None] * a) for name, a in added.items()]
        return logit_difference(run_with(bridge, prompts, changes)[0], prompts).mean().item()

    amounts = {labels[0]: [-3.0, 2.0], labels[1]: 4.0, labels[2]: [0, 1]}
    found, vectors = steering.steer(bridge, prompts, labels, amounts, at=at), write_vectors(bridge, WRITERS)
    assert len(found) == 4 and found["n"].eq(len(prompts)).all()
    for row in found.to_dict("records"):
        added = {f"blocks.{layer}.hook_attn_out": 0 for layer in (0, 1)}
        for label, writer, vector in zip(labels, WRITERS, vectors):
            added[f"blocks.{writer.layer}.hook_attn_out"] += row[label] * vector
        assert row["value"] == pytest.approx(hooked(**added), abs=1e-4)
    vector = torch.randn(bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
    (row,) = steering.steer(bridge, prompts, {"mine": (1, vector)}, 2, at=at).to_dict("records")
    assert row["value"] == pytest.approx(hooked(**{"blocks.1.hook_resid_pre": 2 * vector}), abs=1e-4)
    assert row["mine"] == 2 and abs(row["change"]) > 1e-3
    same = steering.steer(bridge, prompts, {"mine": (1, vector.numpy())}, np.float32(2), at=at)
    assert same["value"].item() == pytest.approx(row["value"], abs=1e-6)


@pytest.mark.parametrize(("error", "directions", "amounts", "more"), [
    (OptionError, [], 1, {}), (LabelError, "L0H1", 1, {}), (LabelError, "L0H40.0", 1, {}),
    (LabelError, "L0H1.0", {"L0H2.0": 1}, {}), (OptionError, "L0H1.0", float("nan"), {}),
    (OptionError, "L0H1.0", [], {}), (OptionError, "L0H1.0", ["much"], {}),
    (OptionError, {"mine": (7, torch.zeros(24))}, 1, {}), (OptionError, {"mine": (1, torch.zeros(5))}, 1, {}),
    (OptionError, {"mine": torch.zeros(24)}, 1, {}), (OptionError, {"mine": (1, "up")}, 1, {}),
    (OptionError, "L0H1.0", 1, dict(at=["end"])), (OptionError, "L0H1.0", 1, dict(metric=["accuracy"])),
    (LabelError, "L0H1.0", 1, dict(metric=attention("L0H40", "IO"))),
])  # fmt: skip
def test_bad_steering_is_one_clear_error(checkpoints, error, directions, amounts, more):
    with pytest.raises(error):
        steering.steer(load_model(checkpoints["gpt2"]), random_prompts(), directions, amounts, **more)


def test_steering_equals_a_hooked_run(case):
    bridge, prompts = case
    steering = prepare(bridge, prompts, WRITERS)
    settings = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)) * 5
    settings[3, :2] = settings[2, :2]  # two settings that agree in part
    settings[5, 0] = settings[2, 0]
    found = steer(steering, settings, movers=MOVERS, logits=True, batch_size=9)
    items, tokens = item_positions(prompts)
    for s, setting in enumerate(settings):
        pattern, logits = plain(bridge, prompts, steering.directions, setting, MOVERS)
        seen = pattern.gather(2, items[:, None].expand(-1, 2, -1))
        expected = seen / seen.sum(2, keepdim=True)
        torch.testing.assert_close(found[ATTENTION][:, s], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(found[LOGITS][:, s], logits.gather(1, tokens), atol=2e-4, rtol=1e-4)
    assert (found[LOGITS][:, 0] - found[LOGITS][:, 1]).abs().max() > 1e-2, "settings must differ"


def test_attention_alone_needs_no_layer_above_and_batches_change_nothing(case):
    bridge, prompts = case
    steering = prepare(bridge, prompts, WRITERS)
    settings = grid([-4, 0, 4])
    whole = steer(steering, settings, movers=MOVERS, logits=True)
    alone = steer(steering, settings, movers=MOVERS)
    assert set(alone) == {ATTENTION} and alone[ATTENTION].shape[:3] == (len(prompts), 27, 2)
    rounding = 5e-5  # of attention: the planted model's scores are in the hundreds, where float32 keeps 3e-5
    torch.testing.assert_close(alone[ATTENTION], whole[ATTENTION], atol=rounding, rtol=0)
    part = steer(steering, settings, movers=MOVERS, rows=slice(2, 5), batch_size=20)
    torch.testing.assert_close(part[ATTENTION], whole[ATTENTION][2:5], atol=rounding, rtol=0)
    untouched = steer(steering, torch.zeros(1, 3), logits=True)[LOGITS][:, 0]
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with torch.no_grad():
        logits = bridge(prompts.tokens)[rows, end].gather(1, item_positions(prompts)[1])
    torch.testing.assert_close(untouched, logits, atol=2e-4, rtol=1e-4)


def test_the_grid_is_every_combination():
    assert grid([-1, 0, 1]).tolist() == [list(setting) for setting in product([-1, 0, 1], repeat=3)]
    assert grid([1, 2], k=1).tolist() == [[1], [2]]


def test_bad_requests_are_one_clear_error_each(case):
    bridge, prompts = case
    steering, zeros = prepare(bridge, prompts, WRITERS), torch.zeros(1, 3)
    stranger = PromptSet(**{**prompts.__dict__, "recipe": Recipe("other", 8, 0, ""), "positions": {"end": 0}})
    wrong = (torch.zeros(3), torch.zeros(1, 2), torch.full((1, 3), float("nan")))
    for error, message, ask in (
        (OptionError, "one writer at least", lambda: prepare(bridge, prompts, [])),
        (LabelError, "components are 0", lambda: prepare(bridge, prompts, [Component(0, 0, 999)])),
        (LabelError, "is not in", lambda: prepare(bridge, prompts, [Component(0, 40, 0)])),
        (OptionError, "a reader lies above every writer", lambda: steer(steering, zeros, movers=[Head(1, 0)])),
        (LabelError, "No head L7H0", lambda: steer(steering, zeros, movers=[Head(7, 0)])),
        (OptionError, "Nothing to read", lambda: steer(steering, zeros)),
        *((OptionError, "finite numbers, one column", lambda s=s: steer(steering, s, logits=True)) for s in wrong),
        (TaskError, "IOI or Laundry List", lambda: item_positions(stranger)),
    ):
        with pytest.raises(error, match=message):
            ask()


def test_write_vectors_are_unit_and_signed_and_one_that_writes_nothing_is_refused():
    bridge = plant().bridge
    vectors = write_vectors(bridge, [Component(1, 0, 0), Component(1, 2, 1)])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    assert (vectors.max(1).values >= vectors.abs().max(1).values - 1e-6).all()
    with pytest.raises(LabelError, match="writes nothing"):
        write_vectors(bridge, [Component(1, 0, 9)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_settings_stay_with_their_own_however_many_run_together(dtype):
    """In half precision whole numbers end at 256: variants of earlier layers must be counted in integers."""
    bridge = load_model("mini-token", dtype=dtype)
    writers = (Component(0, 3, 0), Component(1, 1, 0), Component(2, 0, 0))
    steering = prepare(bridge, build_laundry(bridge.tokenizer, 4, 20).select([0]), writers)
    settings = torch.randint(-10, 11, (700, 3), generator=torch.Generator().manual_seed(0)) * 10.0
    together, apart = (steer(steering, settings, movers=[Head(3, 0)], batch_size=size)[ATTENTION] for size in (700, 50))
    torch.testing.assert_close(together, apart, atol=1e-4 if dtype == torch.float32 else 0.05, rtol=0)
