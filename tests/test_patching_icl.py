"""The post's patching on planted models whose working layers are known."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import rehearsals
import torch

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import patching, post
from talking_heads_utils.experiments.icl.asked import Asked
from talking_heads_utils.experiments.icl.known import prompts_of
from talking_heads_utils.experiments.icl.patching import OVER_TASKS as ALL
from talking_heads_utils.experiments.icl.patching import Run, first_layer, first_rows, out_rows, tried
from talking_heads_utils.experiments.icl.swaps import How, Ready
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.prompts.questions import encode_questions, numbers_of

END, EXAMPLE, ANOTHER, X, Y, N_WORDS, N_LAYERS, N = 0, 1, 2, 3, 7, 11, 6, 12
READER, TASK_AT = 4, 2 * N_WORDS  # the layer that does the task at the last token, and where it reads that it should
SURE = 30.0


def planted(*writers):
    """Heads 0 of layers ``writers`` write at the last token that the task is there, if an example is; that of READER,
    where this is written, moves the answer of the question's x there."""
    from transformer_lens.model_bridge import TransformerBridge

    sizes = dict(n_layers=N_LAYERS, n_heads=2, d_head=4, d_model=TASK_AT + 1, n_ctx=8, d_vocab=N_WORDS)
    options = dict(sizes, attn_only=True, normalization_type=None, seed=0)
    bridge = TransformerBridge.boot_native(options, model_name="planted")
    scale, head = SURE * sizes["d_head"] ** 0.5, bridge.unembed.original_component.weight
    with torch.no_grad():
        for parameter in bridge.original_model.parameters():
            parameter.zero_()
        bridge.embed.original_component.weight[:, :N_WORDS] = torch.eye(N_WORDS)
        head[:, N_WORDS:TASK_AT] = torch.eye(N_WORDS)
        head[END, END] = 1.0  # what is said where no answer is written
        for layer in (*writers, READER):
            at = bridge.blocks[layer].attn
            q, k, v, o = (getattr(at, name).original_component.weight for name in "qkvo")
            q[0, END] = scale
            if layer != READER:
                k[0, EXAMPLE] = v[0, EXAMPLE] = o[TASK_AT, 0] = 1.0
                continue
            k[0, END] = k[1, X:Y] = 1.0
            q[1, TASK_AT] = 2 * scale
            v[:4, X:Y] = 10 * torch.eye(4)
            o[N_WORDS + Y :, :4][:4] = torch.eye(4)
    return bridge


def asked_of(rows, twins=None, name="planted"):
    tokens = torch.tensor(rows)
    prompts, twins = (prompts_of(some, tokens[:, -2] - X + Y) for some in (tokens, torch.tensor(twins or rows)))
    return Asked(SimpleNamespace(name=name), prompts, twins, prompts.answers, torch.arange(len(prompts)))


def ends_of(model, name="planted"):
    """A asks x after an example, its twin after another task's, B another x after none."""
    a = asked_of([[EXAMPLE, X + i % 4, END] for i in range(N)], [[ANOTHER, X + i % 4, END] for i in range(N)], name)
    b = asked_of([[X + (i + 1) % 4, END] for i in range(N)], name=name)
    run = prepare(model, b.prompts)
    return Ready(a, prepare(model, a.prompts), prepare(model, a.twins)), Ready(b, run, run)


@pytest.fixture(scope="module")
def found():
    """A task done by one writer, in layer 1, and one that another two layers up writes as well."""
    ready = [ends_of(planted(1), "alone"), ends_of(planted(1, 3), "twice")]
    out = [(layer, layer + 1) for layer in range(N_LAYERS - 1)]
    return [tried(a, b, "none", how, out) for a, b in ready for how in How]


def test_what_one_layer_writes_works_from_the_next_on_until_the_answer_itself_is_copied(found):
    table = frame(patching.patch_rows("planted", found))
    part = table[(table["task"] == "alone") & (table["out"] == "")]
    assert dict(zip(part["run"][:2], part["accuracy"][:2])) == {Run.A: 1, Run.B: 0}
    patched = part[part["run"] == Run.PATCHED]
    assert patched["accuracy"].tolist() == [0, 0, 1, 1, 1, 0]
    assert patched["copied"].tolist() == [0, 0, 0, 0, 0, 1]
    without = table[(table["out"] == "1,2") & (table["run"] == Run.PATCHED)]
    for how in How:
        of = without[without["how"] == how]
        assert of.loc[of["task"] == "alone", "accuracy"].sum() == 0
        assert of.loc[of["task"] == "twice", "accuracy"].tolist() == [0, 0, 0, 0, 1, 0]


def test_a_second_writer_two_layers_up_moves_the_first_layer_up_by_two(found):
    table = frame(first_rows("planted", found)).set_index(["task", "how", "a"]).sort_index()
    assert (table.loc["twice", "plain"] == 1.5).all()
    assert table["n"][table.index.get_level_values("task") != ALL].eq(N).all()
    for how in How:
        alone, twice, every = (table.loc[(task, how)] for task in ("alone", "twice", ALL))
        assert twice["moved"].tolist() == [2, 2, 0, 0, 0]
        assert alone["moved"].isna().tolist() == [True, True, False, False, False]
        assert every["n"].tolist() == [1, 1, 2, 2, 2] and every["moved"].tolist() == [2, 2, 0, 0, 0]
        assert twice["below"].tolist() == [True, False, False, False, False]
        assert twice["posts"].tolist() == [False, True, False, False, False]


