"""Heads and MLPs exchanged between two runs, against whole runs with hooks."""

import pytest
import torch

from talking_heads_utils.ablation import Mlp
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl import swaps
from talking_heads_utils.experiments.icl.swaps import How, Into, Ready, Where, direct, exchanged, grid
from talking_heads_utils.experiments.icl.tasks import Asked
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
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
def small_blocks(monkeypatch, ready):
    """Two prompts and five rows of logits at once."""
    monkeypatch.setattr(swaps, "_NUMBERS", 2 * ready.clean.width * len(SETS))
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
            logits, _ = run(model, prompts)
        check_said(said.at(k), logits, asked.right)
        assert said.right(asked)[:, k].equal(logits.argmax(-1) == asked.right)
    changed = (said.log_odds[:, :, None] - said.log_odds[:, None]).abs().amax(0)
    assert (changed + torch.eye(len(sets))).min() > 1e-3 or rest, "every set must do something of its own"


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
                    logits, _ = run(model, b)
                check_said(cell(found.patched, layer, k), logits, right)


def cell(said, layer, k):
    return swaps.Said(*(x[:, layer, k] for x in (said.log_odds, said.top, said.among)))
