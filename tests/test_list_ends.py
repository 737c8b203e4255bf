"""Lists from the lowest mover's layer on, against plain hooked runs of the whole model."""

from dataclasses import replace

import pytest
import torch
from conftest import random_prompts, run_with

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional import ends as module
from talking_heads_utils.experiments.positional.ends import answered, ends, make_ends
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import plant
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import item_positions


def random_lists(n: int = 6, n_items: int = 4):
    """Random ids of different length, with the named positions of lists."""
    prompts = random_prompts(n)
    places = {"end": prompts.positions["end"]}
    places |= {f"item_{k} first": torch.full((n,), k + 1) for k in range(n_items)}
    info = {"index": [i % n_items for i in range(n)], "wording": ["random"] * n, "order": [laundry.KEPT] * n}
    return replace(
        prompts, positions=places, info=info, recipe=replace(prompts.recipe, task="laundry", n_items=n_items)
    )


@pytest.fixture(params=["planted", "llama"])
def made(request, checkpoints):
    """A model and the ends of lists; movers on two layers."""
    if request.param == "planted":  # a weak channel: 1e-4 means little where scores are in the hundreds
        planted = plant(strength=20.0)
        return planted.bridge, make_ends(planted.bridge, laundry.build_laundry(planted.tokenizer, 4, 8), (
            Head(2, 0), Head(1, 2), Head(2, 1),
        ))  # fmt: skip
    bridge = load_model(checkpoints["llama"])
    return bridge, make_ends(bridge, random_lists(), (Head(2, 3), Head(1, 0)))


def hooked(bridge, made, stream):
    """Candidates' logits and the movers' attention among the items, of a plain run of the whole model with another
    stream at ``end``."""
    rows, end = torch.arange(len(made)), made.prompts.positions["end"]
    items, candidates = item_positions(made.prompts)
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]

    def put(value):
        value[rows, end] = stream.to(value)

    logits, seen = run_with(bridge, made.prompts, [(f"blocks.{made.layer}.hook_resid_pre", put)], patterns)
    looks = [seen[patterns[mover.layer]][rows, mover.head, end].gather(1, items) for mover in made.movers]
    return logits.gather(1, candidates), torch.stack([look / look.sum(-1, keepdim=True) for look in looks], 1)


def test_logits_and_attention_are_those_of_hooked_runs(made, monkeypatch):
    bridge, made = made
    noise = torch.randn(len(made), 3, made.stream.shape[1], generator=torch.Generator().manual_seed(1))
    noise[:, 0] = 0
    stream = made.stream[:, None] + 0.5 * made.stream.std() * noise
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * made.forward.width * 2)  # two of the three variants at once
    logits, attention = made.logits(stream), made.attention(stream)
    assert made.layer == 1
    for k in range(3):
        expected = hooked(bridge, made, stream[:, k])
        torch.testing.assert_close(logits[:, k], expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(attention[:, k], expected[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attention[:, 1], attention[:, 0], atol=1e-3)
    some = torch.tensor([4, 1])
    both = made.both(stream[some], some)
    torch.testing.assert_close(both[0], logits[some])
    torch.testing.assert_close(both[1].exp(), attention[some])
    torch.testing.assert_close(made.right(logits[some], some)[:, 0], made.right(logits)[some, 0])
    with pytest.raises(OptionError, match="2 lists take"):
        made.logits(stream, slice(0, 2))


def test_a_tie_is_no_answer():
    logits = torch.tensor([[[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [3.0, 2.0, 0.0]]])
    assert answered(logits, torch.tensor([1])).tolist() == [[True, False, False]]


def test_the_planted_model_is_right_and_its_movers_attend_to_the_answer():
    c = Context(PLANTED, quick=True)
    lists = Lists(Part.SELECTION, 4, 40)
    found = ends(c, lists)
    assert found is ends(c, Lists(Part.SELECTION, 4, 40)), "made once"
    logits, attention = found.both(found.stream[:, None])
    assert found.right(logits).float().mean() > 0.9
    assert (attention[:, 0].argmax(-1) == found.index[:, None]).float().mean() > 0.9
    with pytest.raises(OptionError, match="one mover"):
        make_ends(c.bridge, found.prompts, ())
