"""In-context learning: the exact reader, the prompts, and every measure where its answer is known."""

import dataclasses

import pytest
import torch

from talking_heads_utils.errors import OptionError, TaskError
from talking_heads_utils.experiments.icl import curves, parts, post
from talking_heads_utils.experiments.icl.ablations import replacements, run_end
from talking_heads_utils.experiments.icl.clusters import mean_in_clusters
from talking_heads_utils.experiments.icl.functions import Family, bayes_accuracy, posterior, predictive, trained_prior
from talking_heads_utils.experiments.icl.known import (
    BACKUP,
    CASES,
    COPIES,
    INDEPENDENT,
    known_interaction,
    pair_of,
    pair_reader,
)
from talking_heads_utils.experiments.icl.pairing import (
    NO_EXAMPLES,
    OTHER_FUNCTION,
    POST_PAIRS,
    RANDOM_PAIRS,
    draw_pairing,
    post_questions,
    questions,
)
from talking_heads_utils.experiments.icl.redundancy import (
    Reader,
    backups,
    direct_effects,
    effects,
    order_by_effect,
    pair_interactions,
    random_order,
    removal,
)
from talking_heads_utils.experiments.icl.scores import right_log_odds, right_log_prob, score_answers
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.questions import Numbers, Question, encode_questions, numbers_of
from talking_heads_utils.prompts.toy import number_tokenizer

N_NUMBERS = Family().n_numbers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_exact_reader_by_hand():
    """Bayes' rule written out, function by function and example by example."""
    family = Family(2, 3, 5, noise=0.4)
    examples = family.draw(4, 3, generator(), ~family.held_out)
    prior = trained_prior(family)
    found = posterior(family, examples.x, examples.y, prior)
    for i in range(4):
        belief = prior.clone()
        for k in range(3):
            torch.testing.assert_close(found[i, k], belief)
            x, y = int(examples.x[i, k]), int(examples.y[i, k])
            every = [int(a) * x + int(b) for a, b in family.functions]
            likelihood = torch.tensor([0.6 * (v == y) + 0.4 * every.count(y) / len(every) for v in every])
            belief = belief * likelihood.double() / (belief * likelihood).sum()
        chance = predictive(family, found[i : i + 1, :1], examples.x[i : i + 1, :1])
        assert chance.sum().item() == pytest.approx(1)
    torch.testing.assert_close(family.likelihood.sum(2), torch.ones(6, 5, dtype=torch.float64))
    assert family.held_out.sum() == 1 and prior[family.held_out].item() == 0


def test_without_noise_two_examples_are_enough_and_one_is_not():
    family = Family()
    examples = family.draw(400, 4, generator(), ~family.held_out)
    found = bayes_accuracy(family, examples, trained_prior(family)).mean(0)
    assert found[0] < 0.1 < 0.7 < found[1] < 0.95 and found[2] > 0.99
    held = family.draw(50, 4, generator(), family.held_out)
    assert bayes_accuracy(family, held, trained_prior(family))[:, 3].max() == 0, "it holds them for impossible"
    assert (examples.y == examples.clean).all() and all(len(set(row)) == 4 for row in examples.x.tolist())


def test_labels_are_replaced_as_often_as_is_said():
    family = Family(noise=0.6)
    examples = family.draw(4000, 4, generator())
    same = (family.values[:, None] == family.values[None]).double().mean(0)[examples.function[:, None], examples.x]
    expected = (0.4 + 0.6 * same).mean().item()
    assert (examples.y == examples.clean).double().mean().item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bad", [dict(noise=1.0), dict(noise=-0.1), dict(n_a=0)])
def test_no_such_family(bad):
    with pytest.raises(TaskError):
        Family(**bad)


def test_drawing_asks_for_what_there_is():
    family = Family(n_x=5)
    with pytest.raises(TaskError, match="6 pairs of different x cannot be drawn from 5"):
        family.draw(1, 6, generator())
    with pytest.raises(TaskError, match="No function is left"):
        family.draw(1, 2, generator(), torch.zeros(50, dtype=torch.bool))


def gpt2_tokenizer(gpt2_source):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gpt2_source)


