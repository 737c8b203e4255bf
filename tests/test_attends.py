"""Where heads attend in running text: by hand, by TransformerLens' own patterns, and on the planted model."""

import pytest
import torch

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.corpus import Corpus
from talking_heads_utils.experiments.inhibition import attends
from talking_heads_utils.experiments.inhibition.prediction import Coefficients
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.known import PLANTED
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.models import load_model
from talking_heads_utils.planted.model import DUPLICATE, plant
from talking_heads_utils.roles import S_INHIBITION


@pytest.fixture(scope="module")
def planted():
    return Context(PLANTED, quick=True)


def made(tokens, word, mention=None, in_list=None) -> Corpus:
    """One window; without ``mention`` every token is a mention of its own."""
    absent = [-1] * len(tokens)
    mention = mention or [i if w >= 0 else -1 for i, w in enumerate(word)]
    return Corpus(*(torch.tensor([part]) for part in (tokens, [0] * len(tokens), word, mention, in_list or absent)))


def test_targets_by_hand():
    """A word of two tokens, a list of two items, and the first word again."""
    text = made([0, 1, 2, 3, 4, 3, 1, 2], [-1, 7, 7, -1, 8, -1, 7, 7], [-1, 0, 0, -1, 1, -1, 2, 2],
                [-1, -1, -1, 0, 0, 0, 0, 0])  # fmt: skip
    found = {name: {q: there[0, q].nonzero().flatten().tolist() for q in range(8)}
             for name, there in attends.targets_in(text).items()}  # fmt: skip
    assert found[attends.EARLIER][0] == found[attends.EARLIER][1] == [] and found[attends.EARLIER][4] == [1, 2, 3]
    assert found[attends.NAMED_TWICE][5] == [] and found[attends.NAMED_TWICE][6] == [1, 2]
    assert found[attends.NAMED_TWICE][7] == [1, 2], "not the earlier token of the same mention"
    assert found[attends.SAME_LIST] == {q: [4] if q > 4 else [] for q in range(8)}
    assert found[attends.SEEN][7] == [1, 2, 4]


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_attention_is_that_of_transformer_lens_own_patterns(checkpoints, family):
    """Sums over targets against loops over its patterns, coefficients against its heads' own writes."""
    bridge = load_model(checkpoints[family])
    c = Context(family, loaded=(bridge, None), own=True)
    generator = torch.Generator().manual_seed(0)
    windows = [made([int(i) for i in torch.randint(1, 49, (12,), generator=generator)],
                    [-1, *(int(i) for i in torch.randint(-1, 3, (11,), generator=generator))],
                    in_list=[-1] * 3 + [0] * 6 + [-1] * 3) for _ in range(3)]  # fmt: skip
    text = Corpus(*(torch.cat(parts) for parts in zip(*(vars(w).values() for w in windows))))
    own, other = Component(1, 2, 0), Component(0, 1, 1)
    run = attends.run_over(c, text, [own], {own: [other]}, "")
    _, cache = bridge.run_with_cache(text.tokens)
    for component in (own, other):
        pattern = cache[f"blocks.{component.layer}.attn.hook_pattern"][:, component.head]
        for window, query in ((0, 11), (1, 7), (2, 3)):
            sums = dict.fromkeys((attends.EARLIER, attends.NAMED_TWICE, attends.SAME_LIST, attends.SEEN), 0.0)
            word, listed = text.word[window].tolist(), text.in_list[window].tolist()
            for key in range(1, query):
                weight = pattern[window, query, key].item()
                twice = word[key] >= 0 and word[: query + 1].count(word[key]) > 1
                same = word[key] >= 0 and listed[key] == listed[query] >= 0
                for name, there in zip(sums, (True, twice, same, twice or same)):
                    sums[name] += weight * there
            for name, expected in sums.items():
                found = run.attention[component.of_head, name][window, query].item()
                assert found == pytest.approx(expected, abs=1e-6), name
            first = run.attention[component.of_head, attends.FIRST_TOKEN][window, query]
            assert first.item() == pytest.approx(pattern[window, query, 0].item(), abs=1e-6)
    weight, key = run.attention[own.of_head, attends.STRONGEST], run.looked_at[own.of_head]
    assert key[0, 11] == 1 + cache["blocks.1.attn.hook_pattern"][0, 2, 11, 1:11].argmax()
    assert weight[0, 11].item() == pytest.approx(cache["blocks.1.attn.hook_pattern"][0, 2, 11, key[0, 11]].item())


def test_the_planted_duplicate_token_head_attends_to_what_is_named_twice(planted):
    """So do the planted S-inhibition heads, and nothing that they are matched to does as much."""
    rows = frame(attends.run(planted))
    assert not rows.duplicated(["component", "matched_to", "target"]).any()
    by = rows[rows["matched_to"] == ""].set_index(["component", "target"])
    for component in ("L1H0.0", "L1H1.0"):
        row = by.loc[component, attends.NAMED_TWICE]
        assert row["share"] > 0.95 > 0.4 > row["even"] and row["low"] <= row["excess"] <= row["high"]
        assert row["p"] < 0.03 and row["n_controls"] == attends.N_CONTROLS and row["control_high"] < row["low"]
    run = planted.kept(attends.text_run)
    duplicate = plant().roles[DUPLICATE][0]
    assert duplicate == Head(0, 0)
    looks = attends.run_over(planted, run.text[:20], [Component(0, 0, 0)], {}, "")
    assert attends.measured(looks, Component(0, 0, 0), attends.NAMED_TWICE).share > 0.95
    shown = attends.contexts(planted)
    assert len(shown) == 2 * attends.N_CONTEXTS and all(row.token and row.attended for row in shown)
    assert any(row.target != "other" and row.attention > 0.9 for row in shown)


def test_controls_are_the_nearest_in_write_energy(planted):
    run = planted.kept(attends.text_run)
    text = run.text[:: attends.EVERY]
    for component, controls in run.controls.items():
        assert len(set(controls)) == attends.N_CONTROLS
        assert not {o.of_head for o in controls} & set(planted.roles.heads(S_INHIBITION))
        read = Coefficients.of(planted.bridge, planted.weights, [component, *controls])
        _, cache = planted.bridge.run_with_cache(text.tokens)
        square = read(cache)[:, attends.FIRST_QUERY :].square().mean((0, 1))
        apart = (square[1:] / square[0]).log().abs()
        assert (apart.diff() > -1e-3).all(), "the nearest first"


def test_p_of_the_mean_over_heads_by_hand():
    others = [[0.0, 0.1], [0.2], *[[0.0]] * 7]
    p, drawn = attends.among_heads([1.0], others, 0)
    assert p == pytest.approx(0.1, abs=0.03) and drawn.max() < 1, "one head of ten"
    p, _ = attends.among_heads([-1.0, -1.0], others, 0)
    assert p == 1
    p, drawn = attends.among_heads([1.0, 1.0], others, 0)
    assert p == pytest.approx(2 / 90, abs=0.015) and len(drawn) == attends.N_DRAWS
