"""The engine that scales many components at once against whole runs of the edited model, and the search on it."""

from dataclasses import replace

import pytest
import torch

from talking_heads_utils.editing import upper as engine
from talking_heads_utils.editing.apply import apply, weights_to_edit
from talking_heads_utils.editing.edits import OV, QK, new_edit, scales
from talking_heads_utils.errors import EditError, LabelError, OptionError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.runs.layers import attention_layer
from talking_heads_utils.runs.suffix import suffix
from talking_heads_utils.weights import Processing

SETS = {
    "all layers": (Component(0, 1, 0), Component(0, 1, 2), Component(1, 2, 0), Component(2, 0, 0)),
    "from the middle on": (Component(1, 2, 1), Component(1, 1, 0), Component(2, 3, 0)),
    "the last layer": (Component(2, 0, 0), Component(2, 1, 1)),
}
READ = {OV: SETS, QK: {"two layers": (Component(0, 0, 1), Component(2, 0, 0)), "the last layer": (Component(2, 0, 1),)}}
CASES = [(matrix, name) for matrix, sets in READ.items() for name in sets]
MOVER = Head(2, 1)


def whole_run(bridge, prompts, changes, mover=MOVER):
    """Logits and a mover's attention from ``end`` of the edited model, everything run anew."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with apply(bridge, new_edit(weights_to_edit(bridge), changes)), torch.no_grad():
        logits, cache = bridge.run_with_cache(prompts.tokens)
    return logits[rows, end], cache[f"blocks.{mover.layer}.attn.hook_pattern"][rows, mover.head, end]


@pytest.mark.parametrize(("matrix", "name"), CASES, ids=" ".join)
def test_scales_on_kept_lower_layers_equal_whole_runs(case, matrix, name):
    bridge, prompts = case
    components = READ[matrix][name]
    if bridge.cfg.model_name == "planted":  # decoys in the last layer; its movers' QK is nonzero
        components = tuple(replace(c, head=2) if matrix == OV and c.layer == 2 else c for c in components)
    upper = engine.prepare(bridge, prompts, components, matrix)
    factors = 3 * torch.randn(4, len(components), generator=torch.Generator().manual_seed(0))
    mover = None if matrix == OV and name == "the last layer" else MOVER
    final, pattern = upper.run(factors, mover=mover)
    logits = upper.suffix.logits(final)
    untouched, _ = whole_run(bridge, prompts, ())
    for k, row in enumerate(factors.tolist()):
        expected = whole_run(bridge, prompts, scales(dict(zip(components, row)), matrix))
        torch.testing.assert_close(logits[:, k], expected[0], atol=5e-4, rtol=1e-4)
        if mover:
            torch.testing.assert_close(pattern[:, k], expected[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(upper.logits(factors), logits.gather(2, prompts.candidates[:, None].expand(-1, 4, -1)))
    ones = upper.logits(torch.ones(1, len(components)))[:, 0]
    torch.testing.assert_close(ones, untouched.gather(1, prompts.candidates), atol=5e-4, rtol=1e-4)
    if bridge.cfg.model_name != "planted":
        assert (logits[:, 0] - untouched).abs().max() > 1e-2, "an edit without effect would prove nothing"
    part = upper.run(factors, slice(2, 5), mover)
    torch.testing.assert_close(part[0], final[2:5], atol=1e-4, rtol=1e-4)


def test_a_cached_prefix_is_exact_for_the_last_layer_and_for_no_other(case):
    """One token on keys and values of the untouched prefix, with the edited layer's own weights."""
    bridge, prompts = case
    heads = {1: (Component(1, 2, 0), Component(1, 1, 0)), 2: (Component(2, 2, 0), Component(2, 2, 1))}
    gaps = {}
    for layer, components in heads.items():
        changes = scales(dict.fromkeys(components, 4.0))
        kept = suffix(bridge, prompts, layer)
        with apply(bridge, new_edit(weights_to_edit(bridge), changes)):
            edited = replace(kept.layers[0], attention=attention_layer(bridge, layer))
            found = replace(kept, layers=[edited, *kept.layers[1:]])
            logits = found.logits(found.final(found.resid[:, None]))[:, 0]
        gaps[layer] = (logits - whole_run(bridge, prompts, changes)[0]).abs().max()
    assert gaps[2] < 1e-3
    if bridge.cfg.model_name != "planted":  # there no key of the last layer reads what layer 1 writes
        assert gaps[1] > 1e-2


def test_gradients_equal_finite_differences(case):
    bridge, prompts = case
    upper = engine.prepare(bridge, prompts, SETS["from the middle on"])
    factors = torch.tensor([[1.5, 0.5, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(upper.logits(factors)[:, 0].log_softmax(-1)[:, 0].sum(), factors)
    for i in range(3):
        step = torch.zeros(1, 3)
        step[0, i] = 0.01
        with torch.no_grad():
            ends = [upper.logits(factors + sign * step)[:, 0].log_softmax(-1)[:, 0].sum() for sign in (1, -1)]
        assert gradient[0, i].item() == pytest.approx(((ends[0] - ends[1]) / 0.02).item(), abs=2e-2, rel=2e-2)


def test_what_cannot_be_scaled_is_one_clear_error(case, checkpoints):
    bridge, prompts = case
    with pytest.raises(OptionError, match="one component at least"):
        engine.prepare(bridge, prompts, [])
    with pytest.raises(LabelError, match="is not in"):
        engine.prepare(bridge, prompts, [Component(0, 40, 0)])
    upper = engine.prepare(bridge, prompts, [Component(1, 2, 0)])
    for mover in (Head(0, 0), Head(1, 0)):
        with pytest.raises(OptionError, match="does not lie above the edit"):
            upper.run(torch.ones(1, 1), mover=mover)
    raw = load_model(checkpoints["gpt2"], processing=Processing(False, False))
    with pytest.raises(EditError, match="processed weights"):
        engine.prepare(raw, prompts, [Component(1, 2, 0)])
