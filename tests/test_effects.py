"""Closed forms against plain hooked runs, on every family of model, with padding between prompts."""

import pytest
import torch
from conftest import random_prompts

from talking_heads_utils.effects import component_effects, inhibition_score, wanted_direction
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.closed_form import mover_of, pattern_after_shift
from talking_heads_utils.forward.layers import HALF_TOLERANCES
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.models import load_model, moved
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import PromptSet, Recipe

READER = Head(2, 1)


def plain_run(bridge, prompts, reader, change):
    """Attention of one head and logits at ``end``, with ``change`` added to the input of its query alone."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    at, seen = f"blocks.{reader.layer}", {}
    W, b = bridge.blocks[reader.layer].attn.W_Q[reader.head], bridge.blocks[reader.layer].attn.b_Q
    ln = getattr(bridge.blocks[reader.layer], "ln1", None)

    def keep(name):
        return lambda tensor, hook: seen.update({name: tensor})

    def replace(tensor, hook):
        x = (seen["resid"] + change).to(seen["resid"])
        x = x if bridge.cfg.normalization_type is None else ln(x)
        tensor = tensor.clone()
        tensor[:, :, reader.head] = x @ W + (0 if b is None else b[reader.head])
        return tensor

    hooks = [(f"{at}.hook_resid_pre", keep("resid")), (f"{at}.attn.hook_q", replace)]
    hooks.append((f"{at}.attn.hook_pattern", keep("pattern")))
    with torch.no_grad():
        logits = bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
    return seen["pattern"][rows, reader.head, end], logits[rows, end]


def removed(recording, component):
    """What is taken away at ``end`` when the component is, ``[n, n_pos, d_model]``."""
    write = recording.write(component.layer, at_end=False)[:, :, component.head]
    v = recording.directions[component.layer, component.head, component.component].nan_to_num()
    at_end = torch.arange(write.shape[1]) == recording.end[:, None]
    return -((write @ v)[..., None] * v) * at_end[..., None]


def test_closed_form_equals_a_hooked_run(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [READER.layer])
    effects, at = component_effects(recording, READER), mover_of(recording, READER)
    before, _ = plain_run(bridge, prompts, READER, 0.0)
    torch.testing.assert_close(effects.before, (before * contrast(prompts)).sum(-1), atol=1e-4, rtol=0)
    wanted, norm, seen = wanted_direction(recording), recording.norm, 0.0
    for component in (Component(0, 0, 0), Component(0, 2, 1), Component(1, 1, 0), Component(1, 3, 2)):
        after, _ = plain_run(bridge, prompts, READER, removed(recording, component))
        expected = ((after - before) * contrast(prompts)).sum(-1)
        torch.testing.assert_close(effects.of(component), expected, atol=1e-4, rtol=0)
        index = (slice(None), component.layer, component.head, component.component)
        torch.testing.assert_close(effects.pattern[index], (after - before).abs().sum(-1) / 2, atol=1e-4, rtol=0)
        added = ((after - at.pattern)[:, None] @ at.moved)[:, 0]
        direct = (norm(recording.final + added) * wanted).sum(-1) - (norm(recording.final) * wanted).sum(-1)
        torch.testing.assert_close(effects.direct[index], direct, atol=2e-4, rtol=1e-4)
        seen = max(seen, expected.abs().max().item())
    assert seen > 1e-3, "a removal without effect would prove nothing"


def test_removing_whole_heads_equals_a_hooked_run(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [READER.layer])
    write = recording.write(1)
    shift = -torch.stack([write[:, 0], write[:, 1] + write[:, 2]], 1)
    found = pattern_after_shift(mover_of(recording, READER), shift)
    for k in range(2):
        at_end = torch.arange(prompts.tokens.shape[1]) == recording.end[:, None]
        plain, _ = plain_run(bridge, prompts, READER, shift[:, k, None] * at_end[..., None])
        torch.testing.assert_close(found[:, k], plain, atol=1e-4, rtol=0)


def test_components_of_a_head_sum_to_its_write(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [2])
    for layer in range(2):
        a = recording.activations(range(layer, layer + 1))[:, 0]
        whole = torch.einsum("nhc,hcm->nhm", a, recording.directions[layer].nan_to_num())
        torch.testing.assert_close(whole, recording.write(layer), atol=1e-4, rtol=1e-4)


def test_what_was_planted_is_found_and_nothing_in_the_control():
    for channel in (True, False):
        planted = plant(channel=channel)
        prompts = laundry.build_laundry(planted.tokenizer, 5, 40)
        recording = record(planted.bridge, prompts, [2])
        for mover in planted.roles[MOVER]:
            effects = component_effects(recording, mover)
            means = effects.inhibition.mean(0)
            if not channel:
                assert means.abs().max() < 1e-4, "nobody reads what these heads write"
                continue
            assert inhibition_score(recording, mover).mean() > 0.9
            writing = {str(c) for part in planted.components.values() for c in part}
            table = effects.table().set_index("writer")["inhibition"]
            assert set(table.nsmallest(7).index) <= writing
            assert table[[str(c) for c in planted.components[INHIBITION]]].max() < -0.01
            assert table.drop(list(writing)).abs().max() < 1e-4, "whoever writes elsewhere has no effect"
    with pytest.raises(LabelError, match="first layer"):
        component_effects(recording, "L0H0")
    with pytest.raises(LabelError, match="is not in planted"):
        component_effects(recording, "L2H9")
    with pytest.raises(OptionError, match="was not recorded"):
        component_effects(recording, "L1H0")
    with pytest.raises(OptionError, match="has no earlier writer"):
        record(planted.bridge, prompts, [0])


@pytest.mark.parametrize("name", ["qwen2", "native"])
def test_a_model_in_half_precision_is_measured_as_its_hooked_runs_are(checkpoints, name):
    """The model's own runs are rounded to 8 bits at every step; the closed forms only start from what it recorded."""
    if name == "native":
        planted = plant(strength=20.0)
        bridge = moved(planted.bridge, "cpu", torch.bfloat16)
        prompts, reader = laundry.build_laundry(planted.tokenizer, 3, 6), planted.roles[MOVER][0]
    else:
        bridge, prompts = load_model(checkpoints[name], dtype=torch.bfloat16), random_prompts()
        reader = Head(1, 1)
    recording = record(bridge, prompts, [reader.layer])
    tensors = (recording.final, recording.logits, recording.directions, *vars(recording.reader(reader.layer)).values())
    assert {t.dtype for t in tensors if isinstance(t, torch.Tensor)} == {torch.float32}
    effects = component_effects(recording, reader)
    strongest = effects.table()["inhibition"].abs().idxmax()
    component = Component.parse(effects.table()["writer"][strongest])
    before, _ = plain_run(bridge, prompts, reader, 0.0)
    after, _ = plain_run(bridge, prompts, reader, removed(recording, component))
    expected = ((after - before).float() * contrast(prompts)).sum(-1)
    torch.testing.assert_close(effects.of(component), expected, atol=HALF_TOLERANCES[torch.bfloat16], rtol=0.05)
    assert expected.abs().max() > 3 * HALF_TOLERANCES[torch.bfloat16], "a smaller effect would prove nothing"


