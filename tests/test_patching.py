"""Patching against runs with hooks, and against TransformerLens' own helpers."""

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts

from talking_heads_utils import batches
from talking_heads_utils.components import write_directions
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.metrics import attention, logit_difference
from talking_heads_utils.models import load_model
from talking_heads_utils.patching import patch
from talking_heads_utils.weights.bridge import head_weights_from_bridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
HOOKS = {"resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}


def pairs(case, same_length=True):
    """Clean and corrupted prompts: from position 2 on other tokens, but for the last prompt, which is left as it is."""
    clean = case[1]
    if same_length:
        n, length = len(clean), int(clean.positions["end"].min()) + 1
        end = torch.full((n,), length - 1)
        some = {name: at.clamp(max=length - 1) for name, at in clean.positions.items()}
        clean = replace(
            clean, tokens=clean.tokens[:, :length], mask=clean.mask[:, :length], positions=some | {"end": end}
        )
    other = torch.randint(1, 49, clean.tokens.shape, generator=torch.Generator().manual_seed(5))
    tokens = torch.where((torch.arange(clean.tokens.shape[1]) >= 2) & clean.mask, other, clean.tokens)
    tokens[-1] = clean.tokens[-1]
    return clean, replace(clean, tokens=tokens)


def sites_of(bridge):
    return [site for site in SITES if site != "mlp_out" or getattr(bridge.blocks[0], "mlp", None) is not None]


@torch.no_grad()
def cached(bridge, prompts):
    return bridge.run_with_cache(prompts.tokens)[1]


@torch.no_grad()
def by_hooks(bridge, cache, into, clean, row, places):
    """Mean logit difference with the patch of one row of the frame made by a hook. cache: of the run that is patched
    out of. places: (into, out of) by prompt."""
    hook = f"blocks.{row.layer}." + (HOOKS.get(row.site) or "attn.hook_z")

    def put(value, hook):
        new = value.clone()
        for i, (at, source) in enumerate(zip(*places)):
            given = cache[hook.name][i, source]
            if row.site == "z":
                new[i, at, row["head"]] = given[..., row["head"], :]
            elif row.site != "component":
                new[i, at] = given
            else:
                weights = head_weights_from_bridge(bridge)
                d = write_directions(weights)[0][row.layer, row["head"], row.component]
                W_O = bridge.blocks[row.layer].attn.W_O[row["head"]]
                apart = given[..., row["head"], :] - value[i, at, row["head"]]
                extra[i, at] = (apart @ W_O @ d)[..., None] * d
        return new

    extra = torch.zeros(*into.tokens.shape, bridge.cfg.d_model)
    hooks = [(hook, put)]
    if row.site == "component":
        hooks.append((f"blocks.{row.layer}.hook_attn_out", lambda value, hook: value + extra))
    logits = bridge.run_with_hooks(into.tokens, fwd_hooks=hooks)
    return logit_difference(logits[torch.arange(len(into)), into.positions["end"]], clean).mean().item()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_named_positions_are_those_of_hooked_runs(case, direction):
    bridge, _ = case
    clean, corrupted = pairs(case, same_length=False)
    if "IO" in corrupted.positions:  # positions may differ between the two runs
        corrupted = replace(corrupted, positions=dict(corrupted.positions) | {"IO": corrupted.positions["IO"] + 1})
    names = ["IO", "end"] if "IO" in clean.positions else ["item_1 first", "end"]
    sites = [*sites_of(bridge), "L1H1.0", "L1H0.1"]
    frame = patch(bridge, clean, corrupted, sites=sites, positions=names, direction=direction)
    into, out_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    cache = cached(bridge, out_of)
    for _, row in frame.sample(8, random_state=0).iterrows():
        places = [prompts.positions[row.position].tolist() for prompts in (into, out_of)]
        assert row.value == pytest.approx(by_hooks(bridge, cache, into, clean, row, places), abs=1e-4, rel=1e-4)
    assert frame.change.abs().gt(1e-3).mean() > 0.1
    assert (frame.value - frame.change).to_numpy() == pytest.approx(
        frame.attrs["corrupted" if direction == "denoise" else "clean"], abs=1e-6
    )


def test_all_positions_together_give_the_other_run(case):
    bridge, clean, corrupted = case[0], *pairs(case, same_length=False)
    frame = patch(bridge, clean, corrupted, sites=sites_of(bridge), positions="together")
    first = frame[(frame.site == "resid_pre") & (frame.layer == 0)]
    assert first.value.item() == pytest.approx(frame.attrs["clean"], abs=1e-4)
    assert first.share.item() == pytest.approx(1, abs=1e-3)
    places, cache = [[slice(None)] * len(clean)] * 2, cached(bridge, clean)
    for _, row in frame.sample(8, random_state=0).iterrows():
        assert row.value == pytest.approx(by_hooks(bridge, cache, corrupted, clean, row, places), abs=1e-4, rel=1e-4)


def test_all_positions_are_those_of_transformer_lens(case):
    from transformer_lens import patching as tl

    bridge, clean, corrupted = case[0], *pairs(case)

    def metric(logits):
        return logit_difference(logits[:, -1], clean).mean()

    helpers = {
        "resid_pre": tl.get_act_patch_resid_pre, "attn_out": tl.get_act_patch_attn_out,
        "mlp_out": tl.get_act_patch_mlp_out, "z": tl.get_act_patch_attn_head_out_by_pos,
    }  # fmt: skip
    sites, cache = sites_of(bridge), cached(bridge, clean)
    if clean.tokens.shape[1] > 12:  # a run for each head and position takes long
        sites.remove("z")
    with torch.no_grad():
        frame = patch(bridge, clean, corrupted, sites=sites)
        for site in sites:
            theirs = helpers[site](bridge, corrupted.tokens, cache, metric)
            ours = frame[frame.site == site].assign(position=lambda f: f.position.astype(int))
            ours = ours.sort_values(["layer", "position", "head"]).value.to_numpy()
            torch.testing.assert_close(torch.tensor(ours).float(), theirs.flatten(), atol=1e-4, rtol=1e-4)
    early = frame[frame.position.isin(["0", "1"])]
    assert (early.change == 0).all() and not (frame.change == 0).all()


@pytest.mark.parametrize("metric", ["attention", "own", "accuracy", "prob_diff"])
def test_a_metric_of_ones_own_and_one_of_attention(case, metric):
    """Every metric gives the other run's value where all is patched, its own where nothing is."""
    bridge, clean, corrupted = case[0], *pairs(case)
    name = next(name for name in clean.positions if name != "end")

    def own(outcome):
        assert outcome.logits.shape[2] == bridge.cfg.d_vocab
        return outcome.logits.logsumexp(-1)

    chosen = {"attention": attention("L1H0", name), "own": own}.get(metric, metric)
    frame = patch(bridge, clean, corrupted, sites=["resid_pre", "z"], positions="together", metric=chosen)
    assert frame.value[frame.site == "resid_pre"].iloc[0] == pytest.approx(frame.attrs["clean"], abs=1e-5)
    if metric == "attention":  # what joins above the head leaves its pattern as it is
        assert frame.change[(frame.layer == 1) & (frame.site == "z")].abs().max() < 1e-6
        pattern = bridge.run_with_cache(corrupted.tokens)[1]["blocks.1.attn.hook_pattern"][:, 0]
        rows = torch.arange(len(clean))
        plain = pattern[rows, corrupted.positions["end"], corrupted.positions[name]].mean().item()
        assert frame.attrs["corrupted"] == pytest.approx(plain, abs=1e-5)


def test_small_blocks_change_nothing(case):
    bridge, clean, corrupted = case[0], *pairs(case)
    given = dict(sites=["resid_pre", "z"], positions=list(clean.positions)[:2])
    whole = patch(bridge, clean, corrupted, **given)
    with batches.divided_by(10**7):
        small = patch(bridge, clean, corrupted, **given)
    some = patch(bridge, clean, corrupted, **given, layers=[1])
    assert small.value.to_numpy() == pytest.approx(whole.value.to_numpy(), abs=1e-4, rel=1e-4)
    assert some.value.to_numpy() == pytest.approx(whole[whole.layer == 1].value.to_numpy(), abs=1e-4, rel=1e-4)


def shorter(prompts):
    return replace(prompts, mask=torch.arange(prompts.tokens.shape[1]) < prompts.mask.sum(1)[:, None] - 1)


@pytest.mark.parametrize("options, error", [
    (dict(sites="heads"), OptionError), (dict(sites=()), OptionError), (dict(sites="L9H0"), LabelError),
    (dict(sites="L0H0.99"), LabelError), (dict(layers=[7]), OptionError), (dict(direction="both"), OptionError),
    (dict(positions=["S9"]), TaskError), (dict(positions=["all"]), TaskError), (dict(metric="no such"), OptionError),
    (dict(layers=5), OptionError), (dict(positions=[]), OptionError),
    (dict(metric=lambda outcome: outcome.logits[..., 0] * torch.nan), OptionError),
])  # fmt: skip
def test_one_error_names_what_is_wrong(checkpoints, options, error):
    bridge = load_model(checkpoints["gpt2"])
    clean, corrupted = pairs((bridge, random_prompts()))
    with pytest.raises(error):
        patch(bridge, clean, corrupted, **options)


def test_prompts_must_pair(checkpoints):
    bridge = load_model(checkpoints["gpt2"])
    clean, corrupted = pairs((bridge, random_prompts()))
    with pytest.raises(TaskError, match="pairs"):
        patch(bridge, clean, corrupted.select([0, 1]))
    with pytest.raises(TaskError, match="Pair 0"):
        patch(bridge, clean, shorter(corrupted))
    clean, corrupted = pairs((bridge, random_prompts()), same_length=False)
    with pytest.raises(TaskError, match="one length"):
        patch(bridge, clean, corrupted)
