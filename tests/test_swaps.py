"""Heads and MLPs exchanged between two runs, and what others recover of them, against whole runs with hooks."""

from types import SimpleNamespace

import pytest
import torch
from conftest import at_end, random_prompts, run_with, twins_of

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl import swaps
from talking_heads_utils.experiments.icl.asked import Asked
from talking_heads_utils.experiments.icl.backups import Who, changes, kinds_of
from talking_heads_utils.experiments.icl.choice import pick
from talking_heads_utils.experiments.icl.swaps import How, Into, Ready, Where, direct, exchanged, grid
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, Mlp, heads_in
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts.questions import Numbers

SETS = [[], [Head(1, 2)], [Head(0, 1), Head(2, 0), Mlp(1)], heads_in([1], 4), [Head(0, 1), Mlp(2)]]
OUT = [(Head(0, 1),), (Head(0, 1), Head(1, 3)), (Head(1, 0), Head(1, 2), Head(2, 0))]
SOME = Numbers(torch.tensor([4, 5, 8, 9]), torch.tensor([3, 7, 11, 12]))
ALIKE = dict(atol=1e-4, rtol=1e-4)
Z, MLPS = ([f"blocks.{i}.{name}" for i in range(3)] for name in ("attn.hook_z", "hook_mlp_out"))
STREAMS = [*(f"blocks.{i}.hook_resid_pre" for i in range(3)), "blocks.2.hook_resid_post"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, checkpoints):
    return load_model(checkpoints[request.param])


@pytest.fixture(scope="module")
def ready(model):
    """Prompts of different length, and twins of the same that share the last token alone."""
    prompts = random_prompts()
    twins, task = twins_of(prompts), SimpleNamespace(name="random")
    asked = Asked(task, prompts, twins, prompts.answers, torch.arange(len(prompts)), numbers=SOME)
    return Ready(asked, prepare(model, prompts), prepare(model, twins))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two prompts of width 96 and five rows of logits at once."""
    monkeypatch.setattr(swaps, "_NUMBERS", 2 * 96 * len(SETS))
    monkeypatch.setattr(swaps, "_ROWS", 5)


def run(model, prompts, put=()):
    return run_with(model, prompts, put, [*Z, *MLPS, *STREAMS])


def put_in(prompts, values, parts, where=Where.END, how=How.EXCHANGE):
    """Changes that put another run's values or zeros in the place of parts."""
    at = (torch.arange(len(prompts)), prompts.positions["end"]) if where == Where.END else (slice(None), slice(None))

    def change_of(part):
        name = (MLPS if isinstance(part, Mlp) else Z)[part.layer]
        index = at if isinstance(part, Mlp) else (*at, part.head)

        def change(value):
            value[index] = 0 if how == How.ZERO else values[name][index]

        return name, change

    return list(map(change_of, parts))


def check_said(said, logits, right):
    """log_odds, top and number of one variant, from whole logits in double precision."""
    p = logits.double().softmax(-1).gather(1, right[:, None])[:, 0]
    torch.testing.assert_close(said.log_odds.double(), p.log() - (1 - p).log(), **ALIKE)
    assert said.top.equal(logits.argmax(-1)) and said.number.equal(SOME.values[logits[:, SOME.ids].argmax(-1)])


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("into", Into)
@pytest.mark.parametrize("rest", [False, True])
def test_exchanges_equal_hooked_runs(model, ready, how, where, into, rest):
    asked = ready.asked
    prompts, other = (asked.prompts, asked.twins) if into == Into.CLEAN else (asked.twins, asked.prompts)
    _, values = run(model, other)
    sets = [[part for part in parts if isinstance(part, Head)] for parts in SETS] if rest else SETS
    said = exchanged(ready, sets, into=into, where=where, how=how, rest=rest)
    for k, parts in enumerate(sets):
        out = [head for head in heads_in(range(3), 4) if head not in parts] if rest else parts
        logits, _ = run(model, prompts, put_in(prompts, values, out, where, how))
        check_said(said.at(k), logits, asked.right)
        assert said.right(asked)[:, k].equal(logits.argmax(-1) == asked.right)
    changed = (said.log_odds[:, :, None] - said.log_odds[:, None]).abs().amax(0)
    assert (changed + torch.eye(len(sets))).min() > 1e-3 or rest, "every set must do something of its own"
    few = exchanged(ready, sets, into=into, where=where, how=how, rest=rest, n=3)
    torch.testing.assert_close(few.log_odds, said.log_odds[:3], **ALIKE)
    assert few.right(asked).equal(said.right(asked)[:3])


@pytest.mark.parametrize("how", How)
def test_patches_equal_hooked_runs(model, ready, how):
    """A's stream of one layer, under each set, into B of another length."""
    asked = ready.asked
    b = asked.prompts.select([1, 0, 3, 2, 5, 4])
    assert (b.positions["end"] != asked.prompts.positions["end"]).all(), "of another length"
    found, (_, twin) = grid(ready, SETS, prepare(model, b), b.answers, how=how), run(model, asked.twins)
    check_said(found.plain, run(model, b)[0], b.answers)
    for k, parts in enumerate(SETS):
        own, values = run(model, asked.prompts, put_in(asked.prompts, twin, parts, how=how))
        check_said(found.own.at(k), own, asked.right)
        for layer, name in enumerate(STREAMS[:3]):
            given = at_end(values[name], asked.prompts)

            def patch(x, given=given):
                x[torch.arange(len(x)), b.positions["end"]] = given

            check_said(found.patched.at(layer, k), run(model, b, [(name, patch)])[0], b.answers)


