"""Ablation and patching on the last token alone, against whole runs with hooks, on every family of model."""

import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.ablations import (
    MEAN,
    RESAMPLE,
    ZERO,
    ablations,
    patch_grid,
    random_heads,
    replacements,
    run_end,
)
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in

TOKENS = torch.tensor([3, 7, 11, 12])


def sets(bridge):
    shape = (bridge.cfg.n_layers, bridge.cfg.n_heads)
    mlps = {"an MLP": [1]} if not bridge.cfg.attn_only else {}
    return ablations(shape, {"a layer": heads_in([1], shape[1]), "two": [Head(0, 1), Head(2, 0)]}, mlps)


def at_end(prompts, change):
    """A hook that changes the last token's row of a tensor ``[n, n_pos, ...]``."""

    def hook(tensor, hook):
        tensor, rows = tensor.clone(), torch.arange(len(prompts))
        end = prompts.positions["end"]
        tensor[rows, end] = change(tensor[rows, end], hook.name)
        return tensor

    return hook


def plain_ablation(bridge, prompts, chosen, row, instead):
    """Hooks on whole runs: z of the heads that are out, and the MLPs' output, at the last token."""
    hooks = []
    for layer in range(bridge.cfg.n_layers):
        out = chosen.heads[row, layer]
        if out.any():
            swap = lambda z, name, layer=layer, out=out: torch.where(out[:, None], instead.z[:, layer], z)  # noqa: E731
            hooks.append((f"blocks.{layer}.attn.hook_z", at_end(prompts, swap)))
        if chosen.mlps[row, layer]:
            hooks.append((f"blocks.{layer}.hook_mlp_out", at_end(prompts, lambda x, n, i=layer: instead.mlp[:, i])))
    return hooks


@pytest.mark.parametrize("how", [ZERO, MEAN, RESAMPLE])
def test_ablation_at_the_end_equals_a_hooked_run(case, how):
    bridge, prompts = case
    ends, chosen = prepare(bridge, prompts, 0), sets(case[0])
    instead = replacements(run_end(ends), how, seed=2)
    run = run_end(ends, chosen, instead)
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    for row, name in enumerate(chosen.names):
        hooks = plain_ablation(bridge, prompts, chosen, row, instead)
        with torch.no_grad():
            logits = bridge.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[rows, end]
        torch.testing.assert_close(ends.logits(run.resid[:, row, -1:])[:, 0], logits, atol=2e-4, rtol=1e-4, msg=name)
    with pytest.raises(OptionError, match="by zero, mean or resample"):
        replacements(run, "none")
    torch.testing.assert_close(run.resid[:, :, 0].diff(dim=1).abs().max(), torch.tensor(0.0))
    assert (run.resid[:, 1:, -1] - run.resid[:, :1, -1]).abs().amax((0, 2)).min() > 1e-4, (
        "every set must change something"
    )


def test_the_patch_grid_equals_hooked_runs(case):
    """Cell by cell: A's activation under an ablation, put into B at one layer, at the last token."""
    bridge, prompts = case
    flipped = prompts.select(list(range(len(prompts)))[::-1])  # A is another prompt than B, of another length
    a, b, chosen = prepare(bridge, flipped, 0), prepare(bridge, prompts, 0), sets(bridge)
    instead = replacements(run_end(a), ZERO)
    grid = patch_grid(run_end(a, chosen, instead), a, b, TOKENS, batch=4)
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with torch.no_grad():
        torch.testing.assert_close(grid.plain, bridge(prompts.tokens)[rows, end][:, TOKENS], atol=2e-4, rtol=1e-4)
        for row in range(len(chosen)):
            with bridge.hooks(fwd_hooks=plain_ablation(bridge, flipped, chosen, row, instead)):
                logits, cache = bridge.run_with_cache(flipped.tokens)
            own = logits[rows, flipped.positions["end"]][:, TOKENS]
            torch.testing.assert_close(grid.own[:, row], own, atol=2e-4, rtol=1e-4)
            for layer in range(bridge.cfg.n_layers):
                name = f"blocks.{layer}.hook_resid_pre"
                given = cache[name][rows, flipped.positions["end"]]
                hook = at_end(prompts, lambda x, n, given=given: given)
                patched = bridge.run_with_hooks(prompts.tokens, fwd_hooks=[(name, hook)])[rows, end][:, TOKENS]
                torch.testing.assert_close(grid.patched[:, layer, row], patched, atol=2e-4, rtol=1e-4)


def test_bad_sets_are_refused():
    shape = (2, 3)
    for heads, mlps, message in (
        ({"x": [Head(2, 0)]}, {}, "No head L2H0: there are 2 layers of 3 heads"),
        ({}, {"x": [5]}, "No MLP in layer 5"),
        ({"x": heads_in([0, 1], shape[1])}, {}, "takes out every head"),
        ({"nothing": []}, {}, "another name"),
    ):
        with pytest.raises(OptionError, match=message):
            ablations(shape, heads, mlps)
    assert ablations(shape).names == ("nothing",)


def test_random_heads_avoid_those_they_stand_beside():
    like = [Head(0, 1), Head(0, 2), Head(1, 0)]
    for heads in random_heads((2, 6), like, 20, seed=1).values():
        assert not set(heads) & set(like) and len(set(heads)) == 3
        assert sorted(head.layer for head in heads) == [0, 0, 1]
    assert random_heads((2, 6), like, 2, seed=1) == random_heads((2, 6), like, 2, seed=1)
