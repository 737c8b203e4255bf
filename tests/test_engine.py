"""The one engine against the model's own runs with hooks: every site, one position and many."""

import pytest
import torch
from conftest import random_prompts, run_with

from talking_heads_utils.errors import UnsupportedModelError
from talking_heads_utils.forward import engine
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.forward.engine import MLP_OUT, RESID_PRE, Z, prepare, to_positions
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model

HOOKS = {RESID_PRE: "hook_resid_pre", Z: "attn.hook_z", MLP_OUT: "hook_mlp_out"}


def own_run(bridge, prompts, site, layer, at, new):
    """Logits at ``end`` and patterns by hooks, with ``new`` put in at one site and layer from position ``at`` on."""

    def put(value):
        value[:, at:] = new[:, : value.shape[1] - at].to(value)

    names = [f"blocks.{i}.attn.hook_pattern" for i in range(bridge.cfg.n_layers)]
    logits, seen = run_with(bridge, prompts, [(f"blocks.{layer}.{HOOKS[site]}", put)], names)
    return logits, [seen[name] for name in names]


@pytest.mark.parametrize("site", HOOKS)
@pytest.mark.parametrize("at", [0, 4])
@torch.no_grad()
def test_a_change_from_a_position_on_is_that_of_a_hooked_run(case, site, at):
    bridge, prompts = case
    made = prepare(bridge, prompts, 0, keep=(RESID_PRE, Z, MLP_OUT))
    n_layers, n_pos = bridge.cfg.n_layers, prompts.tokens.shape[1]
    layer, positions = n_layers - 2, torch.arange(at, n_pos).expand(len(prompts), -1)
    if site == MLP_OUT and made.layers[layer].mlp is None:
        pytest.skip("this model has no MLP")
    value = made.plain(site, layer, positions)  # also of a model in which some layers have no MLP
    new = value + 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * value.std()
    found = {}
    heads = [Head(n_layers - 1, 0), Head(n_layers - 1, 1)]

    def put(where, there, value):
        return torch.stack([value[:, 0], new], 1) if (where, there) == (site, layer) else value

    def widen(where, there, value):  # variants are added where the stream enters
        return value.expand(-1, 2, -1, -1) if (where, there) == (RESID_PRE, layer) and site != RESID_PRE else value

    x = made.plain(RESID_PRE, 0, positions)[:, None]
    stream = made.run(x, positions, change=engine.chained(widen, put, engine.reading(heads, found)))
    rows, end = torch.arange(len(prompts)), prompts.positions["end"] - at
    logits = made.logits(stream[rows, :, end])
    plain = bridge(prompts.tokens)[rows, prompts.positions["end"]]
    expected, patterns = own_run(bridge, prompts, site, layer, at, new)
    torch.testing.assert_close(logits[:, 0], plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[:, 1], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)
    for head in heads:
        by_position = to_positions(found[head][:, :, None], positions, n_pos)[:, 1, 0]
        own = patterns[head.layer][:, head.head, at:]
        mask = prompts.mask[:, at:]
        torch.testing.assert_close(by_position[mask], own[mask], atol=1e-5, rtol=1e-4)


def test_a_model_that_does_something_else_is_refused(checkpoints):
    bridge = load_model(checkpoints["gpt2"])
    bridge.blocks[1].mlp.hook_out.add_hook(lambda value, hook: 2 * value)
    with pytest.raises(UnsupportedModelError, match="run one by one"):
        prepare(bridge, random_prompts())


def test_logits_at_some_places_are_those_of_the_whole_run(case):
    bridge, prompts = case
    end = prompts.positions["end"]
    places = torch.stack([end, end - 1, torch.zeros_like(end)], 1)
    with torch.no_grad():
        whole = bridge(prompts.tokens)
        with logits_at(bridge, places):
            found, cache = bridge.run_with_cache(prompts.tokens)
        after, plain = bridge.run_with_cache(prompts.tokens)
    expected = whole[torch.arange(len(prompts))[:, None], places]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3, "places that agree would prove nothing"
    assert after.shape == whole.shape, "and the model is left as it was"
    last = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    torch.testing.assert_close(cache[last], plain[last], atol=1e-4, rtol=1e-4)