def test_a_model_of_one_layer_is_told_so():
    planted = plant()
    prompts = laundry.build_laundry(planted.tokenizer, 4, 8)
    with pytest.raises(OptionError, match="no head has an earlier one to read"):
        record(planted.bridge, prompts, [])


def test_the_contrast_is_the_definition_of_the_score():
    planted = plant()
    prompts = laundry.build_laundry(planted.tokenizer, 4, 8)
    weights = contrast(prompts)
    assert torch.allclose(weights.sum(1), torch.zeros(8), atol=1e-6) and (weights != 0).sum(1).tolist() == [4] * 8
    for row in range(8):
        place = prompts.positions[f"item_{prompts.info['index'][row]} first"][row]
        assert weights[row, place] == 1 and prompts.tokens[row, place] == prompts.answers[row]
    names = ioi.build_ioi(planted.tokenizer, 4)
    assert torch.equal((contrast(names) > 0).nonzero()[:, 1], names.positions["IO"])
    assert torch.equal((contrast(names) < 0).nonzero()[:, 1], names.positions["S1"])
    stranger = PromptSet(**{**prompts.__dict__, "recipe": Recipe("other", 8, 0, "")})
    with pytest.raises(TaskError, match="defined for IOI and Laundry"):
        contrast(stranger)
