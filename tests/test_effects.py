"""Closed forms against plain hooked runs, on every family of model, with padding between prompts."""

from dataclasses import replace

import pytest
import torch
from conftest import case_of, run_with

from talking_heads_utils.effects import component_effects, inhibition_change, inhibition_score
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.forward.layers import HALF_TOLERANCES
from talking_heads_utils.forward.recording import mover_of, record, scores_after_shift
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.planted.model import INHIBITION, MOVER, ROLES, plant
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import PromptSet, Recipe

READER = Head(2, 1)


def plain_run(bridge, prompts, reader, change):
    """Attention of one head and logits at ``end``, with ``change`` added to the input of its query alone."""
    at, layer = f"blocks.{reader.layer}", bridge.blocks[reader.layer]
    W, b, resid, pattern = layer.attn.W_Q[reader.head], layer.attn.b_Q, [], f"{at}.attn.hook_pattern"

    def replace(tensor):
        x = (resid[0] + change).to(resid[0])
        x = x if bridge.cfg.normalization_type is None else layer.ln1(x)
        tensor[:, :, reader.head] = x @ W + (0 if b is None else b[reader.head])

    changes = [(f"{at}.hook_resid_pre", resid.append), (f"{at}.attn.hook_q", replace)]
    logits, seen = run_with(bridge, prompts, changes, [pattern])
    return seen[pattern][torch.arange(len(prompts)), reader.head, prompts.positions["end"]], logits


def change_of(recording, component, donor=None):
    """What is added at ``end`` when the component is removed, or has its activation in the donor."""
    v = recording.directions[component.layer, component.head, component.component].nan_to_num()
    own, given = (0 if r is None else r.write(component.layer)[:, component.head] @ v for r in (recording, donor))
    at_end = torch.arange(recording.prompts.tokens.shape[1]) == recording.end[:, None]
    return (given - own)[:, None, None] * v * at_end[..., None]


def other_prompts(prompts):
    """Other tokens, of the same length."""
    order = torch.arange(len(prompts)).roll(1)
    return replace(
        prompts, tokens=prompts.tokens[order], positions={**prompts.positions, "end": prompts.positions["end"][order]}
    )


def odds(pattern, prompts):
    """Log-odds of the answer's place against the others' geometric mean."""
    weights = contrast(prompts)
    return torch.where(weights == 0, 0.0, weights * pattern.log()).sum(-1)


def test_closed_form_equals_a_hooked_run(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [1, READER.layer])
    donor = record(bridge, other_prompts(prompts), [READER.layer])
    movers = [READER, Head(1, 2), Head(READER.layer, 0)]
    seen = 0.0
    cases = (0, Component(0, 0, 0)), (0, Component(1, 3, 2)), (1, Component(0, 2, 1)), (2, Component(1, 1, 0))
    for given in (None, donor):
        effects = component_effects(recording, movers, donor=given)
        for mover, component in cases:
            before, _ = plain_run(bridge, prompts, movers[mover], 0.0)
            after, _ = plain_run(bridge, prompts, movers[mover], change_of(recording, component, given))
            expected = ((after - before) * contrast(prompts)).sum(-1)
            at = (slice(None), mover, component.layer, component.head, component.component)
            torch.testing.assert_close(effects.inhibition[at], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                effects.odds[at], odds(after, prompts) - odds(before, prompts), atol=5e-4, rtol=1e-3
            )
            seen = max(seen, expected.abs().max().item())
        assert effects.inhibition[:, 1, 1].isnan().all() and effects.odds[:, 1, 1].isnan().all()
        alone = component_effects(recording, movers[1], donor=given, inhibition=False)
        torch.testing.assert_close(alone.odds[:, 0], effects.odds[:, 1, :1])
        assert alone.inhibition is None and "inhibition" not in alone.table()
    assert seen > 1e-3, "a change without effect would prove nothing"
    with pytest.raises(OptionError, match="one mover"):
        component_effects(recording, [])
    with pytest.raises(OptionError, match="The donor has"):
        component_effects(recording, READER, donor=record(bridge, prompts.select([0, 1]), [READER.layer]))


def test_removing_whole_heads_equals_a_hooked_run(case):
    bridge, prompts = case
    recording = record(bridge, prompts, [READER.layer])
    write = recording.write(1)
    shift = -torch.stack([write[:, 0], write[:, 1] + write[:, 2]], 1)
    found = scores_after_shift(mover_of(recording, READER), shift).softmax(-1)
    for k in range(2):
        at_end = torch.arange(prompts.tokens.shape[1]) == recording.end[:, None]
        plain, _ = plain_run(bridge, prompts, READER, shift[:, k, None] * at_end[..., None])
        torch.testing.assert_close(found[:, k], plain, atol=1e-4, rtol=0)
    moved = found - recording.reader(READER.layer).pattern[:, None, READER.head]
    change = (moved * contrast(prompts)[:, None]).sum(-1)
    torch.testing.assert_close(inhibition_change(recording, READER, shift), change, atol=1e-5, rtol=0)


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
    bridge, prompts = case_of(name, checkpoints, torch.bfloat16)
    reader = ROLES[MOVER][0] if name == "native" else Head(1, 1)
    recording = record(bridge, prompts, [reader.layer])
    tensors = (recording.final, recording.logits, recording.directions, *vars(recording.reader(reader.layer)).values())
    assert {t.dtype for t in tensors if isinstance(t, torch.Tensor)} == {torch.float32}
    effects = component_effects(recording, reader)
    strongest = effects.table()["inhibition"].abs().idxmax()
    component = Component.parse(effects.table()["writer"][strongest])
    of = effects.inhibition[:, 0, component.layer, component.head, component.component]
    before, _ = plain_run(bridge, prompts, reader, 0.0)
    after, _ = plain_run(bridge, prompts, reader, change_of(recording, component))
    expected = ((after - before).float() * contrast(prompts)).sum(-1)
    torch.testing.assert_close(of, expected, atol=HALF_TOLERANCES[torch.bfloat16], rtol=0.05)
    assert expected.abs().max() > 3 * HALF_TOLERANCES[torch.bfloat16], "a smaller effect would prove nothing"


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
    with pytest.raises(TaskError, match="IOI or Laundry List"):
        contrast(stranger)
