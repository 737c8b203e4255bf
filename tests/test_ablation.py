"""Ablation against the model's own runs with hooks, everywhere and for one reader, and on the planted circuit."""

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts, run_with

from talking_heads_utils.ablation import HOWS, ablate, as_part
from talking_heads_utils.components import direction_of
from talking_heads_utils.errors import LabelError, ModelError, OptionError, TaskError
from talking_heads_utils.forward.layers import attention_layer
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import attention, logit_difference
from talking_heads_utils.models import load_model
from talking_heads_utils.patching import patch
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts.ioi import build_ioi
from talking_heads_utils.prompts.words import tokenizer_hash
from talking_heads_utils.steering import steer
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.heads import Processing

READER = Head(2, 1)
LOOK = attention(READER, "IO", "S1")


@pytest.fixture(scope="module", params=("gpt2", "qwen2"))
def own(request, checkpoints):
    return load_model(checkpoints[request.param]), random_prompts()


def even(prompts):
    """The same prompts, all of one length."""
    full = torch.ones_like(prompts.mask)
    places = dict(prompts.positions) | {"end": torch.full((len(prompts),), prompts.tokens.shape[1] - 1)}
    return type(prompts)(**vars(prompts) | {"mask": full, "positions": places})


def written(bridge, prompts, part):
    """What a head, component or MLP writes in a plain run, ``[n, n_pos, d_model]``, by dense algebra."""
    names = [f"blocks.{part.layer}.attn.hook_z", f"blocks.{part.layer}.hook_mlp_out"]
    with torch.no_grad():
        cache = bridge.run_with_cache(prompts.tokens, names_filter=lambda name: name in names)[1]
    if not hasattr(part, "head"):
        return cache[names[1]]
    attn, z = bridge.blocks[part.layer].attn, cache[names[0]][:, :, part.head]
    if isinstance(part, Head):
        return z @ attn.W_O[part.head]
    layer = attention_layer(bridge, part.layer)
    v = direction_of(head_weights_from_bridge(bridge), part)[0].to(z)
    write = (z - layer.b_V[layer.kv_index[part.head]]) @ attn.W_O[part.head]
    return (write @ v)[..., None] * v


def replaced(bridge, prompts, part, how, other):
    """What stands in its place."""
    plain = written(bridge, prompts, part)
    if how == "zero":
        return torch.zeros_like(plain)
    if how == "mean":
        return plain.mean(0, keepdim=True).expand_as(plain)
    if how == "exchange":
        return written(bridge, other, part)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    return plain[[int(order[(order == i).nonzero()[0, 0] - 1]) for i in range(len(prompts))]]


def hooked(bridge, prompts, part, how, other, side, mask):
    """Logit difference and attention difference of a whole run with hooks."""
    new = replaced(bridge, prompts, part, how, other)
    delta, layer = (new - written(bridge, prompts, part)) * mask[..., None], attention_layer(bridge, READER.layer)
    at, kv = f"blocks.{READER.layer}", int(layer.kv_index[READER.head])
    resid, z, pattern = (f"{at}.{name}" for name in ("hook_resid_pre", "attn.hook_z", "attn.hook_pattern"))
    _, was = run_with(bridge, prompts, keep=[resid, z])

    def read(value):  # the reader's own query, key or value alone
        W, b = (getattr(layer, f"{kind}_{side[0].upper()}") for kind in "Wb")
        h = READER.head if side == "query" else kv
        value[:, :, h] = layer.norm(was[resid] + delta) @ W[h] + b[h]

    def untouched(value):  # of the other heads that share the key or value
        others = [h for h in range(value.shape[2]) if h != READER.head]
        value[:, :, others] = was[z][:, :, others]

    name = f"blocks.{part.layer}.hook_{'attn' if hasattr(part, 'head') else 'mlp'}_out"
    changes = [(f"{at}.attn.hook_{side[0]}", read), (z, untouched)] if side else [(name, lambda value: value + delta)]
    logits, seen = run_with(bridge, prompts, changes, [pattern])
    looks = seen[pattern][torch.arange(len(prompts)), READER.head, prompts.positions["end"]]
    IO, S1 = (looks[torch.arange(len(prompts)), prompts.positions[name]] for name in ("IO", "S1"))
    return logit_difference(logits, prompts).mean(), (IO - S1).mean()


