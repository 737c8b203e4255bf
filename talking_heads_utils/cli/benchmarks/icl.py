"""Exchanges and patches of chapter 4: one token of each variant on kept keys and values, beside hooked whole runs.

A grid puts A's stream of every layer, under six sets of heads, into B; singles exchange every head of the model by
itself. Ours goes from the prompts to the log-odds. The plain way does the same by hooks on whole prompts, one run of
all prompts for each variant, with logits of the last token alone; where only a sample of its variants is run, the case
says so, its time is scaled up and the results are compared on that sample. Speed does not depend on the weights'
values: beside SmolLM2 stands a narrow model of Llama's shape with random ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, check_moved, compare, hooked, random_model
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.asked import Asked, Examples, NumberTask, Task
from talking_heads_utils.experiments.icl.functions import Family
from talking_heads_utils.experiments.icl.swaps import exchanged, grid, ready
from talking_heads_utils.experiments.icl.tasks import task_named
from talking_heads_utils.forward.ends import logits_at
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import numbers_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.toy import level_tokenizer
from talking_heads_utils.weights.packages import SMOLLM2

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

ABOUT = "SmolLM2, and Llama's shape, 32 layers of width 128, with random values"
N_LAYERS, N_PROMPTS, N_SINGLES, N_EXAMPLES, N_WORDS = 32, 64, 200, 12, 15
POST, SCATTERED = "the post's", "scattered"
POST_HEADS = [Head(10, 5), Head(10, 7), Head(13, 6), Head(13, 27), Head(14, 18)]  # of 32 layers, here in proportion
POST_LAYERS = ([10, 11], [10, 11, 13], [10, 11, 13, 15])
Sets = Sequence[Sequence[Head]]
Changes = Sequence[tuple[str, Callable[[Tensor], None]]]


@dataclass(frozen=True)
class Case:
    """A model and what it is asked."""

    name: str
    c: Context
    task: Task
    n_examples: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.c.bridge.cfg.n_layers, self.c.bridge.cfg.n_heads

    def ask(self, n: int) -> Asked:
        return self.task.ask(self.c, n, HELD_OUT, n_examples=self.n_examples)


def rows(repeats: int = 3, device: str = "cpu") -> list[Row]:
    """Grids into B after no examples, as in the post, and after as many as A; and every head of SmolLM2."""
    narrow, real = narrow_llama(device), smollm2(device)
    return [
        grid_row(narrow, Examples.NONE, POST, repeats),
        grid_row(narrow, Examples.NONE, SCATTERED, repeats),
        grid_row(narrow, Examples.SHUFFLED, POST, repeats, every=4),
        grid_row(real, Examples.NONE, POST, repeats),
        grid_row(real, Examples.SHUFFLED, POST, repeats, every=5),
        grid_row(real, Examples.SHUFFLED, SCATTERED, repeats, every=5),
        singles_row(real, repeats, every=30),
    ]


def smollm2(device: str) -> Case:
    """SmolLM2 on antonyms."""
    c = Context(SMOLLM2.name, device=device)
    return Case("SmolLM2", c, task_named(c, "antonyms"), N_WORDS)


def narrow_llama(device: str, n_layers: int = N_LAYERS) -> Case:
    """Random weights, grouped heads."""
    from transformers import LlamaConfig

    family = Family()
    tokenizer = bracket_tokenizer(family.n_numbers)
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=n_layers, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=352, vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    bridge = random_model(config, tokenizer, device)
    numbers = numbers_of(bridge.tokenizer, family.n_numbers - 1)
    c = Context("Llama's shape", device=device, loaded=(bridge, bridge.tokenizer))
    return Case(c.model, c, NumberTask("y = a x + b", numbers, N_EXAMPLES, family), N_EXAMPLES)


def bracket_tokenizer(n_numbers: int) -> PreTrainedTokenizerFast:
    """Brackets, comma, space and line end are tokens, as in Llama's prompts of the post, which end on a space."""
    from tokenizers import Regex, pre_tokenizers

    words = ["(", ")\n", ",", " ", "\n", ")", *map(str, range(n_numbers))]
    return level_tokenizer(words, pre_tokenizers.Split(Regex(r"\)\n|[0-9]+|[(), \n]"), "isolated"), 128)


