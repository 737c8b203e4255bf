"""Chapter 4's experiments on a model that ships: all from the seed, choices and scores on other prompts."""

import pandas as pd
import pytest
import torch

from talking_heads_utils import metrics
from talking_heads_utils.errors import NotApplicable, OptionError, TaskError
from talking_heads_utils.experiments.claims import CLAIMS, ClaimId
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import curves, measures, patching, study
from talking_heads_utils.experiments.icl.experiments import EXPERIMENTS
from talking_heads_utils.experiments.icl.pairing import OTHER_FUNCTION, post_questions
from talking_heads_utils.experiments.icl.patching import PATCHED, A, B
from talking_heads_utils.experiments.icl.task import CHOOSES, N_EXAMPLES, task_of
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import numbers_of
from talking_heads_utils.stats import share_in_clusters


@pytest.fixture(scope="module")
def asked():
    run = Context("mini-icl")
    return run, task_of(run)


def test_only_models_of_numbers_are_asked():
    with pytest.raises(NotApplicable):
        task_of(Context("mini-token"))


def test_parts_of_the_prompts_are_apart(asked):
    _, task = asked
    texts = [{q.text() for q in task.draw(50, part=part).questions} for part in range(CHOOSES + 2)]
    assert not texts[0] & texts[1] and not texts[CHOOSES] & texts[CHOOSES + 1]
    assert task.draw(5, part=1).questions == task.draw(5, part=1).questions
    held, trained = (task.draw(40, part=1, group=group).clusters[:, 0] for group in (HELD_OUT, None))
    assert task.functions.held_out[held].all() and not task.functions.held_out[trained].any()


def test_clusters_are_functions_and_answers_are_right(asked):
    drawn = asked[1].draw(60, part=1)
    for q, right, clusters in zip(drawn.questions, drawn.right, drawn.clusters):
        a, b = asked[1].functions.functions[clusters[0]].tolist()
        assert right.tolist() == [a * x + b for x in (*dict(q.pairs), q.x)] and q.function == (a, b)
        assert len(set(clusters.tolist())) == 1


def test_questions_have_no_candidates(asked):
    run, task = asked
    prompts = task.encode(run, task.draw(6, part=0).questions)
    assert prompts.distractors.shape == (6, 0)
    for measure in (metrics.correct, metrics.logit_difference):
        with pytest.raises(TaskError, match="no wrong answers"):
            measure(torch.zeros(6, run.bridge.cfg.d_vocab), prompts)


def test_intervals_are_over_functions(asked):
    run, task = asked
    reader, prompts = study.ask(run, task, 40, part=6)
    rows = study.layers_out(run, task, 40)
    functions = torch.tensor([1000 * a + b for a, b in zip(prompts.info["a"], prompts.info["b"])])
    _, which = functions.unique(return_inverse=True)
    assert all((which[:, None] == which).eq(reader.clusters[:, None] == reader.clusters).flatten().tolist())
    right = reader.answers.read(reader.logits([[Head(0, h) for h in range(4)]]))[:, 1] == reader.right
    (row,) = (row for row in rows if (row.part, row.layer) == ("attention", 0))
    assert (row.exact, row.low, row.high) == pytest.approx(share_in_clusters(right, functions)[:3])


def test_patching_before_anything_happened_changes_nothing(asked):
    """Before layer 0 the last token is a comma, the same in both: a patch there changes next to nothing."""
    rows = patching.patches(*asked, {"one": [Head(1, 0)]}, n=12, b=OTHER_FUNCTION)
    cells = {(row.out, row.run, row.layer): row for row in rows}
    plain = cells[("nothing", B, None)]
    assert cells[("nothing", A, None)].exact > 0.8 and plain.exact == cells[("one", B, None)].exact
    assert cells[("nothing", PATCHED, 0)].exact == pytest.approx(plain.exact, abs=0.1)
    assert {row.n for row in rows} == {12} and all(row.low < row.high for row in rows)


def test_what_is_copied_is_what_a_says_with_the_same_heads_out(asked):
    """With so much out, A's answer is often wrong and is followed all the same."""
    many = [Head(layer, h) for layer in (1, 2) for h in range(4)]
    rows = patching.patches(*asked, {"many": many}, n=12, b=OTHER_FUNCTION)
    for name in ("nothing", "many"):
        of = {row.run: row for row in rows if row.out == name}
        assert of[A].copied == 1 and 0 <= of[B].copied < 0.5 and of[PATCHED].layer == 3
    assert of[A].exact < 0.9


def test_the_posts_own_prompts_with_the_baseline_it_lacks(asked):
    """The plain row equals plain runs of both prompts; the last layers carry over what A says."""
    run, task = asked
    rows = patching.post_patches(run, task)
    assert rows[0].out == "nothing" and [row.layer for row in rows[:4]] == [0, 1, 2, 3]
    a, b = (task.encode(run, [q]) for q in post_questions())
    numbers = numbers_of(run.tokenizer, 200)
    with torch.no_grad():
        for prompts, said in ((a, rows[0].a_top_five.split()[0]), (b, rows[0].b_plain)):
            assert int(numbers.read(run.bridge(prompts.tokens)[0, -1, numbers.ids])) == int(said)
    with pytest.raises(NotApplicable):
        patching.post_patches(Context("mini-icl-noisy"), task_of(Context("mini-icl-noisy")))