@pytest.mark.parametrize("side", [None, "query", "key", "value"])
@pytest.mark.parametrize("positions", ["all", "end", "S1"])
def test_every_ablation_is_that_of_a_hooked_run(own, side, positions):
    bridge, prompts = own
    prompts = even(prompts) if positions == "all" else prompts
    other = type(prompts)(**vars(prompts) | {"tokens": prompts.tokens.roll(1, 0)})
    where = torch.arange(prompts.tokens.shape[1]).expand(len(prompts), -1)
    mask = torch.ones_like(where) if positions == "all" else where == prompts.positions[positions][:, None]
    for how in HOWS:
        if positions == "end" and how in ("mean", "resample"):  # the hooked run knows equal positions only
            continue
        for label in ("L0H1", "L1H2.1", "L1.mlp") if positions == "all" and how != "exchange" else ("L1H2.1",):
            part = as_part(label)
            given = dict(how=how, positions=positions, other=other if how == "exchange" else None)
            given["at"] = side and f"{READER}.{side}"
            found = [ablate(bridge, label, prompts, metric, **given) for metric in ("logit_diff", LOOK)]
            expected = hooked(bridge, prompts, part, how, other, side, mask)
            for frame, value in zip(found, expected):
                assert frame["value"].item() == pytest.approx(float(value), abs=2e-4), (how, label)
            if side is None and positions == "all":
                assert abs(found[0]["change"].item()) > 5e-4, "an ablation without effect would prove nothing"


def _without(head):
    def zero(value):
        value[:, :, head] = 0

    return zero


def test_a_set_is_taken_out_together_and_components_sum_to_their_head(own):
    bridge, prompts = own
    d_head = bridge.cfg.d_head
    sets = {"head": ["L1H2"], "components": [f"L1H2.{i}" for i in range(d_head)], "both": ["L0H1", "L1H2"]}
    found = ablate(bridge, sets, prompts, how="zero").set_index("what")["value"]
    no_bias = attention_layer(bridge, 1).b_V.abs().max() < 1e-6  # folded into b_O by the model's loading
    assert no_bias and found["head"] == pytest.approx(found["components"], abs=1e-4)
    changes = [(f"blocks.{layer}.attn.hook_z", _without(head)) for layer, head in ((0, 1), (1, 2))]
    expected = logit_difference(run_with(bridge, prompts, changes)[0], prompts).mean()
    assert found["both"] == pytest.approx(float(expected), abs=1e-4)


def test_the_value_bias_is_the_head_s_and_no_component_s(checkpoints):
    bridge, prompts = load_model(checkpoints["gpt2"], processing=Processing(False, False)), random_prompts()
    layer = attention_layer(bridge, 1)
    with torch.no_grad():
        constant = layer.b_V[2] @ layer.W_O[2]
    changes = [("blocks.1.attn.hook_z", _without(2)), ("blocks.1.hook_attn_out", lambda value: value + constant)]
    expected = logit_difference(run_with(bridge, prompts, changes)[0], prompts).mean()
    components = {"components": [f"L1H2.{i}" for i in range(bridge.cfg.d_head)]}
    found = ablate(bridge, components, prompts, how="zero")["value"].item()
    assert found == pytest.approx(float(expected), abs=1e-4)
    assert abs(found - ablate(bridge, "L1H2", prompts, how="zero")["value"].item()) > 1e-3


def test_in_the_planted_model_each_inhibiting_component_has_its_row():
    planted = plant()
    mover, inhibition = planted.roles["mover"][0], [str(c) for c in planted.components["inhibition"]]
    given = dict(metric=attention(mover, "IO", "S1"), at=f"{mover}.query", how="zero")
    single = ablate(planted.bridge, inhibition, build_ioi(planted.tokenizer, 40), **given)
    assert len(single) == len(inhibition) and single["n"].eq(40).all()
    assert single[["layer", "head", "component"]].notna().all(axis=None)


