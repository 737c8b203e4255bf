"""What edits cost: layers above an edit against whole runs of the edited model, losses and accuracies by hand."""

import gguf_files
import pytest
import torch
from conftest import made, random_prompts

from talking_heads_utils.editing import edit, weights_to_edit
from talking_heads_utils.edits.edits import OV, QK, REMOVE, SCALE, Change, new_edit
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import baked, costs, gains
from talking_heads_utils.experiments.editing.above import prepare
from talking_heads_utils.experiments.editing.baked import By
from talking_heads_utils.experiments.editing.costs import What
from talking_heads_utils.experiments.editing.gains import EditRow, Winner, Winners
from talking_heads_utils.experiments.editing.moves import Extent, Family, edit_of, parse
from talking_heads_utils.experiments.list_prompts import Part
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.labels import Component
from talking_heads_utils.models import load_model

EDITS = (
    [Change(Component(1, 2, 0), OV, SCALE, 3.0), Change(Component(2, 0, 1), QK, SCALE, -2.0)],
    [Change(Component(0, 1, 0), OV, REMOVE), Change(Component(0, 1, 2), OV, SCALE, 2.5)],
    [Change(Component(2, 1, 0), QK, SCALE, 4.0)],
)


@pytest.fixture
def ready(case):
    """A model, its prompts, edits of different first layers, and the layers that they reach."""
    bridge, prompts = case
    edits = [new_edit(weights_to_edit(bridge), changes) for changes in EDITS]
    return bridge, prompts, edits, prepare(bridge, prompts.select([0, 1]), edits)


@torch.no_grad()
def whole(bridge, tokens, changes=()):
    with edit(bridge, changes):
        return bridge.run_with_cache(tokens)


def test_layers_above_equal_whole_runs_of_the_edited_model(ready):
    bridge, prompts, edits, above = ready
    end, rows = prompts.positions["end"], torch.arange(len(prompts))
    everywhere = list(above.runs(prompts.tokens, end, everywhere=True, patterns=True))
    at_end = list(above.runs(prompts.tokens, end))
    assert len(everywhere) == len(at_end) == 1 + len(edits) and not at_end[0].patterns
    untouched = whole(bridge, prompts.tokens)[0]
    for changes, all_of_it, last in zip([(), *edits], everywhere, at_end):
        logits, cache = whole(bridge, prompts.tokens, changes)
        for row, k in enumerate(end.tolist()):
            own = above.plain.logits(all_of_it.final)[row, : k + 1]
            torch.testing.assert_close(own, logits[row, : k + 1], atol=5e-4, rtol=1e-4)
        torch.testing.assert_close(above.plain.logits(last.final)[:, 0], logits[rows, end], atol=5e-4, rtol=1e-4)
        for layer, pattern in all_of_it.patterns.items():
            expected = cache[f"blocks.{layer}.attn.hook_pattern"][rows, :, end]
            torch.testing.assert_close(pattern, expected, atol=1e-4, rtol=0)
        if changes and bridge.cfg.model_name != "planted":
            assert (logits - untouched).abs().max() > 1e-2, "an edit without effect would prove nothing"
    torch.testing.assert_close(whole(bridge, prompts.tokens)[0], untouched, atol=0, rtol=0)


def test_loss_and_divergence_on_text_by_hand(ready):
    bridge, prompts, edits, above = ready
    tokens = prompts.tokens[:5]
    found = costs.on_text(above, tokens, [5, 2, 3], patterns=True)
    plain = whole(bridge, tokens)[0].log_softmax(-1)[:, :-1]
    for changes, own, n in zip(edits, found, (5, 2, 3)):
        logits, cache = whole(bridge, tokens, changes)
        after = logits.log_softmax(-1)[:, :-1]
        kl = (plain.exp() * (plain - after)).sum(-1).mean(1)
        losses = [-p.gather(-1, tokens[:, 1:, None])[..., 0].mean(1) for p in (plain, after)]
        for value, expected in zip((own.kl, own.before, own.loss), (kl, *losses)):
            assert len(value) == n
            torch.testing.assert_close(value.float(), expected[:n], atol=5e-4, rtol=1e-4)
        last = [c["blocks.2.attn.hook_pattern"][:n, :, -1] for c in (whole(bridge, tokens)[1], cache)]
        torch.testing.assert_close(own.moved[:, 2], (last[1] - last[0]).abs().sum(-1) / 2, atol=1e-4, rtol=0)


