"""What others recover of heads' direct effect: against whole runs with hooks, and where it is known."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_prompts, run_with, twins_of

from talking_heads_utils.experiments.icl import known
from talking_heads_utils.experiments.icl.backups import Measured, Out, Who, changes, kinds_of, rows_of
from talking_heads_utils.experiments.icl.choice import Picked, pick
from talking_heads_utils.experiments.icl.clusters import drawn_means
from talking_heads_utils.experiments.icl.known import Kind, Plan, planted
from talking_heads_utils.experiments.icl.swaps import Ready
from talking_heads_utils.experiments.icl.tasks import Asked
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model

SETS = [(Head(0, 1),), (Head(0, 1), Head(1, 3)), (Head(1, 0), Head(1, 2), Head(2, 0))]
WHO = list(Who)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, checkpoints):
    return load_model(checkpoints[request.param])


@pytest.fixture(scope="module")
def ready(model):
    prompts = random_prompts()
    twins = twins_of(prompts)
    asked = Asked(SimpleNamespace(name="random"), prompts, twins, prompts.answers, torch.arange(len(prompts)))
    return Ready(asked, prepare(model, prompts), prepare(model, twins))


@torch.no_grad()
def logit_difference(model, ready, heads):
    """Right less rival at the last token with heads' z put in by hooks, and what every head and MLP writes there."""
    prompts, right, n_layers = ready.asked.prompts, ready.asked.right, model.cfg.n_layers
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    z, mlps = ([f"blocks.{i}.{name}" for i in range(n_layers)] for name in ("attn.hook_z", "hook_mlp_out"))
    wrong, twin = run_with(model, ready.asked.twins, keep=z)

    def put(name):
        def change(value):
            for head in (head for head in heads if z[head.layer] == name):
                value[rows, end, head.head] = twin[name][rows, end, head.head]

        return name, change

    logits, seen = run_with(model, prompts, map(put, z), [*z, *mlps, f"blocks.{n_layers - 1}.hook_resid_post"])
    wrong[rows, right] = -torch.inf
    apart = logits[rows, right] - logits[rows, wrong.argmax(-1)]
    return apart.double(), {name: value[rows, end] for name, value in seen.items()}


def test_nothing_is_left_over(model, ready):
    """The logit difference by hooks falls by what is lost, less what others recover, less what a scale of its own
    adds; what others recover is what movers, negative heads, others and MLPs do."""
    found = changes(ready, SETS, kinds_of(pick(ready)))
    lost, recovered = found[..., 0], dict(zip(WHO, found[..., 1].unbind(-1)))
    before, _ = logit_difference(model, ready, ())
    for i, heads in enumerate(SETS):
        fell = before - logit_difference(model, ready, heads)[0]
        expected = lost[:, i, WHO.index(Who.ALL)] - recovered[Who.ALL][:, i] - recovered[Who.NORM][:, i]
        torch.testing.assert_close(fell, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sum(recovered[who] for who in WHO[:4]), recovered[Who.ALL])
    assert all(recovered[who].abs().max() > 1e-3 for who in (Who.MLPS, Who.NORM))


# --- where it is known ---

A, B, C = Head(0, 0), Head(1, 1), Head(1, 2)


def shares(plan: Plan, heads: tuple[Head, ...]) -> dict[Who, float]:
    """Recovered over lost, by who recovers, with all heads of the plan as movers."""
    _, held = planted(plan, 30)
    effect = torch.zeros(known.N_LAYERS, known.N_HEADS)
    for head, s in plan.written.items():
        effect[head.layer, head.head] = s
    found = changes(held, [heads], kinds_of(Picked(effect, {}, [])))[:, 0].mean(0)
    assert found[WHO.index(Who.ALL), 0] == pytest.approx(sum(plan.written[head] for head in heads), abs=1e-4)
    return dict(zip(WHO, (found[:, 1] / found[:, 0]).tolist()))