def test_the_sets_of_the_post_are_taken_where_the_model_has_llama_s_shape():
    llama = patching.post_sets((32, 32))
    assert [str(head) for head in llama["five heads"]] == ["L10H5", "L10H7", "L13H6", "L13H27", "L14H18"]
    assert len(llama["layers 10, 11, 13, 15"]) == 4 * 32 and {h.layer for h in llama["layers 10, 11"]} == {10, 11}
    assert patching.post_sets((4, 4)) == patching.layer_sets((4, 4))


def test_removal_ends_with_one_head_and_starts_whole(asked):
    rows = frame(study.removal(*asked, n=16, n_random=2))
    plain = rows[rows["out"] == 0]
    assert plain["exact"].nunique() == 1 and plain["exact"].iloc[0] > 0.8 and plain["head"].isna().all()
    assert rows["out"].max() == 15 and rows.groupby(["order", "draw"]).ngroups == 3
    assert (rows["low"] < rows["high"]).all(), "exact answers are hits: no interval without a width"
    assert rows[rows["out"] == 15]["exact"].max() < 0.5


def test_backups_and_pairs_leave_out_what_is_out(asked):
    strong = study.strongest(*asked, 3, n=16)
    rest = study.others(asked[0], strong)
    assert len(rest) == 3 and not set(rest) & set(strong)
    table = frame(study.backups(*asked, strong, n=16))
    real = table[table["out"] == study.STRONGEST]
    assert len(real) == 13 and not set(real["head"]) & set(map(str, strong))
    first = min(head.layer for head in strong)
    before = real[real["head"].str[1].astype(int) <= first]
    assert before["fixed"].abs().max() < 1e-4 and before["attention"].max() < 1e-4, "nothing below can change"
    assert not before["above"].any() and real["above"].sum() == 13 - len(before)
    assert (real["free_low"] <= real["free"]).all() and (real["free"] <= real["free_high"]).all()
    assert before["free"].abs().max() > 1e-3, "only the yardstick did"
    pairs = study.pairs(*asked, strong, n=16)
    assert [row.heads for row in pairs] == [study.STRONGEST] * 3 + [study.OTHERS] * 3


def test_belief_of_the_model_and_of_predictors_stand_on_the_same_lists(asked):
    belief = study.belief(*asked, 30)
    assert belief.model.shape == belief.bayes.shape[1:] == (30, N_EXAMPLES) and len(belief.clusters) == 30
    assert len(belief.bayes) == len(curves.TRUSTS)
    assert belief.model.mean(0)[-1] > belief.model.mean(0)[0] + 3


def test_one_example_adds_to_itself(asked):
    one, _ = study.additivity(*asked, 6, (1, 3))
    assert one.ratio == pytest.approx(1, abs=1e-6) == one.low == one.high and one.cosine == pytest.approx(1, abs=1e-6)
    with pytest.raises(OptionError, match="have 12 examples"):
        study.additivity(*asked, 6, (13,))


def test_parts_and_probes(asked):
    parts = frame(study.layers_out(*asked, 40))
    assert parts["part"].tolist() == ["nothing", *["attention"] * 4, *["mlp"] * 4]
    assert parts["layer"].isna().tolist() == [True] + [False] * 8
    assert parts.iloc[0]["exact"] == parts["exact"].max() and (parts["near"] >= parts["exact"]).all()
    assert (parts["low"] < parts["high"]).all() and (parts["parity_low"] < parts["parity_high"]).all()
    probes = frame(study.probes(*asked, 200))
    assert set(probes["label"]) == {"a", "b", "parity", "size"} and probes["layer"].max() == 4
    at_embedding = probes[probes["layer"] == 0]
    assert at_embedding["selectivity"].abs().max() < 0.2, "the last token is a comma: before layer 0 it knows nothing"


def test_the_same_seed_gives_the_same_rows(asked):
    run = Context("mini-icl")
    assert study.layers_out(*asked, 10) == study.layers_out(run, task_of(run), 10)


def test_measures_choose_nothing_on_the_prompts_that_they_measure():
    """Of many heads some look back a little more by chance: none of them is told of. Nor is the best of the laws."""
    noise = 0.2 + 0.02 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    looks = pd.DataFrame(dict(to_y=noise, low=noise - 0.03, high=noise + 0.03, to_x=0.5, even=0.2, n=48))
    found = measures.looks_back(looks)
    assert (found.value, found.control, found.n) == (0, 1, 40)
    assert measures.looks_back(looks.assign(low=0.45)).value == 1
    laws = pd.DataFrame([dict(law=law, error=k, low=k, high=k, n=9) for k, law in enumerate(curves.LAWS)])
    assert measures.line_in_n(laws[::-1]).control == measures.line_in_n(laws).control == 1
    part = dict(near_low=0.9, parity=0.5, parity_low=0.4, parity_copied=0.6)
    parts = pd.DataFrame(
        [part | dict(part="mlp"), part | dict(part="mlp", near_low=0.1), part | dict(part="attention")]
    )
    assert (measures.in_parts(parts).value, measures.in_parts(parts).control) == (0.5, 1)


def test_every_claim_is_measured_on_the_rows_of_its_experiment():
    run = Context("mini-icl", quick=True)
    tables = {e.name: e.table(run) for e in EXPERIMENTS if e.of_own}
    claims = [claim for claim in CLAIMS if claim.chapter == 4]
    assert len(claims) == 9
    for claim in claims:
        found = claim.measure(tables[claim.experiment])
        assert found.n > 0 and (claim.id == ClaimId.MOVES_UP or 0 <= found.control), claim.id
    adds = measures.adds(tables["additivity"])
    assert adds.low < adds.value < adds.high and adds.what.endswith("at_12_examples")
