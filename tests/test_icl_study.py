"""Chapter 4's experiments on a model that ships: all from the seed, choices and scores on other prompts."""

import pandas as pd
import pytest
import torch

from talking_heads_utils import metrics
from talking_heads_utils.errors import OptionError, TaskError
from talking_heads_utils.experiments.icl import curves, study
from talking_heads_utils.experiments.icl.pairing import OTHER_FUNCTION
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import share


@pytest.fixture(scope="module")
def s():
    return study.subject("mini-icl")


def test_only_models_of_numbers_are_subjects():
    with pytest.raises(TaskError, match="mini-token never saw a number"):
        study.subject("mini-token")


def test_parts_of_the_prompts_are_apart(s):
    texts = [set(s.prompts(50, part=part).texts) for part in range(3)]
    assert not texts[0] & texts[1] and not texts[1] & texts[2]
    assert s.prompts(5, part=1).texts == s.prompts(5, part=1).texts
    held = s.examples(40, 3, held_out=True)
    assert s.family.held_out[held.function].all() and not s.family.held_out[s.examples(40, 3).function].any()


def test_questions_have_no_candidates(s):
    prompts = s.prompts(6)
    assert prompts.distractors.shape == (6, 0)
    for measure in (metrics.correct, metrics.logit_difference):
        with pytest.raises(TaskError, match="no wrong answers"):
            measure(torch.zeros(6, s.bridge.cfg.d_vocab), prompts)


def test_patching_before_anything_happened_changes_nothing(s):
    """Before layer 0 the last token is a comma, the same in both: a patch there changes next to nothing."""
    table = study.patch_table(s, {"one": [Head(1, 0)]}, n=12, b=OTHER_FUNCTION)
    cells = table.set_index(["set", "layer"])
    assert cells.loc[("nothing", -1), "exact"] > 0.8
    assert cells.loc[("nothing", -2), "exact"] == cells.loc[("one", -2), "exact"]
    assert cells.loc[("nothing", 0), "exact"] == pytest.approx(cells.loc[("nothing", -2), "exact"], abs=0.1)
    assert set(table["n"]) == {12}
    exact, low, high = cells.loc[("nothing", -1), ["exact", "low", "high"]]
    assert (exact, low, high) == pytest.approx(share(torch.arange(12) < round(12 * exact))[:3])


def test_what_is_copied_is_what_a_says_with_the_same_heads_out(s):
    """A whole stream that is patched at the last layer's end would be A's answer; A's own row copies itself."""
    table = study.patch_table(
        s, {"many": [Head(layer, h) for layer in (1, 2) for h in range(4)]}, n=12, b=OTHER_FUNCTION
    )
    cells = table.set_index(["set", "layer"])
    for name in ("nothing", "many"):
        assert cells.loc[(name, -1), "copied"] == 1
        assert 0 <= cells.loc[(name, -2), "copied"] < 0.5
    assert cells.loc[("many", -1), "exact"] < 0.9, (
        "with so much out, A's answer is often wrong and is followed all the same"
    )


def test_the_posts_own_prompts_with_the_baseline_it_lacks(s):
    """The plain row equals plain runs of both prompts; the last layers carry over what A says."""
    table = study.post_table(s)
    assert table["out of A"].iloc[0] == "nothing" and table.columns.tolist()[3:] == ["0", "1", "2", "3"]
    a, b = (s.encode([q]) for q in study.post_questions())
    numbers = study.numbers_of(s.tokenizer, 200)
    with torch.no_grad():
        for prompts, said in ((a, table["A's top five"].iloc[0].split()[0]), (b, table["B plain"].iloc[0])):
            logits = s.bridge(prompts.tokens)[0, -1, numbers.ids]
            assert int(numbers.read(logits)) == int(said)
    assert study.post_sets(s) == study.layer_sets(s), "the post's heads are Llama's"


def test_removal_ends_with_one_head_and_starts_whole(s):
    table = study.removal_table(s, n=16, n_random=2)
    plain = table[table["out"] == 0]
    assert plain["exact"].nunique() == 1 and plain["exact"].iloc[0] > 0.8 and set(plain["head"]) == {"nothing"}
    assert table["out"].max() == 15 and set(table["order"]) == {"by effect", "random 1", "random 2"}
    assert (table["low"] < table["high"]).all(), "exact answers are hits: no interval without a width"
    last = table[table["out"] == 15]["exact"]
    assert last.max() < 0.5


