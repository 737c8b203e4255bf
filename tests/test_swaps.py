"""Heads and MLPs exchanged between two runs, against whole runs with hooks."""

import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl import swaps
from talking_heads_utils.experiments.icl.swaps import How, Into, Ready, Where, direct, exchanged, grid
from talking_heads_utils.experiments.icl.tasks import Asked
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, Mlp, heads_in
from talking_heads_utils.models import load_model
from tests.conftest import random_prompts

SETS = [[], [Head(1, 2)], [Head(0, 1), Head(2, 0), Mlp(1)], heads_in([1], 4), [Head(0, 1), Mlp(2)]]
SOME = torch.tensor([3, 7, 11, 12])
ALIKE = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, checkpoints):
    return load_model(checkpoints[request.param])


@pytest.fixture(scope="module")
def ready(model):
    """Prompts of different length, and twins of the same that share no token with them."""
    prompts = random_prompts()
    twins = random_prompts()
    twins.tokens[:] = 49 - twins.tokens
    asked = Asked(task=None, prompts=prompts, twins=twins, right=prompts.answers, clusters=prompts.answers)
    return Ready(asked, prepare(model, prompts), prepare(model, twins))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two prompts of width 96 and five rows of logits at once."""
    monkeypatch.setattr(swaps, "_NUMBERS", 2 * 96 * len(SETS))
    monkeypatch.setattr(swaps, "_ROWS", 5)


def run(model, prompts):
    with torch.no_grad():
        logits, cache = model.run_with_cache(prompts.tokens)
    return at_end(logits, prompts), cache


def at_end(x, prompts):
    return x[torch.arange(len(x)), prompts.positions["end"]]


def put(prompts, where, old, new):
    """``new`` in the place of ``old``, at the last token or everywhere."""
    if where == Where.ALL:
        return new
    out, rows = old.clone(), torch.arange(len(old))
    out[rows, prompts.positions["end"]] = new[rows, prompts.positions["end"]]
    return out


def hooks_for(model, prompts, cache, parts, where=Where.END, how=How.EXCHANGE):
    """Hooks that put the values of ``cache`` or zeros in place of parts."""
    hooks = []
    for layer in range(model.cfg.n_layers):
        heads = [part.head for part in parts if part.layer == layer and isinstance(part, Head)]

        def swap_z(z, hook, heads=heads):
            new = z.clone()
            new[:, :, heads] = 0 if how == How.ZERO else cache[hook.name][:, :, heads]
            return put(prompts, where, z, new)

        def swap_mlp(x, hook):
            return put(prompts, where, x, x * 0 if how == How.ZERO else cache[hook.name])

        hooks += [(f"blocks.{layer}.attn.hook_z", swap_z)] if heads else []
        hooks += [(f"blocks.{layer}.hook_mlp_out", swap_mlp)] if Mlp(layer) in parts else []
    return hooks


def check_said(said, logits, right):
    """log_odds, top and among of one variant, from whole logits in double precision."""
    p = logits.double().softmax(-1).gather(1, right[:, None])[:, 0]
    torch.testing.assert_close(said.log_odds.double(), p.log() - (1 - p).log(), **ALIKE)
    assert said.top.equal(logits.argmax(-1)) and said.among.equal(SOME[logits[:, SOME].argmax(-1)])


@torch.no_grad()
@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("into", Into)
@pytest.mark.parametrize("rest", [False, True])
def test_exchanges_equal_hooked_runs(model, ready, how, where, into, rest):
    asked = ready.asked
    prompts, other = (asked.prompts, asked.twins) if into == Into.CLEAN else (asked.twins, asked.prompts)
    _, cache = run(model, other)
    sets = [[part for part in parts if isinstance(part, Head)] for parts in SETS] if rest else SETS
    said = exchanged(ready, sets, into=into, where=where, how=how, rest=rest, among=SOME)
    for k, parts in enumerate(sets):
        out = [head for head in heads_in(range(3), 4) if head not in parts] if rest else parts
        with model.hooks(fwd_hooks=hooks_for(model, prompts, cache, out, where, how)):
            logits = at_end(model(prompts.tokens), prompts)
        check_said(said.at(k), logits, asked.right)
        assert said.right(asked)[:, k].equal(logits.argmax(-1) == asked.right)
    changed = (said.log_odds[:, :, None] - said.log_odds[:, None]).abs().amax(0)
    assert (changed + torch.eye(len(sets))).min() > 1e-3 or rest, "every set must do something of its own"


@torch.no_grad()
def test_patches_equal_hooked_runs(model, ready):
    """A's stream of one layer, under each set, into B of another length."""
    asked = ready.asked
    b = asked.prompts.select([1, 0, 3, 2, 5, 4])
    assert (b.positions["end"] != asked.prompts.positions["end"]).all(), "of another length"
    right = b.answers
    for how in How:
        found = grid(ready, SETS, prepare(model, b), right, how=how, among=SOME)
        check_said(found.plain, run(model, b)[0], right)
        _, twin = run(model, asked.twins)
        for k, parts in enumerate(SETS):
            with model.hooks(fwd_hooks=hooks_for(model, asked.prompts, twin, parts, how=how)):
                own, cache = run(model, asked.prompts)
            check_said(found.own.at(k), own, asked.right)
            for layer in range(3):
                name = f"blocks.{layer}.hook_resid_pre"
                given = at_end(cache[name], asked.prompts)

                def patch(x, hook, given=given):
                    x = x.clone()
                    x[torch.arange(len(x)), b.positions["end"]] = given
                    return x

                with model.hooks(fwd_hooks=[(name, patch)]):
                    logits = at_end(model(b.tokens), b)
                check_said(cell(found.patched, layer, k), logits, right)


