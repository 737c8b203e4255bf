"""Values of tables by a second route: plain runs of the model, prompt by prompt, and sums written out."""

import pytest
import torch
from safetensors.torch import load_file

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import patching, study
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS, draw_pairing
from talking_heads_utils.experiments.icl.task import N_EXAMPLES, task_of
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.labels import heads_in
from talking_heads_utils.models import model_source
from talking_heads_utils.prompts.questions import Question


class Asked:
    """A model, what it is asked, and its prompts."""

    def __init__(self, model):
        self.run = Context(model)
        self.task = task_of(self.run)
        self.bridge, self.tokenizer, self.family = self.run.bridge, self.run.tokenizer, self.task.functions
        self.shape = self.bridge.cfg.n_layers, self.bridge.cfg.n_heads
        numbers = (self.tokenizer(f"\n(1, {n}", add_special_tokens=False) for n in range(self.family.n_numbers))
        self.ids = [encoded["input_ids"][-1] for encoded in numbers]

    def encode(self, some):
        return self.task.encode(self.run, some)

    def table(self, make, *args, **options):
        return frame(make(self.run, self.task, *args, **options))


@pytest.fixture(scope="module")
def s():
    return Asked("mini-icl")


def last_token(change):
    """A hook on a whole run of one prompt: its last token's row is changed."""

    def hook(value, hook):
        value = value.clone()
        value[:, -1] = change(value[:, -1])
        return value

    return hook


def out_at_the_end(s, heads):
    def without(layer):
        mine = [head.head for head in heads if head.layer == layer]
        return last_token(lambda z: z.index_fill(1, torch.tensor(mine, dtype=torch.long), 0.0))

    return [(f"blocks.{layer}.attn.hook_z", without(layer)) for layer in range(s.shape[0])]


@torch.no_grad()
def last_residual(s, pairs, x):
    tokens = s.encode([Question(tuple(pairs), x, (1, 0))]).tokens
    _, cache = s.bridge.run_with_cache(tokens)
    return cache[f"blocks.{s.shape[0] - 1}.hook_resid_post"][0, -1].double()


def test_additivity_is_the_sum_of_single_runs_along_the_answers_direction(s):
    counts, n = (1, 2, 5), 5
    table = s.table(study.additivity, n=n, counts=counts).set_index("n_examples")
    asked = s.task.draw(n, part=5).questions
    tensors = load_file(model_source("mini-icl")[0] / "model.safetensors")
    unembed = (tensors["lm_head.weight"] * tensors["transformer.ln_f.weight"]).double()
    unembed = (unembed - unembed.mean(1, keepdim=True))[s.ids]
    for count in counts:
        together, summed, cosines = [], [], []
        for q in asked:
            nothing = last_residual(s, (), q.x)
            direction = unembed[q.function[0] * q.x + q.function[1]] - unembed.mean(0)
            direction = direction / direction.norm()
            whole = last_residual(s, q.pairs[:count], q.x) - nothing
            parts = sum(last_residual(s, [q.pairs[j]], q.x) - nothing for j in range(count))
            together.append(float(whole @ direction))
            summed.append(float(parts @ direction))
            cosines.append(float(whole @ parts / whole.norm() / parts.norm()))
        row = table.loc[count]
        assert row["together"] == pytest.approx(sum(together) / n, abs=1e-3)
        assert row["summed"] == pytest.approx(sum(summed) / n, abs=1e-3)
        assert row["ratio"] == pytest.approx(sum(summed) / sum(together), abs=1e-3)
        assert row["cosine"] == pytest.approx(sum(cosines) / n, abs=1e-4)
        assert row["low"] - 1e-9 <= row["ratio"] <= row["high"] + 1e-9 and row["n"] == n


SCORES = ["exact", "about", "parity", "copied", "distance"]


@torch.no_grad()
def answered(s, question, hooks=()):
    """The number that a whole run of one prompt ends with, and what enters each layer at the last token."""
    with s.bridge.hooks(fwd_hooks=list(hooks)):
        logits, cache = s.bridge.run_with_cache(s.encode([question]).tokens)
    return int(logits[0, -1, s.ids].argmax()), [cache[f"blocks.{n}.hook_resid_pre"][:, -1] for n in range(s.shape[0])]