def chosen_sets(shape: tuple[int, int], name: str) -> list[list[Head]]:
    """Six sets, the empty one among them: the post's four, in proportion to depth, and a random one like its heads, so
    that below its lowest layer one cell serves all; or five scattered ones, which differ from the first layer on."""
    draw, (n_layers, n_heads) = random.Random(0), shape
    if name == SCATTERED:
        return [[], *([Head(i, draw.randrange(n_heads)) for i in range(0, n_layers, 8)] for _ in range(5))]
    deep = [n_layers * layer // 32 for layer in range(32)]
    heads = [Head(deep[head.layer], head.head % n_heads) for head in POST_HEADS]
    layers = [heads_in([deep[layer] for layer in chosen], n_heads) for chosen in POST_LAYERS]
    return [[], heads, *layers, [Head(head.layer, draw.randrange(n_heads)) for head in heads]]


def grid_row(
    case: Case, b_sees: Examples, sets: str, repeats: int, n_prompts: int = N_PROMPTS, every: int = 1
) -> Row:  # fmt: skip
    """The grid of one kind of B. every: of the plain way one layer in so many, where B is as long as A."""
    asked = case.ask(n_prompts)
    b, chosen = case.task.ask_b(case.c, asked, b_sees), chosen_sets(case.shape, sets)
    n_layers, n_sets = case.shape[0], len(chosen)
    layers = range(0, n_layers, every)
    ran = 1 + n_sets * (1 + len(layers)), 1 + n_sets * (1 + n_layers)  # the twin's run, A's and B's
    sees = f"{asked.prompts.tokens.shape[1]} and {b.prompts.tokens.shape[1]} tokens, B sees {b_sees}"
    what = f"{case.name}, {n_layers} layers x {n_prompts} prompts x {n_sets} sets ({sets}; {sees})"
    ours, plain = partial(ours_grid, case.c, asked, b, chosen), partial(plain_grid, case.c, asked, b, chosen, layers)
    return compare(what, ours, plain, lambda x, y: difference(x[:, layers].flatten(1), y), repeats, ran=ran)


def singles_row(case: Case, repeats: int, n_prompts: int = N_SINGLES, every: int = 1) -> Row:
    """Every head exchanged by itself. every: of the plain way one head in so many."""
    asked, sets = case.ask(n_prompts), [[head] for head in heads_in(range(case.shape[0]), case.shape[1])]
    sample = sets[every // 2 :: every]
    what = f"{case.name}, {len(sets)} heads one by one, {n_prompts} prompts of {asked.prompts.tokens.shape[1]} tokens"
    return compare(
        what,
        lambda: exchanged(ready(case.c, asked), sets).log_odds,
        lambda: plain_sets(case.c, asked, sample),
        lambda ours, plain: difference(ours[:, every // 2 :: every], plain),
        repeats,
        ran=(1 + len(sample), 1 + len(sets)),
    )


def difference(ours: Float[Tensor, "n k"], plain: Float[Tensor, "n k"]) -> float:
    """The largest. Raises :class:`TalkingHeadsError` where nothing differs between variants."""
    check_moved(plain.std(1), "log-odds by exchanges")
    return (ours.double() - plain).abs().max().item()


def ours_grid(c: Context, asked: Asked, b: Asked, sets: Sets) -> Float[Tensor, "n n_layers n_sets"]:
    """By :func:`talking_heads_utils.experiments.icl.swaps.grid`, its preparation included."""
    return grid(ready(c, asked), sets, prepare(c.bridge, b.prompts, check=False), b.right).patched.log_odds


def plain_grid(c: Context, asked: Asked, b: Asked, sets: Sets, layers: Sequence[int]) -> Float[Tensor, "n cells"]:
    """By hooks on whole prompts, cell by cell: layers, of each all sets."""
    names, twin, found = [f"blocks.{layer}.hook_resid_pre" for layer in layers], _twin(c, asked), []
    for heads in sets:
        given = _kept(c.bridge, asked.prompts, names, _exchanging(asked.prompts, heads, twin))
        found.append([_log_odds(c.bridge, b, [(name, _setting(b.prompts, given[name]))]) for name in names])
    return torch.stack([torch.stack(cells, 1) for cells in found], 2).flatten(1)


def plain_sets(c: Context, asked: Asked, sets: Sets) -> Float[Tensor, "n k"]:
    """By hooks on whole prompts, set by set."""
    twin = _twin(c, asked)
    return torch.stack([_log_odds(c.bridge, asked, _exchanging(asked.prompts, heads, twin)) for heads in sets], 1)


def _twin(c: Context, asked: Asked) -> dict[str, Tensor]:
    return _kept(c.bridge, asked.twins, [f"blocks.{i}.attn.hook_z" for i in range(c.bridge.cfg.n_layers)])


def _kept(
    bridge: TransformerBridge, prompts: PromptSet, names: Sequence[str], changes: Changes = ()
) -> dict[str, Tensor]:
    """What stands at hooks at the last token."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    with logits_at(bridge, end[:, None]):
        _, seen = hooked(bridge, prompts.tokens, changes, names)
    return {name: values[rows, end] for name, values in seen.items()}


def _log_odds(bridge: TransformerBridge, asked: Asked, changes: Changes) -> Float[Tensor, "n"]:
    """Of the right answer in a run of whole prompts, in double precision."""
    with logits_at(bridge, asked.prompts.positions["end"][:, None]):
        logits = hooked(bridge, asked.prompts.tokens, changes)[0][:, 0].double().cpu()
    right = asked.right[:, None]
    return logits.gather(1, right)[:, 0] - logits.scatter(1, right, -torch.inf).logsumexp(1)


def _exchanging(prompts: PromptSet, heads: Sequence[Head], twin: dict[str, Tensor]) -> Changes:
    """Puts the twin's z of some heads at the last token."""
    by_layer = {f"blocks.{head.layer}.attn.hook_z": [h.head for h in heads if h.layer == head.layer] for head in heads}
    return [(name, _setting(prompts, twin[name], some)) for name, some in by_layer.items()]


def _setting(prompts: PromptSet, given: Tensor, some: Sequence[int] | slice = slice(None)) -> Callable[[Tensor], None]:
    """Sets the last token's values, or those of some heads."""
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]

    def put(values: Tensor) -> None:
        new = values[rows, end]
        new[:, some] = given[:, some]
        values[rows, end] = new

    return put