def test_the_posts_prompt_with_the_real_tokenizer(gpt2_source):
    tokenizer = gpt2_tokenizer(gpt2_source)
    a, b = post_questions()
    prompts = encode_questions([a, b], tokenizer)
    assert prompts.texts[0].startswith("\n(28, 59)\n(86, 175)\n") and prompts.texts[0].endswith("(42, ")
    assert prompts.texts[1] == "\n(15, "
    assert [tokenizer.decode(t).strip() for t in prompts.answers] == ["87", "33"]

    def word(name, row=0):
        return tokenizer.decode(prompts.tokens[row, prompts.positions[name][row]]).strip()

    for k, (x, y) in enumerate(POST_PAIRS):
        assert (word(f"x_{k}"), word(f"ask_{k}"), word(f"y_{k}")) == (str(x), ",", str(y))
    assert (word("x"), word("end"), word("x", 1), word("end", 1)) == ("42", ",", "15", ",")
    assert prompts.positions["y_0"][1] == -1
    numbers = numbers_of(tokenizer, 306)
    assert len(numbers.values) == 307, "every number of the chapter's real family is one token"
    with pytest.raises(TaskError, match="is 2 tokens here. Choose smaller numbers"):
        encode_questions([Question(((1, 2),), 29, (9, 101))], tokenizer)