BAD = {
    "is no reader's input": (OptionError, dict(at="L2H1")),
    "no 'halve' ablation": (OptionError, dict(how="halve")),
    "does not read L1H0": (LabelError, dict(at="L1H1.query")),
    "not in": (LabelError, dict(what="L1H40")),
    "components are": (LabelError, dict(what="L1H0.999")),
    "more than once": (OptionError, dict(what={"set": ["L1H0", "L1H0.1"]})),
    "Nothing to ablate": (OptionError, dict(what=[])),
    "is not a head": (LabelError, dict(what="8")),
    "Other prompts are given": (OptionError, dict(how="exchange")),
    "Prompt 1 has 6 tokens": (OptionError, dict(how="mean", positions="all", uneven=True)),
    "No position 'S9'": (TaskError, dict(positions="S9")),
    "not \\(6, 1\\)": (OptionError, dict(metric=lambda outcome: outcome.logits)),
    "is NaN on prompt": (OptionError, dict(metric=lambda outcome: outcome.logits[..., 0] * float("nan"))),
    "There is no metric": (OptionError, dict(metric="beauty")),
    "A metric is one name": (OptionError, dict(metric=["logit_diff"])),
    "L1H40 is not in": (LabelError, dict(metric=attention("L1H40", "IO"))),
    "'L2H1' is no reader's": (OptionError, dict(at=READER)),
    "one named position": (OptionError, dict(positions=["end"])),
    "The mean over a single prompt": (OptionError, dict(single=True)),
    "there must be two at least": (OptionError, dict(single=True, how="resample")),
    "Prompts are a PromptSet": (TaskError, dict(prompts=["w1 w2", "w3 w4"])),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_requests_are_one_clear_error_each(own, message):
    bridge, prompts = own
    error, given = BAD[message][0], dict(BAD[message][1])
    prompts = prompts if given.pop("uneven", False) else even(prompts)
    prompts = prompts.select([0]) if given.pop("single", False) else prompts
    prompts = given.pop("prompts", prompts)
    with pytest.raises(error, match=message):
        ablate(bridge, given.pop("what", "L1H0"), prompts, **given)


def test_prompts_of_the_models_tokenizer_and_of_no_more_tokens_than_it_has_positions(checkpoints):
    bridge, long = load_model(checkpoints["gpt2"]), random_prompts(n_pos=33)
    mine = replace(random_prompts(), recipe=replace(long.recipe, tokenizer_hash=tokenizer_hash(bridge.tokenizer)))
    for ask in (
        lambda prompts: ablate(bridge, "L1H0", prompts, how="zero"),
        lambda prompts: patch(bridge, prompts, prompts, sites="z", positions="end"),
        lambda prompts: steer(bridge, prompts, "L1H0.0", 1),
    ):
        assert len(ask(mine))
        with pytest.raises(TaskError, match="33 tokens"):
            ask(long)
        with pytest.raises(TaskError, match="another tokenizer"):
            ask(replace(mine, recipe=replace(mine.recipe, tokenizer_hash="0123456789abcdef")))


def test_other_prompts_may_be_padded_to_another_width(own):
    bridge, prompts = own

    def wider(prompts):
        padded = {name: torch.nn.functional.pad(getattr(prompts, name), (0, 3)) for name in ("tokens", "mask")}
        return replace(prompts, **padded)

    other = replace(prompts, tokens=torch.where(prompts.mask, prompts.tokens.flip(1), 1))
    pairs = ((prompts, other), (prompts, wider(other)), (wider(prompts), other))
    values = [ablate(bridge, "L1H2", mine, how="exchange", other=theirs)["value"].item() for mine, theirs in pairs]
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


def test_other_prompts_must_fit_and_the_model_must_not_be_training(own):
    bridge, prompts = own
    with pytest.raises(OptionError, match="6 prompts and 2 others"):
        ablate(bridge, "L1H0", prompts, how="exchange", other=prompts.select([0, 1]))
    with pytest.raises(OptionError, match="tokens and the other one"):
        ablate(bridge, "L1H0", prompts, how="exchange", other=even(prompts))
    bridge.train()
    with pytest.raises(ModelError, match="training mode"):
        ablate(bridge, "L1H0", prompts, how="zero")
    bridge.eval()