def cell(said, layer, k):
    return swaps.Said(*(x[:, layer, k] for x in (said.log_odds, said.top, said.among)))


def written(model, prompts, cache):
    """What each head, ``[n, n_layers, n_heads, d_model]``, and each MLP writes at the last token."""
    z = torch.stack([at_end(cache[f"blocks.{i}.attn.hook_z"], prompts) for i in range(3)], 1)
    mlps = torch.stack([at_end(cache[f"blocks.{i}.hook_mlp_out"], prompts) for i in range(3)], 1)
    return torch.einsum("nlhd,lhdm->nlhm", z, model.W_O), mlps


def normed(model, x):
    """Centred where the model's norm centres, and what it is divided by."""
    x = x - x.mean(-1, keepdim=True) if model.cfg.normalization_type == "LN" else x
    return x, (x.square().mean(-1) + model.cfg.eps).sqrt()


@pytest.mark.parametrize("how", How)
def test_direct_effects_equal_those_of_hooked_runs(model, ready, how):
    asked, sets, found = ready.asked, SETS[1:], direct(ready, SETS[1:], how=how)
    rows, right = torch.arange(len(asked.right)), asked.right
    logits, twin = run(model, asked.twins)
    rival = logits.index_put((rows, right), torch.tensor(-torch.inf)).argmax(1)
    assert found.rival.equal(rival) and found.heads.shape == (6, len(SETS), 3, 4)
    weight = getattr(model.ln_final, "weight", None)
    U = model.W_U if weight is None else model.W_U * weight[:, None]
    along = (U[:, right] - U[:, rival]).T.detach()
    frozen = streams = None
    for k, parts in enumerate([(), *sets]):
        with model.hooks(fwd_hooks=hooks_for(model, asked.prompts, twin, parts, how=how)):
            logits, cache = run(model, asked.prompts)
        heads, mlps = written(model, asked.prompts, cache)
        final, scale = normed(model, at_end(cache["blocks.2.hook_resid_post"], asked.prompts))
        frozen = scale if frozen is None else frozen
        by_hand = [(normed(model, x)[0] * along.view(6, *[1] * (x.ndim - 2), -1)).sum(-1) for x in (heads, mlps)]
        for ours, theirs in zip((found.heads, found.mlps), by_hand):
            torch.testing.assert_close(ours[:, k], theirs / frozen.view(6, *[1] * (theirs.ndim - 1)), **ALIKE)
            free = theirs / scale.view(6, *[1] * (theirs.ndim - 1))
            torch.testing.assert_close(found.free(ours)[:, k], free, **ALIKE)
        stream, divisor = normed(model, at_end(cache["blocks.1.hook_resid_pre"], asked.prompts))
        streams = stream / divisor[:, None] if streams is None else streams
        for ours, at in ((found.post, stream / divisor[:, None]), (found.post_frozen, streams)):
            torch.testing.assert_close(ours[:, k, 0], (heads[:, 0] * at[:, None]).sum(-1), **ALIKE)
            assert not ours[:, k, 1:].any(), "heads of the layer that reads, and above, have no such score"
    for ours, x in zip((found.twin_heads, found.twin_mlps), written(model, asked.twins, twin)):
        theirs = (normed(model, x)[0] * along.view(6, *[1] * (x.ndim - 2), -1)).sum(-1)
        torch.testing.assert_close(ours, theirs / frozen.view(6, *[1] * (theirs.ndim - 1)), **ALIKE)


