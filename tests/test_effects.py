"""Closed forms against plain hooked runs, on every family of model, with padding between prompts."""

import pytest
import torch
from conftest import random_prompts

from talking_heads_utils.effects import (
    FLIP,
    INTERVENTIONS,
    KEEP,
    KEY,
    MEAN,
    QUERY,
    REMOVE,
    component_effects,
    inhibition_score,
    total_effect,
    wanted_direction,
)
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.closed_form import mover_of, pattern_after_shift
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.forward.layers import HALF_TOLERANCES
from talking_heads_utils.forward.recording import record
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast, logit_difference
from talking_heads_utils.models import load_model, moved
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import PromptSet, Recipe

READER = Head(2, 1)


def plain_run(bridge, prompts, reader, side, change):
    """Attention of one head and logits at ``end``, with ``change`` added to the input of its query or keys alone."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    at, seen = f"blocks.{reader.layer}", {}
    attn = bridge.blocks[reader.layer].attn
    name, W, b = ("q", attn.W_Q, attn.b_Q) if side == QUERY else ("k", attn.W_K, attn.b_K)
    ln = getattr(bridge.blocks[reader.layer], "ln1", None)
    which = reader.head if side == QUERY else reader.head // (len(attn.W_Q) // len(attn.W_K))

    def keep(name):
        return lambda tensor, hook: seen.update({name: tensor})

    def replace(tensor, hook):
        x = (seen["resid"] + change).to(seen["resid"])
        x = x if bridge.cfg.normalization_type is None else ln(x)
        new = x @ W[which] + (0 if b is None else b[which])
        tensor = tensor.clone()
        tensor[:, :, which] = new
        return tensor

    hooks = [(f"{at}.hook_resid_pre", keep("resid")), (f"{at}.attn.hook_{name}", replace)]
    hooks.append((f"{at}.attn.hook_pattern", keep("pattern")))
    with torch.no_grad():
        logits = bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
    pattern = seen["pattern"][rows, reader.head, end]
    return pattern, logits[rows, end]


def change_of(recording, component, intervention, side):
    """The same intervention written out at every position, ``[n, n_pos, d_model]``; only ``end`` for a query."""
    write = recording.write(component.layer, at_end=False)[:, :, component.head]
    v = recording.directions[component.layer, component.head, component.component].nan_to_num()
    part = (write @ v)[..., None] * v
    at_end = torch.arange(write.shape[1]) == recording.end[:, None]
    if intervention == MEAN and side == QUERY:
        held = part[recording.rows, recording.end].mean(0)
    else:
        seen = recording.visible[..., None]
        held = (part * seen).sum(0) / seen.sum(0).clamp(min=1)
    change = {REMOVE: -part, FLIP: -2 * part, KEEP: part - write, MEAN: held - part}[intervention]
    return change * at_end[..., None] if side == QUERY else change


@pytest.mark.parametrize("side", [QUERY, KEY])
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_closed_form_equals_a_hooked_run(case, intervention, side):
    bridge, prompts = case
    recording = record(bridge, prompts, [READER.layer])
    effects = component_effects(recording, READER, intervention, side=side)
    before, _ = plain_run(bridge, prompts, READER, side, 0.0)
    torch.testing.assert_close(effects.before, (before * contrast(prompts)).sum(-1), atol=1e-4, rtol=0)
    seen = 0.0
    for component in (Component(0, 0, 0), Component(0, 2, 1), Component(1, 1, 0), Component(1, 3, 2)):
        after, _ = plain_run(bridge, prompts, READER, side, change_of(recording, component, intervention, side))
        expected = ((after - before) * contrast(prompts)).sum(-1)
        torch.testing.assert_close(effects.of(component), expected, atol=1e-4, rtol=0)
        found = effects.pattern[:, component.layer, component.head, component.component]
        torch.testing.assert_close(found, (after - before).abs().sum(-1) / 2, atol=1e-4, rtol=0)
        seen = max(seen, expected.abs().max().item())
    if bridge.cfg.model_name != "planted" or side == QUERY:  # planted keys hardly read what earlier heads write
        assert seen > 1e-3, "an intervention without effect would prove nothing"


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_total_and_direct_effects_equal_a_hooked_run(case, intervention):
    bridge, prompts = case
    reader = Head(1, 1)  # so that a layer lies above
    recording = record(bridge, prompts, [1])
    effects = component_effects(recording, reader, intervention)
    components = [Component(0, 0, 0), Component(0, 2, 1), Component(0, 3, 2)]
    found = total_effect(recording, prepare(bridge, prompts, 1), effects, components, block=4)
    _, before = plain_run(bridge, prompts, reader, QUERY, 0.0)

    def difference(logits):
        values = logits.gather(1, prompts.candidates)
        return values[:, 0] - values[:, 1:].mean(1)

    for k, component in enumerate(components):
        pattern, after = plain_run(bridge, prompts, reader, QUERY, change_of(recording, component, intervention, QUERY))
        torch.testing.assert_close(found[:, k], difference(after) - difference(before), atol=2e-4, rtol=1e-4)
        at = mover_of(recording, reader)
        added = ((pattern - at.pattern)[:, None] @ at.moved)[:, 0]
        wanted, norm = wanted_direction(recording), recording.norm
        plain = (norm(recording.final + added) * wanted).sum(-1) - (norm(recording.final) * wanted).sum(-1)
        direct = effects.direct[:, component.layer, component.head, component.component]
        torch.testing.assert_close(direct, plain, atol=2e-4, rtol=1e-4)


def test_removing_whole_heads_equals_a_hooked_run(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [READER.layer])
    write = recording.write(1)
    shift = -torch.stack([write[:, 0], write[:, 1] + write[:, 2]], 1)
    found = pattern_after_shift(mover_of(recording, READER), shift)
    for k in range(2):
        at_end = torch.arange(prompts.tokens.shape[1]) == recording.end[:, None]
        plain, _ = plain_run(bridge, prompts, READER, QUERY, shift[:, k, None] * at_end[..., None])
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
    with pytest.raises(OptionError, match="No intervention 'zero'"):
        component_effects(recording, "L2H0", "zero")
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
    effects, largest = component_effects(recording, reader), 0.0
    strongest = effects.table()["inhibition"].abs().idxmax()
    component = Component.parse(effects.table()["writer"][strongest])
    for side, found in ((QUERY, effects), (KEY, component_effects(recording, reader, side=KEY))):
        before, logits = plain_run(bridge, prompts, reader, side, 0.0)
        after, changed = plain_run(bridge, prompts, reader, side, change_of(recording, component, REMOVE, side))
        expected = ((after - before).float() * contrast(prompts)).sum(-1)
        torch.testing.assert_close(found.of(component), expected, atol=HALF_TOLERANCES[torch.bfloat16], rtol=0.05)
        largest = max(largest, expected.abs().max().item())
        if side == QUERY:
            total = total_effect(recording, prepare(bridge, prompts, reader.layer), effects, [component])[:, 0]
            difference = [logit_difference(values.float(), prompts) for values in (changed, logits)]
            torch.testing.assert_close(total, difference[0] - difference[1], atol=0.1, rtol=0.1)
    assert largest > 3 * HALF_TOLERANCES[torch.bfloat16], "an effect below the tolerance would prove nothing"


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