def scored(answers, said, pairing):
    """Shares of A's function at B's x: exact, about a x, of the right parity, A's own answer; and the mean distance."""
    found = dict.fromkeys(SCORES, 0.0)
    for answer, own, a, b in zip(answers, said, pairing.a, pairing.b):
        slope, shift = a.function
        right = slope * b.x + shift
        found["exact"] += answer == right
        found["about"] += abs(answer - slope * b.x) <= 1
        found["parity"] += answer % 2 == right % 2
        found["copied"] += answer == own
        found["distance"] += abs(answer - right)
    return {name: total / len(answers) for name, total in found.items()}


@pytest.mark.parametrize("b", [OTHER_FUNCTION, RANDOM_PAIRS, NO_EXAMPLES])
def test_the_patch_table_equals_whole_runs_scored_on_as_function(s, b):
    n, sets = 8, {"layer 2": heads_in([2], s.shape[1]), "layers 1 and 3": heads_in([1, 3], s.shape[1])}
    table = s.table(patching.patches, sets, n=n, b=b).set_index(["out", "run"])
    pairing = draw_pairing(s.family, n, N_EXAMPLES, b=b, seed=0, among=~s.family.held_out)
    plain = [answered(s, question)[0] for question in pairing.b]
    for name, heads in {"nothing": [], **sets}.items():
        runs = [answered(s, question, out_at_the_end(s, heads)) for question in pairing.a]
        said = [answer for answer, _ in runs]
        for layer in range(s.shape[0]):
            hooks = [last_token(lambda _, own=given[layer]: own) for _, given in runs]
            site = f"blocks.{layer}.hook_resid_pre"
            answers = [answered(s, question, [(site, hook)])[0] for question, hook in zip(pairing.b, hooks)]
            (row,) = table.loc[(name, patching.PATCHED)].query("layer == @layer")[SCORES].to_dict("records")
            assert row == pytest.approx(scored(answers, said, pairing))
        assert table.loc[(name, patching.B), SCORES].to_dict() == pytest.approx(scored(plain, said, pairing))
        own = [answer == q.function[0] * q.x + q.function[1] for answer, q in zip(said, pairing.a)]
        of_a = table.loc[(name, patching.A)]
        assert of_a["exact"] == sum(own) / n and of_a["copied"] == 1
    if b == OTHER_FUNCTION:  # layers and sets differ, or this could not tell them apart
        assert table.loc[("layer 2", patching.PATCHED), "distance"].nunique() == s.shape[0]
        assert table.loc[("layer 2", patching.A), "exact"] < 1 == table.loc[("nothing", patching.A), "exact"]


@torch.no_grad()
def test_attention_to_answers_by_counting_tokens(s):
    """After the first token come triples x comma y: x_i is token 3i + 1, its comma 3i + 2, y_i 3i + 3."""
    n, n_asked = 5, N_EXAMPLES
    table = s.table(study.looks_back, n=n).set_index("head")
    prompts = s.encode(s.task.draw(n, part=8).questions)
    words = [s.tokenizer.decode([token]) for token in prompts.tokens[0].tolist()]
    assert set(words[2::3]) == {","} and all(word.isdigit() for word in words[1::3] + words[3::3])
    to_y, to_x = torch.zeros(s.shape), torch.zeros(s.shape)
    for row in prompts.tokens:
        _, cache = s.bridge.run_with_cache(row[None])
        for layer in range(s.shape[0]):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
            for j in range(1, n_asked + 1):
                to_y[layer] += sum(pattern[:, 3 * j + 2, 3 * i + 3] for i in range(j)) / (n * n_asked)
                to_x[layer] += sum(pattern[:, 3 * j + 2, 3 * i + 1] for i in range(j)) / (n * n_asked)
    even = sum(j / (3 * j + 3) for j in range(1, n_asked + 1)) / n_asked
    assert to_x.max() > 0.1 and len(table) == to_y.numel()
    for layer in range(s.shape[0]):
        for head in range(s.shape[1]):
            row = table.loc[f"L{layer}H{head}"]
            assert row["to_y"] == pytest.approx(to_y[layer, head].item(), abs=1e-5)
            assert row["to_x"] == pytest.approx(to_x[layer, head].item(), abs=1e-5)
            assert row["even"] == pytest.approx(even, abs=1e-6)
            assert row["ratio"] == pytest.approx(to_y[layer, head].item() / even, abs=1e-4)