def test_layers_out_cost_a_task_what_no_other_layer_does(found):
    pairs = [(1, 2), (1, 3), (2, 3), (0, 5), (2, 4)]
    ready = [ends_of(planted(1), "alone"), ends_of(planted(1, 3), "twice")]
    runs = [patching.without(a, how, pairs) for a, _ in ready for how in How]
    table = frame(out_rows("planted", runs)).set_index(["task", "how"])
    for how in How:
        assert table.loc[("alone", how), "change"].tolist() == [-1, -1, 0, 0, -1]
        assert table.loc[("twice", how), "change"].tolist() == [0, -1, 0, 0, -1]
        assert table.loc[(ALL, how), "accuracy"].tolist() == [0.5, 0, 1, 1, 0]
        spread = table.loc[(ALL, how)].iloc[0]
        assert (spread["low"], spread["change"], spread["high"]) == (-1, -0.5, 0)
    none = table.loc[("alone", How.ZERO)].iloc[2]
    assert none["low"] < 0 < none["high"]  # though no prompt changed


@pytest.mark.parametrize(
    "curve, b, a, first",
    [
        ([0, 0, 0, 1, 1, 0], 0, 1, 2.5),
        ([0, 0, 0.5, 1, 0, 0], 0, 1, 2),
        ([0.2, 0.2, 0.4, 0.8, 0.8, 0.2], 0.2, 1, 2.25),
        ([0, 0, 0, 0.4, 0.4, 0], 0, 1, 2.5),  # lower, and no later
        ([0, 0, 0, 0.2, 0.2, 0], 0, 1, None),
        ([0, 0, 0, 0, 0, 0], 0, 0, None),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 0.9, 1, None),
    ],
)
def test_the_first_layer_is_half_way_up_to_the_best(curve, b, a, first):
    at = first_layer(*(torch.tensor(value).double() for value in (curve, b, a)))
    assert at.isnan() if first is None else at.item() == pytest.approx(first)


@pytest.mark.parametrize("n_layers, posts", [(32, (10, 11)), (30, (9, 10)), (12, (3, 4)), (2, (0, 1))])
def test_the_posts_layers_are_taken_in_proportion(n_layers, posts):
    assert patching.posts_layers(n_layers) == posts


@pytest.fixture(scope="module")
def whole_numbers(gpt2_source, tmp_path_factory):
    """A random model of Llama's kind whose tokenizer keeps the post's numbers whole."""
    if not Path(gpt2_source).is_dir():
        pytest.skip("GPT-2's tokenizer is in no folder; set TALKING_HEADS_GPT2")
    return Context(str(rehearsals.tiny("llama", tmp_path_factory.mktemp("post") / "llama", Path(gpt2_source))))


def test_the_posts_own_prompts_are_answered_as_a_hooked_run_answers_them(whole_numbers):
    c, (a, b) = whole_numbers, post.questions()
    assert (a.answer, b.answer, len(a.pairs)) == (87, 33, 12)
    rows = post.run(c)
    assert [row.out for row in rows[::4]] == ["", "layers 1,2"]
    numbers = numbers_of(c.tokenizer, post.LARGEST)
    tokens = [encode_questions([q], c.tokenizer).tokens for q in (a, b)]

    def zero(z, hook):
        z[:, -1] = 0
        return z

    for row in rows:
        hooks = [(f"blocks.{layer}.attn.hook_z", zero) for layer in ((1, 2) if row.out else ())]
        with torch.no_grad(), c.bridge.hooks(fwd_hooks=hooks):
            logits, cache = c.bridge.run_with_cache(tokens[0])
        best = numbers.values[logits[0, -1, numbers.ids].topk(5).indices]
        assert row.a_top_five == " ".join(map(str, best.tolist()))
        name = f"blocks.{row.layer}.hook_resid_pre"

        def put(x, hook, a=cache[name]):
            x[:, -1] = a[:, -1]
            return x

        with torch.no_grad():
            patched = c.bridge.run_with_hooks(tokens[1], fwd_hooks=[(name, put)])
            plain = c.bridge(tokens[1])
        assert [row.b_plain, row.b_patched] == [int(numbers.read(x[0, -1, numbers.ids])) for x in (plain, patched)]


def test_of_llamas_shape_what_the_post_took_out_is_taken_out():
    out = post.taken_out((32, 32))
    assert list(map(len, out.values())) == [5, 64, 96, 128]
    assert list(out)[1:] == ["layers 10,11", "layers 10,11,13", "layers 10,11,13,15"]


def test_a_tokenizer_that_splits_the_posts_numbers_is_told_of(word_tokenizer):
    with pytest.raises(NotApplicable, match="splits some of 0 to 200"):
        post.run(Context("words", loaded=(None, word_tokenizer)))