def test_numbers_of_several_tokens_have_positions_and_answers_must_be_whole():
    """A tokenizer of single digits: x_k and y_k are their last digits, ask_k stands before y_k's first."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<unk>", *"0123456789(),"])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s"), "removed"), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<unk>")
    prompts = encode_questions([Question(((12, 27),), 2, (2, 3))], tokenizer)
    row = prompts.tokens[0].tolist()
    assert [list(words)[i] for i in row] == list("(12,27)(2,")
    assert {n: int(at[0]) for n, at in prompts.positions.items()} == dict(x_0=2, y_0=5, x=8, ask_0=3, end=9)
    assert numbers_of(tokenizer, 300).values.tolist() == list(range(10))
    with pytest.raises(TaskError, match="The answer 27 is 2 tokens"):
        encode_questions([Question((), 12, (2, 3))], tokenizer)


def test_bad_questions(tmp_path):
    tokenizer = number_tokenizer(N_NUMBERS, 48)
    numbers = numbers_of(tokenizer, 124)
    with pytest.raises(TaskError, match="500 is no number that this tokenizer knows"):
        encode_questions([Question(((500, 3),), 2, (1, 1))], tokenizer)
    with pytest.raises(TaskError, match="does not fit the model's context of 5"):
        encode_questions([Question(((1, 2), (2, 3)), 3, (1, 1))], tokenizer, n_ctx=5)
    with pytest.raises(TaskError, match="300 is no single token"):
        numbers.place_of(torch.tensor([3, 300]))
    with pytest.raises(TaskError, match="b sees"):
        draw_pairing(Family(), 2, 3, b="all")


@pytest.mark.parametrize("b", [NO_EXAMPLES, RANDOM_PAIRS, OTHER_FUNCTION])
def test_pairings(b):
    family = Family()
    pairing = draw_pairing(family, 60, 5, b=b, seed=3)
    assert pairing == draw_pairing(family, 60, 5, b=b, seed=3) != draw_pairing(family, 60, 5, b=b, seed=4)
    for mine, other in zip(pairing.a, pairing.b):
        assert all(y == mine.function[0] * x + mine.function[1] for x, y in mine.pairs) and len(mine.pairs) == 5
        assert mine.x != other.x and len({x for x, _ in mine.pairs} | {mine.x}) == 6
        assert len(other.pairs) == (0 if b == NO_EXAMPLES else 5) and other.x not in {x for x, _ in other.pairs}
        assert (b != OTHER_FUNCTION) or all(y == other.function[0] * x + other.function[1] for x, y in other.pairs)
        assert (b != OTHER_FUNCTION) or mine.function != other.function
    if b == RANDOM_PAIRS:
        fits = [sum(y == q.function[0] * x + q.function[1] for x, y in q.pairs) for q in pairing.b]
        assert sum(fits) < 0.1 * 5 * 60, "random pairs follow no function"


def test_a_family_of_one_function_has_no_other():
    family = Family(n_a=1, n_b=1, held_share=0.0)
    assert len(draw_pairing(family, 5, 3, b=RANDOM_PAIRS).a) == 5
    with pytest.raises(TaskError, match="No other function"):
        draw_pairing(family, 5, 3, b=OTHER_FUNCTION)


def test_scores_apart():
    prompts = encode_questions([Question((), 10, (2, 3)), Question((), 7, (3, 0))], number_tokenizer(N_NUMBERS, 48))
    answered = torch.tensor([[23, 20, 21, 25], [21, 22, 20, 5]])
    found = score_answers(answered, prompts, torch.tensor([[25], [5]]))
    assert found.exact.tolist() == [[True, False, False, False], [True, False, False, False]]
    assert found.distance.tolist() == [[0, 3, 2, 2], [0, 1, 1, 16]]
    assert found.near.tolist() == [[True, True, True, True], [True, True, True, False]]
    assert found.parity.tolist() == [[True, False, True, True], [True, False, False, True]]
    assert found.about.tolist() == [[False, True, True, False], [True, True, True, False]]
    assert found.copied.tolist() == [[False, False, False, True], [False, False, False, True]]


@pytest.mark.parametrize("known", [-40.0, -3.0, 0.0, 10.0, 17.0, 25.0, 40.0])
def test_log_odds_have_no_ceiling(known):
    """The others share one logsumexp of 0, so that the own logit is the log-odds; in single precision p would be 1."""
    others = torch.tensor([0.2, 0.8]).log()
    logits = torch.cat([others[:1], torch.tensor([known]), others[1:]]).expand(2, 3, 3)
    words = torch.arange(3)
    found = right_log_odds(logits, torch.tensor([1, 1]), Numbers(words, words))
    assert found.shape == (2, 3) and found.dtype == torch.float64
    torch.testing.assert_close(found, torch.full_like(found, known), atol=1e-6, rtol=0)


def test_log_odds_are_those_of_the_probability_and_of_each_prompts_own_answer():
    logits, words = torch.randn(4, 2, 5, generator=generator()).double(), torch.arange(5)
    right = torch.tensor([0, 4, 2, 1])
    p = torch.stack([row.softmax(-1)[:, int(r)] for row, r in zip(logits, right)])
    torch.testing.assert_close(right_log_odds(logits, right, Numbers(words, words)), (p / (1 - p)).log())


def test_the_exact_readers_log_odds_are_cut_off_at_ten_to_the_twelve():
    family = Family()
    sure = curves.bayes_log_odds(family, family.draw(30, 6, generator(), ~family.held_out))[:, -1]
    torch.testing.assert_close(sure, torch.full_like(sure, 12 * torch.tensor(10.0).log().item()), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------------------
# redundancy, where it is known


def known_pairs(kind):
    """The table of all heads that could do something, and the row of the two that do."""
    reader = pair_reader(kind)
    table = frame(pair_interactions(reader, reader.heads[:4])).set_index(["a", "b"])
    return table, tuple(map(str, pair_of(kind)))


@pytest.mark.parametrize("kind", CASES)
def test_pairs_interact_by_the_formula_and_no_other_head_does_anything(kind):
    table, pair = known_pairs(kind)
    for column in ("interaction", "low", "high"):
        assert table.loc[pair, column] == pytest.approx(known_interaction(kind), abs=1e-4)
    assert table.drop(index=pair)[["interaction", "log_prob"]].abs().max().max() < 1e-4
    assert table.loc[pair, "together"] > 10, "both out, the answer is lost"
    assert (table.loc[pair, "alone"] < 1e-4) == (kind == BACKUP), (
        "alone, only the loss of a head with a backup is nothing"
    )


def test_in_log_probability_two_heads_that_add_look_like_a_backup():
    backup, adding, apart = (table.loc[pair] for table, pair in map(known_pairs, (BACKUP, COPIES, INDEPENDENT)))
    assert backup["log_prob_low"] > 1 and backup["log_prob"] == pytest.approx(adding["log_prob"], abs=1e-3)
    assert backup["interaction"] - adding["interaction"] > 10 and abs(apart["log_prob"]) < 1e-4


def test_a_pair_of_another_kind_is_refused():
    with pytest.raises(OptionError):
        pair_reader("copies")


@pytest.mark.parametrize("kind", [BACKUP, COPIES])
def test_what_pairs_are_worth_by_hand(kind):
    """The answer's logit less the log of the sum over all others, run by run."""
    reader = pair_reader(kind)
    a, b = pair_of(kind)
    logits = reader.logits([[a], [b], [a, b]]).double()
    others = torch.cat([logits[..., :3], logits[..., 4:]], -1).exp().sum(-1).log()
    plain, no_a, no_b, neither = (logits[..., 3] - others).mean(0).tolist()
    (row,) = pair_interactions(reader, [a, b])
    assert row.together == pytest.approx(plain - neither) and row.alone == pytest.approx(2 * plain - no_a - no_b)