def test_a_planted_backup_recovers_what_it_must():
    """It writes 2 s / (1 + exp(-steep lacking)) where it wrote s; another head and parts do nothing."""
    plan = Plan(Kind.BACKUP, {A: 1.5, B: 1.0, C: 0.5}, [A, B], steep=1.0)
    found = shares(plan, (A,))
    expected = (2 / (1 + math.exp(-1.5)) - 1) / 1.5
    assert 0.3 < expected < 0.5
    for who, share in {Who.MOVERS: expected, Who.ALL: expected, Who.MLPS: 0, Who.OTHERS: 0, Who.NORM: 0}.items():
        assert found[who] == pytest.approx(share, abs=1e-4)


def test_the_mlp_that_lets_copies_add_no_more_recovers():
    """Of two copies that write 1 each of which 1.5 is let through, 0.5 of what one loses comes back by the MLP."""
    found = shares(Plan(Kind.COPIES, {A: 1.0, B: 1.0}, [A, B], room=0.5), (A,))
    assert [found[who] for who in WHO[:5]] == pytest.approx([0, 0, 0, 0.5, 0.5], abs=1e-4)


def test_parts_recover_nothing():
    found = shares(Plan(Kind.PARTS, {A: 1.0, B: 1.0, C: 0.5}, [A, B]), (A, C))
    assert max(map(abs, (found[who] for who in WHO[:6]))) < 1e-4


@pytest.fixture(scope="module")
def normed():
    """A transformer with LayerNorm whose head L0H0 writes the answer and much else besides, about the answer alone; a
    head of layer 1 writes the answer whatever L0H0 does. Nothing is attended to in particular."""
    from transformer_lens.model_bridge import TransformerBridge

    n, d = 6, 32
    given = dict(n_layers=4, n_heads=2, d_head=16, d_model=d, n_ctx=3, d_vocab=n, d_mlp=4, act_fn="relu")
    bridge = TransformerBridge.boot_native(dict(given, attn_only=False, normalization_type="LN", seed=0))
    weights = {name: p for name, p in bridge.original_model.named_parameters()}
    with torch.no_grad():
        for name, p in weights.items():
            p.fill_(1.0 if p.ndim == 1 and "weight" in name else 0.0)
        bridge.embed.original_component.weight[:, :n] = torch.eye(n) - 1 / n
        bridge.unembed.original_component.weight[:, n : 2 * n] = torch.eye(n) - 1 / n
        for layer, much in ((0, 3.0), (1, 0.0)):
            attn = bridge.blocks[layer].attn
            attn.v.original_component.weight[1:n, 1:n] = torch.eye(n - 1)
            attn.o.original_component.weight[n + 1 : 2 * n, 1:n] = torch.eye(n - 1)
            attn.o.original_component.weight[20, 1:n] = much
            attn.o.original_component.weight[21, 1:n] = -much
    return bridge


def test_rescaling_shows_as_the_norms_part_and_in_the_posts_yardstick_alone(normed):
    """With the norm's scale held nobody recovers anything; a smaller stream makes the other head's write count more."""
    words = torch.tensor([1, 2, 3] * 4)
    tokens = torch.stack([torch.full((12,), 5), words, torch.zeros(12, dtype=torch.long)], 1)
    twin = torch.where(tokens == words[:, None], 4, tokens)
    prompts, twins = (
        replace(random_prompts(12, 9), tokens=t, mask=t >= 0, positions={"end": torch.full((12,), 2)}, answers=words)
        for t in (tokens, twin)
    )
    asked = Asked(SimpleNamespace(name="normed"), prompts, twins, words, torch.arange(12))
    r = Ready(asked, prepare(normed, prompts), prepare(normed, twins))
    found = dict(zip(WHO, changes(r, [(Head(0, 0),)], kinds_of(pick(r)))[:, 0].mean(0).tolist()))
    (lost, recovered), (_, norm) = found[Who.ALL], found[Who.NORM]
    assert recovered == pytest.approx(0, abs=1e-4 * lost) and abs(norm) > 0.01 * lost
    for free_who, held_who in ((Who.POST, Who.POST_HELD), (Who.FINAL, Who.FINAL_HELD)):
        (yardstick, free), (_, held) = found[free_who], found[held_who]
        assert held == pytest.approx(0, abs=1e-4 * yardstick) and abs(free) > 0.1 * yardstick > 0