def test_direct_effects_add_to_the_logit_difference(model, ready):
    """What the embedding and biases write no set changes: the rest is the difference of logits, at one scale."""
    asked, found = ready.asked, direct(ready, [[Head(1, 2)], [Head(2, 0), Mlp(2)]])
    told = []
    for parts in ([], [Head(1, 2)], [Head(2, 0), Mlp(2)]):
        with model.hooks(fwd_hooks=hooks_for(model, asked.prompts, run(model, asked.twins)[1], parts)):
            logits, _ = run(model, asked.prompts)
        pair = logits.gather(1, torch.stack([asked.right, found.rival], 1))
        told.append(pair[:, 0] - pair[:, 1])
    bias = ready.clean.unembed_bias
    told = (torch.stack(told, 1) - (bias[asked.right] - bias[found.rival])[:, None]) * found.scale / found.scale[:, :1]
    sums = found.heads.sum((2, 3)) + found.mlps.sum(2)
    torch.testing.assert_close(told.diff(dim=1), sums.diff(dim=1), **ALIKE)
    assert sums.diff(dim=1).abs().amax(0).min() > 1e-2


@pytest.mark.parametrize("sets, options, message", [
    ([], {}, "No set is given"),
    ([[Head(3, 0)]], {}, "No L3H0: there are 3 layers of 4 heads"),
    ([[Head(0, 4)]], {}, "No L0H4"),
    ([[Mlp(3)]], {}, "No L3.mlp"),
    ([[Mlp(1)]], dict(rest=True), "names heads alone"),
    ([[], heads_in(range(3), 4)], {}, "Set 1 takes out every head"),
])  # fmt: skip
def test_bad_sets_are_refused(ready, sets, options, message):
    with pytest.raises(OptionError, match=message):
        exchanged(ready, sets, **options)


def test_runs_that_do_not_fit_are_refused(model, ready):
    other = random_prompts().select([1, 0, 3, 2, 5, 4])
    apart = Ready(ready.asked, ready.clean, prepare(model, other))
    assert exchanged(apart, [[Head(0, 1)]]).log_odds.isfinite().all(), "at the last token length does not matter"
    with pytest.raises(OptionError, match="differ in length"):
        exchanged(apart, [[Head(0, 1)]], where=Where.ALL)
    with pytest.raises(OptionError, match="A has 6 prompts and B 2"):
        grid(ready, [[]], prepare(model, other.select([0, 1])), other.answers[:2])


def test_a_model_without_mlps_has_none_to_exchange():
    from talking_heads_utils.planted.model import plant
    from talking_heads_utils.prompts.ioi import build_ioi

    planted = plant()
    assert planted.bridge.cfg.attn_only
    prompts = build_ioi(planted.tokenizer, 4)
    asked = Asked(task=None, prompts=prompts, twins=prompts, right=prompts.answers, clusters=prompts.answers)
    r = Ready(asked, prepare(planted.bridge, prompts), prepare(planted.bridge, prompts))
    with pytest.raises(OptionError, match="layer 0 has no MLP"):
        exchanged(r, [[Mlp(0)]])
    found = exchanged(r, [[], [Head(0, 0)]])
    torch.testing.assert_close(found.log_odds[:, 0], found.log_odds[:, 1])
    assert not direct(r).mlps.any()