def winner(text, family, gain):
    return Winner(family, Extent.SINGLE, None, parse(text), gain, gain, 9)


def test_costs_of_the_planted_model_are_those_of_its_heads(monkeypatch):
    some = (("L1H3 x 0", Family.DIRECT, 2.0), ("L2H0 x 0", Family.MOVERS, 1.0), ("L1H4 x 3", Family.INTO_QUERIES, 0.5))
    monkeypatch.setattr(gains, "found", lambda c: Winners(tuple(winner(*of) for of in some), ()))
    table = frame(costs.run_costs(Context("planted", quick=True))).set_index(["edit", "what"]).sort_index()
    assert set(table.index.get_level_values("what")) == set(What) - {What.WORDS}
    decoy = table.loc["L1H4 x 3"]
    assert decoy["change"].abs().max() < 1e-4, "a head that nobody reads costs nothing"
    noise = table.loc[("L1H3 x 0", What.PATTERNS)].set_index("of")
    assert {"L2H0", "L2H1"} == set(noise["change"].nlargest(2).index) and noise.loc["L2H3", "change"] < 1e-6
    assert table.loc[("L1H3 x 0", What.TEXT_KL), "low"] > 0.1
    one_mover = table.loc[("L2H0 x 0", What.IOI)]
    assert one_mover["before"] == 1.0 and one_mover["n"] == 40
    assert ("L2H0 x 0", What.PATTERNS) not in table.index, "no head reads above the last layer"


def test_every_edit_that_was_tried_has_its_gain_and_its_loss_of_text():
    c = Context("planted")
    rows = [
        edit_row(name, family, draw, part, n_items, gain)
        for name, family, draw, own in (("L1H3 x 0", "direct", None, 8.0), ("L1H4 x 2", "random", 3, 0.0))
        for part in (Part.HELD_OUT, Part.NEW_OBJECTS)
        for n_items, gain in ((3, 99.0), (4, own), (8, own + 2))
    ]
    c.finished = {"edit-gains": frame(rows)}.get
    noise, decoy = costs.run_tried(c)
    assert (noise.gain, noise.n, noise.draw, decoy.draw) == (9.0, 200, None, 3)
    assert noise.high - noise.gain == pytest.approx(4 / 2**0.5) == noise.gain - noise.low
    assert noise.text_loss < 0 and noise.text_high < 0 and abs(decoy.text_loss) < 1e-4
    (alone,) = costs.on_text(prepare(c.bridge, c.ioi(20), [edit_of(c, parse("L1H3 x 0"))]),
                             costs.blocks_of_text(c, costs.N_TOKENS_TRIED), [99])  # fmt: skip
    assert noise.text_loss == pytest.approx(float((alone.loss - alone.before).mean()), abs=1e-4)


def edit_row(edit, family, draw, part, n_items, gain):
    return made(EditRow, edit=edit, family=family, extent="whole_head", draw=draw, part=part, n_items=n_items,
                gain=gain, low=gain - 4, high=gain + 4, n=100)  # fmt: skip


def test_the_baked_edit_does_the_same_in_plain_transformers(monkeypatch):
    monkeypatch.setattr(gains, "found", lambda c: Winners((winner("L1H0 x 0", Family.MOVERS, 1.0),), ()))
    table = frame(baked.run(Context("mini-token", quick=True)))
    for _, rows in table.groupby("n_items"):
        ours, theirs = (rows[rows["by"] == by].iloc[0] for by in By)
        assert ours["apart"] == 0 and 0 < theirs["apart"] < 1e-3
        for name in ("before", "after", "gain", "low", "high", "n"):
            assert ours[name] == theirs[name]
        assert ours["gain"] == pytest.approx(100 * (ours["after"] - ours["before"])) and ours["n"] == 20


def test_transformers_reads_the_gguf_file_that_came(tmp_path):
    file = gguf_files.write(gguf_files.build("llama"), tmp_path / "model.gguf", "Q4_1")
    prompts = random_prompts()
    (found,) = baked.by_transformers(baked._source(Context(str(file))), [prompts])
    torch.testing.assert_close(found, baked.by_package(load_model(file), prompts), atol=1e-4, rtol=1e-4)
