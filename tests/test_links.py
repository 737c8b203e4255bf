"""What is read from weights alone: links, listeners, bases, rivals, predictions. Known answers, and a second route."""

from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from talking_heads_utils.errors import LabelError, NotApplicable, OptionError
from talking_heads_utils.experiments import store
from talking_heads_utils.experiments.catalogue import chapters_of
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.dealt import names_within_layers
from talking_heads_utils.experiments.inhibition import basis, links, listeners, prediction, rivals
from talking_heads_utils.experiments.rows import rows as rows_of
from talking_heads_utils.experiments.run import chosen, reproduce
from talking_heads_utils.experiments.weight_worlds import CircuitWorld
from talking_heads_utils.files import GPT2_VARIABLE
from talking_heads_utils.known import GPT2_WEIGHTS
from talking_heads_utils.labels import Head
from talking_heads_utils.models import load_model
from talking_heads_utils.roles import IOI_LINKS, NAME_MOVER, S_INHIBITION, Link, Roles
from talking_heads_utils.scores.distance import scores_at_distances
from talking_heads_utils.scores.scores import compute_scores
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.checkpoints import load_head_weights

PAIRS = ((Head(0, 1), Head(2, 0)), (Head(0, 1), Head(2, 3)), (Head(1, 2), Head(2, 0)), (Head(1, 2), Head(2, 3)))
LINK = Link("a", "b", "V", PAIRS)
WORLDS = {
    "planted": CircuitWorld(n_backups=3),
    "none": CircuitWorld(cosine=0.0, n_backups=3),
    "everyone": CircuitWorld(everyone=True, n_backups=3),
    "spread": CircuitWorld(aligned=False, n_backups=3),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    weights, roles = WORLDS[request.param].plant(seed=3)
    return request.param, weights, roles, compute_scores(weights, n_random=2)


@pytest.fixture(scope="module")
def scored(small):
    return small, compute_scores(small)


def dense_best(weights, writer, reader, kind):
    """The largest score of any component, by the SVD of the whole OV matrix and the whole reading matrix."""
    kv = weights.kv_index
    V = torch.linalg.svd(weights.W_V[writer.layer, kv[writer.head]] @ weights.W_O[writer.layer, writer.head])[2]
    at, h = reader.layer, reader.head
    QK, OV = weights.W_Q[at, h] @ weights.W_K[at, kv[h]].T, weights.W_V[at, kv[h]] @ weights.W_O[at, h]
    M = {"Q": QK, "K": QK.T, "V": OV}[kind]
    return ((V[: weights.d_head] @ M).norm(dim=1).max() / M.norm()).item()


def dense_percentile(weights, writer, reader, kind):
    earlier = list(product(range(reader.layer), range(weights.n_heads)))
    best = {Head(*head): dense_best(weights, Head(*head), reader, kind) for head in earlier}
    return 100 * sum(value < best[writer] for value in best.values()) / (len(best) - 1)


def test_planted_links_stand_out_by_their_own_input_alone_and_only_where_roles_mean_something(world):
    name, _, roles, scores = world
    rows = links.link_rows(scores, roles.links(), n_draws=999)
    own = [row for row in rows if not row.control and row.link != links.JOINT]
    assert [row.link for row in own] == [Link(*link, ()).name for link in IOI_LINKS]
    (joint,) = [row for row in rows if row.link == links.JOINT]
    if name in ("planted", "spread"):
        assert joint.p == 0.001 and all(row.p_holm < 0.05 and row.value > 85 for row in own)
    else:
        assert joint.p > 0.01 and all(row.p_holm > 0.05 for row in own)
    others = [row for row in rows if row.control == links.OTHER_INPUT]
    assert len(others) == 8 and sum(row.p < 0.05 for row in others) <= 2
    if name == "planted":
        readers = [row for row in rows if row.control == links.OTHER_READERS and row.readers_role != NAME_MOVER]
        assert len(readers) == 3 and all(row.p < 0.05 for row in readers), "of movers, backups read as well"
        assert all(row.value < 60 for row in rows if row.control == links.OTHER_WRITERS)


@pytest.mark.parametrize("kind", "QKV")
def test_the_statistic_is_the_mean_percentile_by_the_dense_route(scored, kind):
    weights, scores = scored
    row = links.link_rows(scores, [Link("a", "b", kind, PAIRS)], n_draws=99)[0]
    assert row.value == pytest.approx(sum(dense_percentile(weights, *pair, kind) for pair in PAIRS) / 4)
    assert (row.n_writers, row.n_readers, row.n_pairs) == (2, 2, 4) and row.low <= row.value <= row.high


def test_p_is_that_of_all_choices_of_writers_and_controls_are_the_heads_they_name(scored):
    _, scores = scored
    table = links.percentiles(scores.best_component("V"))
    own, readers, *inputs, writers, _ = links.link_rows(scores, [LINK], n_draws=9_999)

    def mean(a, b, readers):
        """Over pairs whose writers are L0Ha and L1Hb."""
        return (table[0, a, 2, readers].mean() + table[1, b, 2, readers].mean()).item() / 2

    def reach(values):
        return pytest.approx(sum(value >= own.value - 1e-9 for value in values) / len(values), abs=0.02)

    by_writers = [mean(a, b, [0, 3]) for a, b in product(range(4), repeat=2)]
    assert own.p == reach(by_writers) and own.null_mean == pytest.approx(sum(by_writers) / 16, abs=1)
    assert readers.p == reach([mean(1, 2, list(some)) for some in combinations(range(4), 2)])
    assert readers.value == pytest.approx(mean(1, 2, [1, 2])) and [row.kind for row in inputs] == ["Q", "K"]
    assert writers.value == pytest.approx(mean([[0], [2], [3]], [[0], [1], [3]], [0, 3]))


def test_in_the_joint_test_a_head_of_two_roles_is_one_head_in_every_draw(scored):
    _, scores = scored
    chain = [Link("a", "b", "K", ((Head(0, 1), Head(1, 2)),)), Link("b", "c", "Q", ((Head(1, 2), Head(2, 0)),))]
    names = names_within_layers(99, 3, 4)
    tables = {kind: links.percentiles(scores.best_component(kind)) for kind in "QKV"}
    joint = links.link_tests(tables, chain, names)[1]
    drawn = [(tables["K"][0, n[0, 1], 1, n[1, 2]] + tables["Q"][1, n[1, 2], 2, n[2, 0]]).item() / 2 for n in names]
    assert joint.p == (1 + sum(value >= joint.observed - 1e-9 for value in drawn)) / 100
    assert joint.null_mean == pytest.approx(sum(drawn) / 99)
    with pytest.raises(OptionError, match="99 draws at least"):
        links.link_tests(tables, chain, names[:50])


def test_listeners_are_told_from_other_later_heads_where_only_they_read(world):
    name, _, roles, scores = world
    rows = listeners.listener_rows(scores, roles, n_draws=999)
    heads, tests = rows[:-2], {row.by: row for row in rows[-2:]}
    found = tests["value"]
    assert len(heads) == 12 and found.n_listeners == 6 and [row.rank for row in heads] == sorted(r.rank for r in heads)
    assert found.auc == pytest.approx(roc_auc_score([row.listener for row in heads], [row.value for row in heads]))
    assert found.low <= found.auc <= found.high
    if name in ("planted", "spread"):
        assert found.auc > 0.95 and found.p < 0.01 and tests["shared"].auc > 0.8
    else:
        assert found.p > 0.05 and tests["shared"].p > 0.05


def test_the_shared_component_is_chosen_without_the_reader_that_is_asked_about(scored):
    _, scores = scored
    block, writer = scores.blocks["Q", 2].score, Head(1, 2)
    flat = block.flatten(0, 2)
    percentile = (flat[:, None] > flat[None]).sum(1).view_as(block)[1, 2] * 100 / (len(flat) - 1)
    expected = []
    for reader in range(4):
        others = percentile[:, [r for r in range(4) if r != reader]].mean(1)
        expected.append(percentile[others.argmax(), reader])
    torch.testing.assert_close(listeners.shared_components(scores, [writer])[0], torch.stack(expected).double())


def test_the_best_of_a_basis_by_the_dense_route(scored):
    weights, scores = scored
    writers, readers = [Head(0, 1), Head(1, 2)], [Head(2, 0), Head(2, 3)]
    found = basis.best_by_basis(weights, writers, readers, n_bases=5, seed=1)
    generator = torch.Generator().manual_seed(1)
    for w, writer in enumerate(writers):
        V = torch.linalg.svd(weights.W_V[writer.layer, writer.head] @ weights.W_O[writer.layer, writer.head])[2][:6]
        bases = basis._random_bases(5, 6, generator)
        torch.testing.assert_close(bases @ bases.mT, torch.eye(6, dtype=torch.float64).expand(6, -1, -1))
        for r, reader in enumerate(readers):
            M = weights.W_Q[2, reader.head] @ weights.W_K[2, reader.head].T
            assert found[0, w, r].item() == pytest.approx(scores.pair(writer, reader, "Q").max().item())
            if w == 0:  # signs of singular vectors are free, so of random bases only their distribution is known
                assert (found[1:, w, r] <= torch.linalg.svdvals(V @ M)[0] / M.norm() + 1e-9).all()


def test_the_basis_is_privileged_where_a_component_and_not_only_the_head_writes_into_the_link(world):
    name, weights, roles, _ = world
    rows = basis.basis_rows(weights, roles, n_draws=999)
    chosen, others, difference = rows[-3:]
    assert [row.group for row in rows[-3:]] == [S_INHIBITION, basis.OTHER, basis.DIFFERENCE]
    assert difference.ratio == pytest.approx(chosen.ratio / others.ratio)
    whole = [row for row in rows if row.reader == basis.EVERY and row.head != basis.EVERY]
    assert len(whole) == 12 and len(rows) == 12 * (3 + 1) + 3
    if name in ("planted", "everyone"):
        assert chosen.rank == 1 and chosen.p == 0.01 and chosen.ratio > 1.3
    else:
        assert chosen.p > 0.01 and chosen.ratio < 1.1
    assert (difference.p < 0.01) == (name == "planted")


def test_a_ranking_is_judged_as_scikit_learn_does_and_its_first_places_counted():
    values = torch.tensor([0.9, 0.1, 0.5, torch.nan, 0.7, 0.5])
    known = torch.tensor([True, False, True, True, False, False])
    auc, r_precision = rivals.precision(values, known)
    assert auc == pytest.approx(roc_auc_score(known, values.nan_to_num(nan=-9)))
    assert rivals.precision(values[[0, 1, 2, 4]], known[[0, 1, 2, 4]])[1] == 0.5 and r_precision in (1 / 3, 2 / 3)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", "QKV")
def test_the_projection_kernel_is_transformerlens_own(checkpoints, name, kind):
    from transformer_lens.tools.analysis import attention_head_subspace_affinity

    bridge = load_model(checkpoints[name])
    weights = head_weights_from_bridge(bridge)
    theirs = attention_head_subspace_affinity(bridge, target_role=kind).scores
    theirs = theirs if kind == "Q" else theirs[..., weights.kv_index]
    ours = rivals.projection_kernels(weights, kind)
    held = ~ours.isnan()
    assert held.sum() == 4 * 4 + 8 * 4
    torch.testing.assert_close(ours[held], theirs[held], atol=1e-4, rtol=1e-4)


def test_all_measures_find_planted_writers_and_none_finds_what_is_not_there(world):
    name, weights, roles, scores = world
    rows = rivals.rival_rows(weights, scores, roles.links())
    means = {row.measure: row for row in rows if row.link == rivals.EVERY and row.reader == rivals.EVERY}
    assert tuple(means) == rivals.MEASURES and all(row.n_readers == 11 for row in means.values())
    best = means[rivals.BEST_COMPONENT]
    of_best = [row for row in rows if (row.link, row.measure) == (rivals.EVERY, rivals.BEST_COMPONENT)]
    own = [row.auc for row in of_best if row.reader != rivals.EVERY]
    assert best.auc == pytest.approx(sum(own) / len(own)) and best.ahead == best.ahead_low == 0
    assert (best.auc > 0.9) == (name in ("planted", "spread"))
    assert (means[rivals.PROJECTION_KERNEL].auc > 0.8) == (name in ("planted", "spread"))


def test_a_prediction_is_the_mean_over_movers_and_over_distances_as_often_as_they_come(checkpoints):
    weights = load_head_weights(checkpoints["llama"])
    writers, movers = [Head(0, 3), Head(1, 0)], [Head(2, 1), Head(2, 2)]
    rows = prediction.prediction_rows(weights, writers, movers, torch.tensor([3, 9, 3]))
    near, far, none = scores_at_distances(weights, writers, movers, "Q", torch.tensor([3, 9, 0])).mean(-1)
    expected = ((2 * near + far) / 3).flatten()
    torch.testing.assert_close(torch.tensor([row.score for row in rows]), expected)
    torch.testing.assert_close(torch.tensor([row.score_at_0 for row in rows]), none.flatten())
    for head in ("L0H3", "L1H0"):
        own = sorted((row for row in rows if row.head == head), key=lambda row: row.rank)
        assert [row.rank for row in own] == [1, 2, 3, 4, 5, 6]
        assert [row.score for row in own] == sorted((row.score for row in own), reverse=True)


def test_the_planted_model_is_asked_by_its_planted_roles():
    c = Context("planted")
    rows = prediction.run(c)
    assert {row.head for row in rows} == {"L1H0", "L1H1"} and {row.n_distances for row in rows} == {0}
    assert [row.rank for row in rows if row.score > 0.3] == [1, 3, 2] * 2, "the channel has three dimensions"
    assert len(rows) == 6, "no other component writes"
    distances = prediction.task_distances(prompts := c.ioi(20))
    ends, first = prompts.positions["end"], prompts.positions["IO"]
    assert distances[::2].tolist() == (ends - first).tolist()
    named = {row.link for row in links.run(c)}
    assert named == {Link(*IOI_LINKS[1], ()).name, Link(*IOI_LINKS[3], ()).name, links.JOINT}


def test_what_cannot_be_asked_of_a_model_is_said(world):
    _, weights, roles, scores = world
    for given in ({}, {S_INHIBITION: [Head(2, 0)], NAME_MOVER: [Head(1, 0)]}):
        with pytest.raises(NotApplicable, match="come after all S-inhibition"):
            listeners.listener_rows(scores, Roles.given(given))
        with pytest.raises(NotApplicable, match="comes after all S-inhibition"):
            basis.basis_rows(weights, Roles.given(given))


def test_gpt2s_attention_weights_alone_go_through_the_store_and_what_must_run_is_not_possible(
    gpt2_source, tmp_path, monkeypatch
):
    monkeypatch.setenv(GPT2_VARIABLE, gpt2_source if Path(gpt2_source).is_dir() else "")
    c = Context(GPT2_WEIGHTS)
    some = [e for e in chosen(chapters_of(c.model)) if e.name in ("gate", "links")]
    folder, failed = reproduce(c, some, tmp_path, lambda _: None)
    done = store.finished(GPT2_WEIGHTS, tmp_path)
    assert not failed and folder.name == GPT2_WEIGHTS and set(done) == {"gate", "links"}
    assert "nothing can be run" in done["gate"].reason
    assert done["links"].about["checkpoint"] and "rehearsal" not in done["links"].about["shows"]
    found = rows_of(done["links"].table, links.LinkRow)
    assert found[-1].link == links.JOINT and found[-1].p < 1e-3
    assert [row.p_holm < 0.05 for row in found if not row.control][:4] == [False, False, False, True]


def test_weights_that_are_called_gpt2s_must_have_its_heads(checkpoints, monkeypatch):
    monkeypatch.setenv(GPT2_VARIABLE, str(checkpoints["gpt2"]))
    with pytest.raises(LabelError, match="L4H11 is not in"):
        links.run(Context(GPT2_WEIGHTS))