def test_compensation_and_pairs_leave_out_what_is_out(s):
    strong = study.strongest(s, 3, n=16)
    rest = study.others(s, strong)
    assert len(rest) == 3 and not set(rest) & set(strong)
    sets = study.random_sets(s, strong, 2)
    table = study.compensation_table(s, {"strong": strong, **sets}, n=16)
    assert not set(table[table["set"] == "strong"]["head"]) & set(map(str, strong))
    first = min(head.layer for head in strong)
    before = table[(table["set"] == "strong") & (table["head"].str[1].astype(int) <= first)]
    assert before["fixed"].abs().max() < 1e-4 and before["attention"].max() < 1e-4, "nothing below can change"
    assert not before["above"].any() and table[table["set"] == "strong"]["above"].sum() == 13 - len(before)
    free = table[["free_low", "free", "free_high"]]
    assert free.eq(free.T.cummax().T).all(axis=None) and before["free"].abs().max() > 1e-3, "only the yardstick did"
    assert len(study.interaction_table(s, strong, n=16)) == 3


def test_belief_of_the_model_and_of_readers_stand_on_the_same_lists(s):
    belief = study.belief(s, n=30)
    assert belief.model.shape == belief.readers.shape[1:] == (30, study.N_EXAMPLES)
    assert belief.readers.shape[0] == len(curves.TRUSTS)
    assert belief.model.mean(0)[-1] > belief.model.mean(0)[0] + 3


def test_one_example_adds_to_itself(s):
    table = study.additivity_table(s, n=6, counts=(1, 3))
    assert table["ratio"].iloc[0] == pytest.approx(1, abs=1e-6) and table["cosine"].iloc[0] == pytest.approx(
        1, abs=1e-6
    )
    with pytest.raises(OptionError, match="have 12 examples"):
        study.additivity_table(s, n=6, counts=(13,))


def test_parts_probes_and_attention(s):
    parts = study.layer_table(s, n=40)
    assert parts["part"].tolist() == ["nothing", *["attention"] * 4, *["MLP"] * 4]
    assert parts.iloc[0]["exact"] == parts["exact"].max() and (parts["near"] >= parts["exact"]).all()
    assert (parts["low"] < parts["high"]).all() and (parts["parity_low"] < parts["parity_high"]).all()
    probes = study.probe_table(s, n=200)
    assert set(probes["label"]) == {"a", "b", "parity", "size"} and probes["layer"].max() == 4
    at_embedding = probes[(probes["layer"] == 0)]
    assert at_embedding["selectivity"].abs().max() < 0.2, "the last token is a comma: before layer 0 it knows nothing"
    looks = study.attention_table(s, n=8)
    assert len(looks) == 16 and (looks["to_y"] + looks["to_x"] <= 1 + 1e-5).all()
    prompts = s.prompts(8, part=8)
    _, cache = s.bridge.run_with_cache(prompts.tokens)
    pattern = cache["blocks.2.attn.hook_pattern"][:, 1]
    by_hand = []
    for i in range(8):
        at = {name: int(p[i]) for name, p in prompts.positions.items()}
        asked = [at[f"ask_{j}"] for j in range(1, 12)] + [at["end"]]
        seen = [sum(pattern[i, place, at[f"y_{k}"]] for k in range(j)) for j, place in enumerate(asked, 1)]
        by_hand.append(torch.stack(seen).mean())
    assert looks.set_index("head").loc["L2H1", "to_y"] == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-5)


def test_the_same_seed_gives_the_same_tables(s):
    pd.testing.assert_frame_equal(study.layer_table(s, n=10), study.layer_table(study.subject("mini-icl"), n=10))


def test_the_sets_of_the_post_are_taken_where_the_model_has_llama_s_shape(s):
    from types import SimpleNamespace

    llama = study.post_sets(SimpleNamespace(shape=(32, 32)))
    assert [str(head) for head in llama["five heads"]] == ["L10H5", "L10H7", "L13H6", "L13H27", "L14H18"]
    assert len(llama["layers 10, 11, 13, 15"]) == 4 * 32 and {h.layer for h in llama["layers 10, 11"]} == {10, 11}
    assert study.post_sets(s).keys() == study.layer_sets(s).keys()