def written(model, prompts, values):
    """What each head, ``[n, n_layers, n_heads, d_model]``, and each MLP writes at the last token."""
    z, mlps = (torch.stack([at_end(values[name], prompts) for name in names], 1) for names in (Z, MLPS))
    return torch.einsum("nlhd,lhdm->nlhm", z, model.W_O), mlps


def normed(model, x):
    """Centred where the model's norm centres, and what it is divided by."""
    x = x - x.mean(-1, keepdim=True) if model.cfg.normalization_type == "LN" else x
    return x, (x.square().mean(-1) + model.cfg.eps).sqrt()


def along(model, stream):
    """A stream over its scale."""
    x, scale = normed(model, stream)
    return x / scale[:, None]


@pytest.mark.parametrize("how", How)
def test_direct_effects_equal_those_of_hooked_runs(model, ready, how):
    asked, sets, found = ready.asked, SETS[1:], direct(ready, SETS[1:], how=how)
    rows, right = torch.arange(len(asked.right)), asked.right
    logits, twin = run(model, asked.twins)
    rival = logits.index_put((rows, right), torch.tensor(-torch.inf)).argmax(1)
    assert found.rival.equal(rival) and found.heads.shape == (6, len(SETS), 3, 4)
    weight = getattr(model.ln_final, "weight", None)
    U = model.W_U if weight is None else model.W_U * weight[:, None]
    answer = (U[:, right] - U[:, rival]).T.detach()
    frozen = streams = None
    for k, parts in enumerate([(), *sets]):
        _, values = run(model, asked.prompts, put_in(asked.prompts, twin, parts, how=how))
        heads, mlps = written(model, asked.prompts, values)
        _, scale = normed(model, at_end(values[STREAMS[3]], asked.prompts))
        frozen = scale if frozen is None else frozen
        for ours, theirs in ((found.heads[:, k], heads), (found.mlps[:, k], mlps)):
            torch.testing.assert_close(ours, told(model, theirs, answer, frozen), **ALIKE)
        torch.testing.assert_close(found.scale[:, k], scale, **ALIKE)
        stream = along(model, at_end(values[STREAMS[1]], asked.prompts))
        streams = stream if streams is None else streams
        for ours, at in ((found.post, stream), (found.post_frozen, streams)):
            torch.testing.assert_close(ours[:, k, 0], (heads[:, 0] * at[:, None]).sum(-1), **ALIKE)
            assert not ours[:, k, 1:].any(), "heads of the layer that reads, and above, have no such score"
    for ours, theirs in zip((found.twin_heads, found.twin_mlps), written(model, asked.twins, twin)):
        torch.testing.assert_close(ours, told(model, theirs, answer, frozen), **ALIKE)


def told(model, wrote, answer, scale):
    """Writes on an answer's direction over a scale."""
    by_prompt = [6, *[1] * (wrote.ndim - 2)]
    return (normed(model, wrote)[0] * answer.view(*by_prompt, -1)).sum(-1) / scale.view(by_prompt)


def test_nothing_is_left_over_of_what_others_recover(model, ready):
    """The logit difference by hooks falls by what is lost, less what others recover, less what a scale of its own
    adds; what others recover is what movers, negative heads, others and MLPs do. The yardstick along the final stream
    is made of each head's own write, that stream and its scale."""
    asked, who = ready.asked, list(Who)
    found = dict(zip(who, changes(ready, OUT, kinds_of(pick(ready))).unbind(2)))
    rival, (_, twin) = direct(ready).rival, run(model, asked.twins)

    def hooked(heads):
        logits, values = run(model, asked.prompts, put_in(asked.prompts, twin, heads))
        pair = logits.gather(1, torch.stack([asked.right, rival], 1)).double()
        final = along(model, at_end(values[STREAMS[3]], asked.prompts))
        return pair[:, 0] - pair[:, 1], written(model, asked.prompts, values)[0], final

    before, wrote, stream = hooked(())
    for i, heads in enumerate(OUT):
        after, changed, moved = hooked(heads)
        (lost, recovered), (_, rescaled) = (found[each][:, i].T for each in (Who.ALL, Who.NORM))
        torch.testing.assert_close(before - after, lost - recovered - rescaled, **ALIKE)
        own, later = torch.zeros(2, 3, 4)
        for head in heads:
            own[head.layer, head.head] = 1
        later[min(head.layer for head in heads) + 1 :] = 1
        free, held = (torch.einsum("nlhm,nm->nlh", changed, at) - torch.einsum("nlhm,nm->nlh", wrote, stream)
                      for at in (moved, stream))  # fmt: skip
        for each, gained in ((Who.FINAL, free), (Who.FINAL_HELD, held)):
            expected = [-(held * own).sum((1, 2)), (gained * (later - later * own)).sum((1, 2))]
            torch.testing.assert_close(found[each][:, i].float(), torch.stack(expected, -1), **ALIKE)
    torch.testing.assert_close(sum(found[each][..., 1] for each in who[:4]), found[Who.ALL][..., 1])
    assert all(found[each][..., 1].abs().max() > 1e-3 for each in (Who.MLPS, Who.NORM))


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
    prompts = build_ioi(planted.tokenizer, 4)
    run = prepare(planted.bridge, prompts)
    r = Ready(Asked(None, prompts, prompts, prompts.answers, prompts.answers), run, run)
    with pytest.raises(OptionError, match="layer 0 has no MLP"):
        exchanged(r, [[Mlp(0)]])
    found = exchanged(r, [[], [Head(0, 0)]])
    torch.testing.assert_close(found.log_odds[:, 0], found.log_odds[:, 1])
    assert not direct(r).mlps.any()