def test_removal_finds_the_heads_that_matter_last_where_they_are_copies():
    reader = pair_reader(COPIES)
    order = order_by_effect(reader, 3)
    assert set(order[:2]) == {Head(0, 0), Head(0, 1)}
    rows = removal(reader, [("by_effect", 0, order), ("random", 1, order[::-1])])
    assert [row.out for row in rows] == [0, 1, 2, 3] * 2 and [row.head for row in rows[4:]] == [
        None, *map(str, order[::-1])
    ]  # fmt: skip
    assert [row.exact for row in rows[:2]] == [1.0, 1.0] and rows[2].log_prob < -1.5
    assert effects(reader, [[Head(0, 2)]]).abs().max() < 1e-6
    dense = right_log_prob(reader.logits([order[:1], order[:2], order[:0:-1]]), reader.right, reader.answers).mean(0)
    assert [rows[i].log_prob for i in (0, 1, 2, 6)] == pytest.approx(dense.tolist())
    for n_heads in (0, 6):
        with pytest.raises(OptionError, match="can be taken out"):
            random_order(reader, n_heads, 0)


def test_a_backup_that_is_only_rescaling_is_seen_as_such(case):
    """Without any change above, the fixed measure is still; direct effects sum to the final stream's length."""
    bridge, prompts = case
    ends = prepare(bridge, prompts, 0)
    shape = (bridge.cfg.n_layers, bridge.cfg.n_heads)
    words, right = torch.arange(bridge.cfg.d_vocab), prompts.answers
    reader = Reader(ends, Numbers(words, words), right, torch.arange(len(prompts)), replacements(run_end(ends), "zero"))
    table = frame(backups(reader, {"a head of the last layer": [Head(shape[0] - 1, 0)]}))
    assert table["fixed"].abs().max() < 5e-5 and table["attention"].abs().max() < 5e-5
    assert not table["above"].any() and (table["free_low"] <= table["free_high"]).all()
    if bridge.cfg.normalization_type is not None and str(bridge.cfg.normalization_type) != "None":
        assert table["free"].abs().max() > 1e-4, "the divisor and the direction change with what is taken out"
    run = run_end(ends)
    plain = direct_effects(run, ends, 0, scale_from=0, reference_from=0)
    by_hand = []
    for i, part in enumerate(ends.layers):
        centre, final = ends.norm.center, ends.norm.center(run.resid[:, 0, -1])
        scale = ends.norm.scale(final.square().sum(-1), final.shape[-1])
        for h in range(shape[1]):
            wrote = centre(run.z[:, 0, i, h] @ part.attention.W_O[h])
            by_hand.append((wrote * final).sum(-1) / final.norm(dim=-1) / scale)
    torch.testing.assert_close(plain.flatten(1), torch.stack(by_hand, 1), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------------
# intervals over functions


def test_prompts_of_one_function_are_drawn_together():
    """Eight prompts of each of ten functions that differ: the interval is that of ten values, not of eighty."""
    of_function = torch.randn(10, generator=generator(), dtype=torch.float64)
    clusters = torch.arange(10).repeat_interleave(8)
    found = mean_in_clusters(of_function[clusters], clusters)
    assert found.value.item() == pytest.approx(of_function.mean().item())
    spread = (of_function.var(correction=0) / 10).sqrt().item()
    assert (found.high - found.low).item() == pytest.approx(2 * 1.96 * spread, rel=0.15)
    apart = mean_in_clusters(of_function[clusters], torch.arange(80))
    assert (apart.high - apart.low).item() < 0.5 * (found.high - found.low).item()
    cells = mean_in_clusters(torch.stack([of_function[clusters], -of_function[clusters]], 1)[:, None], clusters)
    assert [cells.low[0, 0].item(), -cells.high[0, 1].item()] == pytest.approx([found.low.item()] * 2)
    with pytest.raises(OptionError, match="two clusters"):
        mean_in_clusters(torch.randn(5), torch.zeros(5))


def test_an_interval_over_functions_holds_the_truth_as_often_as_it_says():
    """Prompts of a function share half of their variance; over prompts the interval is far too narrow."""
    covered, naive, times = 0, 0, 200
    clusters = torch.arange(20).repeat_interleave(5)
    for seed in range(times):
        draw = generator(seed)
        values = torch.randn(20, generator=draw)[clusters] + torch.randn(100, generator=draw)
        for over, which in (("functions", clusters), ("prompts", torch.arange(100))):
            found = mean_in_clusters(values, which, seed=seed)
            inside = bool(found.low <= 0 <= found.high)
            covered, naive = covered + inside * (over == "functions"), naive + inside * (over == "prompts")
    assert covered > 0.88 * times > naive


# ------------------------------------------------------------------------------------------------------------------
# belief


def simulated(noise: float, trust: float, n: int = 200):
    """A predictor that sees noisy labels and trusts them so much, and every predictor on the same lists."""
    family = Family(noise=noise)
    examples = family.draw(n, 13, generator(1), ~family.held_out)
    prior = trained_prior(family)
    own = curves.bayes_log_odds(dataclasses.replace(family, noise=1 - trust), examples, prior)
    return curves.Belief(own, curves.trusting_predictors(family, examples, prior), examples.function)


def fitted(belief, n_seen):
    return frame(curves.fit_laws(belief, n_seen)).set_index("law")


@pytest.mark.parametrize("which", [2, 4, 7])
def test_the_bayes_optimal_predictor_is_recovered_and_preferred_to_the_line(which):
    trust = curves.TRUSTS[which]
    belief = simulated(0.6, trust)
    assert curves.fitted_trust(belief) == pytest.approx(trust)
    errors = fitted(belief, 8)
    assert errors.loc[curves.BAYES, "error"] < 1e-6 and set(errors["n_clusters"]) == {40}
    assert errors.loc[curves.LINE, "low"] > errors.loc[curves.BAYES, "high"], "they differ beyond chance"


@pytest.mark.parametrize("law", [curves.LINE, curves.SATURATING, curves.POWER])
def test_each_law_is_recovered_where_it_holds(law):
    n = torch.arange(13, dtype=torch.float64)
    truth = {curves.LINE: 0.7 * n - 3, curves.SATURATING: 6 * (1 - torch.exp(-n / 3)) - 3, curves.POWER: 2 * n**0.5 - 3}
    noise = 0.02 * torch.randn(100, 13, generator=generator(), dtype=torch.float64)
    belief = dataclasses.replace(simulated(0.6, 0.5, n=100), model=truth[law] + noise)
    errors, rows = fitted(belief, 9), frame(curves.curve_rows(belief, 9))
    assert errors.loc[law, "error"] < 0.1
    shown = torch.tensor(rows[rows["law"] == law]["log_odds"].to_numpy())
    assert (shown - truth[law]).abs().max() < 0.2
    own = rows[rows["law"] == "model"]
    assert (own["low"] < own["log_odds"]).all() and own["log_odds"].tolist() == pytest.approx(
        belief.model.mean(0).tolist()
    )
    if law != curves.LINE:
        assert errors.loc[curves.LINE, "low"] > errors.loc[law, "high"]


def test_laws_are_compared_on_the_same_draws():
    """Prompts differ in their start by nats, which every law's fit takes up: their errors move together."""
    n = torch.arange(13, dtype=torch.float64)
    start = 3 * torch.randn(80, 1, generator=generator(), dtype=torch.float64)
    noise = 0.8 * torch.randn(80, 13, generator=generator(2), dtype=torch.float64)
    errors = {}
    for name, truth in (("line", 0.4 * n - 3), ("saturating", 4 * (1 - torch.exp(-n / 6)) - 3)):
        errors[name] = fitted(curves.Belief(truth + start + noise, None, torch.arange(80)), 8)
        assert errors[name].loc[curves.LINE, ["over_line", "over_line_low", "over_line_high"]].tolist() == [0, 0, 0]
    assert errors["saturating"].loc[curves.SATURATING, "over_line_high"] < 0
    assert errors["line"].loc[[curves.SATURATING, curves.POWER], "over_line_high"].min() > 0


def test_laws_of_prompts_that_are_copies_are_as_uncertain_as_their_functions():
    """The same lists four times over tell no more: the interval must not shrink."""
    once = simulated(0.6, 0.5, n=60)
    four = curves.Belief(once.model.repeat(4, 1), None, once.clusters.repeat(4))
    width = [found["high"] - found["low"] for found in (fitted(once, 8), fitted(four, 8))]
    assert (width[1][list(curves.LAWS)[:3]] > 0.8 * width[0][list(curves.LAWS)[:3]]).all()


def test_a_fit_leaves_points_to_be_judged_by():
    for n in (1, 13):
        with pytest.raises(OptionError, match="the rest judges"):
            curves.fit_laws(simulated(0.6, 0.5, n=10), n)


# ------------------------------------------------------------------------------------------------------------------
# parts


def test_probes_find_what_is_there_and_nothing_else():
    features = torch.randn(400, 12, generator=generator())
    labels = (features[:, 3] > 0).long() + 2
    fitted = torch.arange(400) < 250
    assert parts.probe(features, labels, fitted).double().mean() > 0.85
    shuffled = labels[torch.randperm(400, generator=generator())]
    assert abs(parts.probe(features, shuffled, fitted).double().mean() - 0.5) < 0.15
    for some, which in ((labels, fitted & False), (labels, fitted | True), (torch.zeros(400).long(), fitted)):
        with pytest.raises(OptionError):
            parts.probe(features, some, which)


def test_parity_of_an_answer_copied_from_an_example():
    family = Family()
    asked = questions(family.draw(3000, 2, generator()), family)
    same = [q.pairs[0][1] % 2 == q.answer % 2 for q in asked]
    prompts = encode_questions(asked, number_tokenizer(N_NUMBERS, 48))
    assert parts.parity_of_copies(prompts) == pytest.approx(sum(same) / 3000, abs=0.03)
    assert {q.function[0] % 2 == 0 for q in asked} == {True, False}, "of both kinds, or nothing is tested"


def test_probes_split_by_function():
    """A feature that names the function is worth nothing on other functions; one that names b is."""
    family = Family()
    prompts = encode_questions(questions(family.draw(500, 2, generator()), family), number_tokenizer(N_NUMBERS, 48))
    a, b = (torch.tensor(prompts.info[name]) for name in "ab")
    of_function = torch.nn.functional.one_hot((a - 1) * 10 + b, 50).float()
    of_b = torch.nn.functional.one_hot(b, 10).float()
    rows = parts.probes(torch.stack([torch.nn.functional.pad(of_b, (0, 40)), of_function], 1), prompts)
    found = {row.layer: row for row in rows if row.label == "b"}
    assert found[0].right > 0.95 and found[1].right < 0.35 and found[0].selectivity > 0.6


def test_the_posts_numbers_are_quoted_as_they_are_stored():
    report = post.reported()
    assert report["model"] == "meta-llama/Meta-Llama-3-8B" and "6e463f3" in report["source"]
    assert sum(report["sweep"][k] for k in ("exactly_2x", "one_more", "one_less", "other")) == report["sweep"]["n"]
    assert len(post.patching_table()) == 4