def test_the_yardstick_along_the_final_stream_by_hooks(model, ready):
    """From each head's own write, the final stream and its scale, of whole runs."""
    found = dict(zip(WHO, changes(ready, SETS, kinds_of(pick(ready))).unbind(2)))
    _, before = logit_difference(model, ready, ())
    for i, heads in enumerate(SETS):
        _, after = logit_difference(model, ready, heads)
        free, held = (scored(model, after, of) - scored(model, before, before) for of in (after, before))
        own, later = torch.zeros(2, *free.shape[1:])
        for head in heads:
            own[head.layer, head.head] = 1
        later[min(head.layer for head in heads) + 1 :] = 1
        lost = -(held * own).sum((1, 2))
        for who, gained in ((Who.FINAL, free), (Who.FINAL_HELD, held)):
            expected = torch.stack([lost, (gained * (later - later * own)).sum((1, 2))], -1)
            torch.testing.assert_close(found[who][:, i].float(), expected, atol=1e-4, rtol=1e-4)


def scored(model, wrote, of):
    """Each head's write along the final stream of a run, over its scale: ``[n, n_layers, n_heads]``."""
    stream = next(value for name, value in of.items() if name.startswith("blocks.2.") and "mlp" not in name
                  and "attn" not in name)  # fmt: skip
    if model.cfg.normalization_type.startswith("LN"):
        stream = stream - stream.mean(-1, keepdim=True)
    along = stream / stream.square().mean(-1, keepdim=True).add(model.cfg.eps).sqrt()
    return torch.stack([torch.einsum("nhd,hdm,nm->nh", wrote[f"blocks.{i}.attn.hook_z"], block.attn.W_O, along)
                        for i, block in enumerate(model.blocks)], 1)  # fmt: skip


# --- rows ---


def told(name, lost, recovered, outs, seed=0):
    """A task of 40 prompts in which each out loses and others recover so much, by prompt, whoever recovers."""
    noise = torch.randn(40, 1, 1, 2, generator=torch.Generator().manual_seed(seed)).double()
    values = torch.tensor([lost, recovered]).T.view(1, -1, 1, 2) + 0.1 * noise
    means = drawn_means(values.expand(-1, -1, len(WHO), -1), torch.arange(40), seed=seed)
    return Measured(name, outs, means, 40)


def test_shares_are_ratios_of_means_over_tasks_too():
    """Over tasks: 3 of 10 recovered in sum (the mean of the shares would be 0.35); one by one the mean over heads."""
    outs = [Out((A,), None, True), Out((B,), None, True), Out((A, B)), Out((B,), 1, True), Out((B, C), 1)]
    one = told("one", [1.0, 3.0, 2.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0, 0.0], outs)
    two = told("two", [1.0, 3.0, 8.0, 1.0, 0.0], [0.5, 0.5, 2.0, 0.0, 0.0], outs, seed=1)
    rows = [row for row in rows_of("m", [one, two]) if row.who == Who.ALL]
    found = {(row.task, row.draw, row.alone): row for row in rows if row.task == "all" or not row.alone}
    together, apart = found["all", None, False], found["all", None, True]
    assert together.share == pytest.approx(0.3, abs=0.02) and together.low < 0.3 < together.high
    assert apart.share == pytest.approx(0.25, abs=0.02) and (apart.lost, apart.n) == (pytest.approx(4, abs=0.1), 2)
    assert together.high - together.low > 3 * (apart.high - apart.low)  # tasks differ in the one alone
    assert found["all", 1, True].share == pytest.approx(0, abs=0.05)
    nothing = found["one", 1, False]
    assert (nothing.share, nothing.low, nothing.high) == (None, None, None)  # nothing is lost
    assert len(rows) == 2 * len(outs) + 4 and found["one", None, False].out == "L0H0 L1H1"


def test_kinds_of_heads():
    kinds = kinds_of(Picked(torch.tensor([[5.0, -4.0, 0.05], [0.1, -0.05, 0.0]]), {}, []))
    assert kinds.tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]
