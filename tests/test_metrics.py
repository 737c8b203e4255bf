"""What is measured at the last token, where it is known."""

import pytest
import torch

from talking_heads_utils import metrics
from talking_heads_utils.errors import LabelError, OptionError, TaskError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import Metric, Outcome, named
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.sets import ABSENT, PromptSet, Recipe
from talking_heads_utils.roles import IOI_LINKS, gpt2_small_roles, role_of


@pytest.fixture(scope="module")
def prompts():
    """Two prompts: the first with two right answers and one wrong, the second with one and two."""
    tokens = torch.arange(8).view(2, 4)
    positions = {"IO": torch.tensor([0, 1]), "S1": torch.tensor([1, ABSENT]), "end": torch.tensor([3, 2])}
    mask, recipe = torch.arange(4) <= positions["end"][:, None], Recipe("texts", 2, 0, "", drawn=False)
    wrong, more = torch.tensor([[3, ABSENT], [1, 2]]), torch.tensor([[2], [ABSENT]])
    return PromptSet(tokens, mask, positions, torch.tensor([1, 3]), wrong, ["a", "b"], {}, recipe, more)


@pytest.fixture(scope="module")
def outcome(prompts):
    chances = torch.tensor([[[0.1, 0.2, 0.3, 0.4, 0.0], [0.0, 0.5, 0.1, 0.3, 0.1]], [[0.4, 0.1, 0.2, 0.3, 0.0]] * 2])
    pattern = torch.tensor([[[0.7, 0.2, 0.0, 0.1]] * 2, [[0.5, 0.25, 0.25, 0.0]] * 2])
    return Outcome(chances.clamp(min=1e-9).log() + 2, prompts, {Head(1, 0): pattern})


@pytest.mark.parametrize(("name", "expected"), [
    ("prob_diff", [[0.1, 0.3], [0.0, 0.0]]), ("accuracy", [[0, 1], [1, 1]]),
    ("loss", [[-torch.tensor(p).log().item() for p in row] for row in ([0.5, 0.6], [0.3, 0.3])]),
])  # fmt: skip
def test_named_metrics_by_hand(outcome, name, expected):
    torch.testing.assert_close(named(name)(outcome), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_the_logit_difference_is_of_means_whatever_their_number(outcome, prompts):
    found, logits = named("logit_diff")(outcome), outcome.logits
    first = logits[0, :, 1:3].mean(1) - logits[0, :, 3]
    torch.testing.assert_close(found, torch.stack([first, logits[1, :, 3] - logits[1, :, 1:3].mean(1)]))
    tokens, weights = prompts.logit_weights
    by_weight = (logits.gather(2, tokens[:, None].expand(-1, 2, -1)) * weights[:, None]).sum(-1)
    torch.testing.assert_close(found, by_weight)
    with pytest.raises(TaskError, match="Prompt 0 has fewer wrong answers"):
        _ = prompts.candidates


def test_attention_to_named_positions(outcome):
    assert metrics.attention("L1H0", "IO")(outcome).tolist() == torch.tensor([[0.7, 0.7], [0.25, 0.25]]).tolist()
    first = Outcome(outcome.logits[:1], outcome.prompts.select([0]), {Head(1, 0): outcome.patterns[Head(1, 0)][:1]})
    torch.testing.assert_close(metrics.attention("L1H0", "IO", "S1")(first), torch.full((1, 2), 0.5))
    assert metrics.attention("L1H0", "IO").heads == (Head(1, 0),)
    with pytest.raises(TaskError, match="Prompt 1 .* has no position 'S1'"):
        metrics.attention("L1H0", "S1")(outcome)
    with pytest.raises(TaskError, match="No position 'S9'"):
        metrics.attention("L1H0", "S9")(outcome)
    with pytest.raises(LabelError, match="L2H0 was not kept"):
        metrics.attention("L2H0", "IO")(outcome)
    with pytest.raises(LabelError, match="'1.0' is not a head"):
        metrics.attention("1.0", "IO")


def test_metrics_of_ones_own(outcome):
    def answer(outcome):
        return outcome.logits[..., 1]

    assert named(answer).name == "answer" and torch.equal(named(answer)(outcome), outcome.logits[..., 1])
    with pytest.raises(OptionError, match=r"'answer' gave shape \(2,\), not \(2, 2\)"):
        Metric("answer", "", lambda outcome: answer(outcome)[:, 0])(outcome)
    with pytest.raises(OptionError, match="'answer' gave float"):
        Metric("answer", "", lambda outcome: 1.0)(outcome)
    with pytest.raises(OptionError, match="'answer' is NaN on prompt 1"):
        Metric("answer", "", lambda outcome: answer(outcome).log().where(torch.tensor([[True], [False]]), torch.nan))(
            Outcome(outcome.logits.abs(), outcome.prompts)
        )
    with pytest.raises(OptionError, match="no metric 'logits'; there are logit_diff"):
        named("logits")


def test_without_wrong_answers_the_whole_vocabulary_is(outcome, prompts):
    alone = Outcome(outcome.logits, PromptSet(**vars(prompts) | {"distractors": torch.zeros(2, 0, dtype=torch.long)}))
    assert named("accuracy")(alone).tolist() == [[0, 1], [0, 0]]
    for name in ("logit_diff", "prob_diff"):
        with pytest.raises(TaskError, match="no wrong answers"):
            named(name)(alone)


def test_metrics_of_lists_where_the_answer_is_known(word_tokenizer):
    prompts = laundry.build_laundry(word_tokenizer, 3, n_prompts=6)
    rows, d_vocab = torch.arange(6), len(word_tokenizer)
    logits = torch.zeros(6, d_vocab)
    logits[rows, prompts.answers] = 2.0
    logits[rows, prompts.distractors[:, 0]] = torch.tensor([1.0, 1.0, 1.0, 3.0, 2.0, 1.0])
    outside = next(i for i in range(d_vocab) if i not in prompts.candidates.unique())
    logits[0, outside] = 9.0
    assert metrics.correct(logits, prompts).tolist() == [True, True, True, False, False, True]
    assert metrics.correct(logits, prompts, among_candidates=False).tolist() == [False, True, True, False, False, True]
    assert metrics.logit_difference(logits, prompts).tolist() == [1.5, 1.5, 1.5, 0.5, 1.0, 1.5]


def test_names_are_read_and_written_alike_and_a_bad_one_is_one_clear_error():
    assert str(Head.parse("L8H10")) == "L8H10" and Head.parse("L8H10") == Head(8, 10)
    assert str(Component.parse("L8H10.1")) == "L8H10.1" and Component.parse("L8H10.1").of_head == Head(8, 10)
    for text in ("8.10", "L8H10.1", "L8", "h8l1", "L-1H0", ""):
        with pytest.raises(LabelError, match="Write layer and head as in 'L8H10'"):
            Head.parse(text)
    for text in ("L8H10", "8.10.1", "L8H10.", "L8H10.x"):
        with pytest.raises(LabelError, match="as in 'L8H10.1'"):
            Component.parse(text)


def test_published_roles_do_not_overlap_and_links_name_them():
    roles = gpt2_small_roles()
    heads = [head for group in roles.values() for head in group]
    assert len(heads) == len(set(heads)) == 26
    assert role_of(Head(8, 10), roles) == "S-inhibition" and role_of(Head(0, 0), roles) is None
    assert all(writer in roles and reader in roles and kind in "QKV" for writer, reader, kind in IOI_LINKS)
