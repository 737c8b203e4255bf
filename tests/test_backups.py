"""What others recover of heads' direct effect: against whole runs with hooks, and where it is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from talking_heads_utils.experiments.icl.backups import Measured, Out, Who, changes, kinds_of, outs_of, rows_of
from talking_heads_utils.experiments.icl.clusters import drawn_means
from talking_heads_utils.experiments.icl.swaps import Ready, direct
from talking_heads_utils.experiments.icl.tasks import Asked
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from tests.conftest import random_prompts

SETS = [(Head(0, 1),), (Head(0, 1), Head(1, 3)), (Head(1, 0), Head(1, 2), Head(2, 0))]
WHO = list(Who)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, checkpoints):
    return load_model(checkpoints[request.param])


@pytest.fixture(scope="module")
def ready(model):
    prompts, twins = random_prompts(), random_prompts()
    twins.tokens[:] = 49 - twins.tokens
    twins.tokens[torch.arange(len(twins)), twins.positions["end"]] = prompts.tokens[
        torch.arange(len(twins)), prompts.positions["end"]
    ]
    asked = Asked(SimpleNamespace(name="random"), prompts, twins, prompts.answers, torch.arange(len(prompts)))
    return Ready(asked, prepare(model, prompts), prepare(model, twins))


@torch.no_grad()
def logit_difference(model, ready, heads):
    """Right less rival at the last token with heads' z put in by hooks, and what every head and MLP writes there."""
    rows, prompts = torch.arange(len(ready.asked.prompts)), ready.asked.prompts
    end = prompts.positions["end"]
    _, twin = model.run_with_cache(ready.asked.twins.tokens)
    cache = {}

    def put(z, hook):
        new, layer = z.clone(), int(hook.name.split(".")[1])
        for head in (head for head in heads if head.layer == layer):
            new[rows, end, head.head] = twin[hook.name][rows, end, head.head]
        cache[hook.name] = new[rows, end]
        return new

    def keep(value, hook):
        cache[hook.name] = value[rows, end]

    n_layers = model.cfg.n_layers
    hooks = [(f"blocks.{i}.attn.hook_z", put) for i in range(n_layers)]
    hooks += [(f"blocks.{i}.hook_mlp_out", keep) for i in range(n_layers)]
    hooks += [(f"blocks.{n_layers - 1}.hook_resid_post", keep)]
    logits = model.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[rows, end]
    wrong = model(ready.asked.twins.tokens)[rows, end].clone()
    wrong[rows, ready.asked.right] = -torch.inf
    return (logits[rows, ready.asked.right] - logits[rows, wrong.argmax(-1)]).double(), cache


def test_nothing_is_left_over(model, ready):
    """The logit difference by hooks falls by what is lost, less what others recover, less what a scale of its own
    adds; what others recover is what movers, negative heads, others and MLPs do."""
    kinds = kinds_of(direct(ready).heads[:, 0].mean(0))
    found = changes(ready, SETS, kinds)
    lost, recovered = found[..., 0], dict(zip(WHO, found[..., 1].unbind(-1)))
    before, _ = logit_difference(model, ready, ())
    for i, heads in enumerate(SETS):
        fell = before - logit_difference(model, ready, heads)[0]
        expected = lost[:, i, WHO.index(Who.ALL)] - recovered[Who.ALL][:, i] - recovered[Who.NORM][:, i]
        torch.testing.assert_close(fell, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sum(recovered[who] for who in WHO[:4]), recovered[Who.ALL])
    assert all(recovered[who].abs().max() > 1e-3 for who in (Who.MLPS, Who.NORM))


def told(name, lost, recovered, outs, seed=0):
    """A task of 40 prompts in which each out loses and others recover so much, by prompt, whoever recovers."""
    noise = torch.randn(40, 1, 1, 2, generator=torch.Generator().manual_seed(seed)).double()
    values = torch.tensor([lost, recovered]).T.view(1, -1, 1, 2) + 0.1 * noise
    means = drawn_means(values.expand(-1, -1, len(WHO), -1), torch.arange(40), seed=seed)
    return Measured(name, outs, means, 40)


def test_shares_are_ratios_of_means_over_tasks_too():
    """Over tasks: 3 of 10 recovered in sum (the mean of the shares would be 0.35); one by one the mean over heads."""
    a, b, c = Head(0, 0), Head(1, 1), Head(2, 0)
    outs = outs_of([a, b], [[b, c]])
    assert [(out.heads, out.draw) for out in outs] == [
        ((a,), None), ((b,), None), ((a, b), None),
        ((b,), 0), ((c,), 0), ((b, c), 0),
    ]  # fmt: skip
    one = told("one", [1.0, 3.0, 2.0, 1.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0, 0.0, 0.0], outs)
    two = told("two", [1.0, 3.0, 8.0, 1.0, 1.0, 0.0], [0.5, 0.5, 2.0, 0.0, 0.0, 0.0], outs, seed=1)
    rows = [row for row in rows_of("m", [one, two], seed=0) if row.who == Who.ALL]
    found = {
        (row.task, row.heads_are, row.draw, row.n_heads): row for row in rows if row.task == "all" or row.n_heads > 1
    }
    together, apart = found["all", "chosen", None, 2], found["all", "chosen", None, 1]
    assert together.share == pytest.approx(0.3, abs=0.02) and together.low < 0.3 < together.high
    assert apart.share == pytest.approx(0.25, abs=0.02) and (apart.lost, apart.n) == (pytest.approx(2, abs=0.05), 2)
    assert together.high - together.low > 3 * (apart.high - apart.low)  # tasks differ in the one alone
    assert found["all", "matched", 0, 1].share == pytest.approx(0, abs=0.05)
    nothing = found["one", "matched", 0, 2]
    assert (nothing.share, nothing.low, nothing.high) == (None, None, None)  # nothing is lost
    assert len(rows) == 2 * 6 + 4 and found["one", "chosen", None, 2].out == "L0H0 L1H1"


def test_one_task_has_no_rows_over_tasks():
    rows = rows_of("m", [told("one", [1.0], [0.5], [Out((Head(0, 0),))])], seed=0)
    assert {row.task for row in rows} == {"one"}


def test_kinds_of_heads():
    kinds = kinds_of(torch.tensor([[5.0, -4.0, 0.05], [0.1, -0.05, 0.0]]))
    assert kinds.tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]
