"""Sequences of examples whose two labels are swapped between two kinds of word, and now and then flipped.

Which label belongs to which kind is drawn for every sequence: its rule. Each label is then flipped with one
probability. No word stands twice in a sequence, so that no label can be copied from an earlier line of the same word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from talking_heads_utils import batches
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.prompts.questions import asked_at
from talking_heads_utils.prompts.relations import Relation, WordQuestion, encode_words
from talking_heads_utils.prompts.sets import PromptSet, check_count, check_seed
from talking_heads_utils.prompts.words import token_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

ANIMALS = """dog cat horse cow pig sheep goat lion tiger bear wolf fox deer rabbit mouse rat monkey elephant zebra camel
donkey duck goose chicken turkey eagle owl hawk parrot penguin whale dolphin shark salmon frog snake turtle lizard
crocodile spider bee ant butterfly squirrel seal crow crab bird fish bull bat""".split()
FRUITS = """apple banana orange lemon lime pear peach plum cherry grape strawberry mango pineapple kiwi fig coconut
papaya watermelon avocado pomegranate berry grapefruit citrus cranberry raspberry olive tomato date""".split()
KINDS = (ANIMALS, FRUITS)
LABELS = (("A", "B"), ("yes", "no"))
AT_LEAST = 20  # words of each kind
FLIPS = (0.1, 0.2, 0.3, 0.4)
N_SHOWN, N_ORDERS, N_SEQUENCES = 32, 5, 125  # sequences of each rate of flips


@dataclass(frozen=True)
class Sequences:
    """Sequences, each in several orders of the same examples; the question at the end is the same in all of them.

    flip: rate at which labels are flipped. rule: 0 where the first label belongs to the first kind. kinds, words: of
    each line's word, the question's last: 0 or 1, and its place in the kind's list. labels: as shown, 0 or 1.
    """

    flip: Float[Tensor, "n"]
    rule: Int[Tensor, "n"]
    kinds: Int[Tensor, "n orders lines"]
    words: Int[Tensor, "n orders lines"]
    labels: Int[Tensor, "n orders examples"]

    def __len__(self) -> int:
        return len(self.flip)

    @property
    def right(self) -> Int[Tensor, "n orders lines"]:
        """The label that the rule gives each line's word."""
        return self.kinds ^ self.rule[:, None, None]

    @property
    def sides(self) -> Int[Tensor, "n orders examples"]:
        """1 where a label speaks for the rule, -1 where it speaks against it."""
        return 1 - 2 * (self.labels ^ self.right[..., :-1])

    @property
    def signed(self) -> Int[Tensor, "n orders lines"]:
        """Labels for the rule less labels against it, before each line."""
        return pad(self.sides.cumsum(-1), (1, 0))

    @property
    def weight(self) -> Float[Tensor, "n 1 1"]:
        """Log-odds of one label's being right, in nats: what an exact reader who knows the rate adds for each."""
        return ((1 - self.flip) / self.flip).log()[:, None, None]

    def of(self, rows: Tensor) -> Sequences:
        """Some of them."""
        return Sequences(self.flip[rows], self.rule[rows], self.kinds[rows], self.words[rows], self.labels[rows])

    def relabelled(self, labels: Int[Tensor, "n variants examples"]) -> Sequences:
        """The first order of each with other labels; variants take the place of orders."""
        k = labels.shape[1]
        return Sequences(self.flip, self.rule, self.kinds[:, :1].expand(-1, k, -1),
                         self.words[:, :1].expand(-1, k, -1), labels)  # fmt: skip


def draw(
    n: int = N_SEQUENCES,
    *,
    flips: Sequence[float] = FLIPS,
    n_shown: int = N_SHOWN,
    n_orders: int = N_ORDERS,
    n_words: tuple[int, int] = (AT_LEAST, AT_LEAST),
    seed: int = 0,
) -> Sequences:
    """``n`` sequences of each rate: as many examples of either kind, in random order; rules and asked kinds in turn.

    Raises :class:`TaskError` for fewer than one sequence, two examples or one order, and :class:`NotApplicable` for
    more examples than there are words.
    """
    check_count("n", n, 1), check_count("n_shown", n_shown, 2), check_count("n_orders", n_orders, 1)
    least = (n_shown + 1) // 2 + 1
    if min(n_words) < least:
        raise NotApplicable(f"{n_shown} examples and a question need {least} words of each kind; there are {n_words}.")
    generator = torch.Generator().manual_seed(check_seed(seed))

    def ranks(*shape: int) -> Int[Tensor, "*shape"]:
        return torch.rand(*shape, generator=generator).argsort(-1)

    total, turn = n * len(flips), torch.arange(n).repeat(len(flips))
    flip, rule, asked = torch.tensor(flips, dtype=torch.float64).repeat_interleave(n), turn % 2, turn // 2 % 2
    kinds = torch.cat([(ranks(total, n_shown) < n_shown // 2).long(), asked[:, None]], 1)
    lists = torch.stack([ranks(total, size)[:, :least] for size in n_words], 1)
    before = torch.stack([(kinds == kind).cumsum(1) - 1 for kind in (0, 1)], 1).clamp(min=0)
    words = lists.gather(2, before).gather(1, kinds[:, None])[:, 0]
    flipped = torch.rand(total, n_shown, generator=generator) < flip[:, None]
    labels = kinds[:, :-1] ^ rule[:, None] ^ flipped.long()
    order = torch.cat([torch.arange(n_shown).expand(total, 1, -1), ranks(total, n_orders - 1, n_shown)], 1)
    lines = pad(order, (0, 1), value=n_shown)
    kinds, words, labels = ([*map(lambda part, at: part[:, None].expand(-1, n_orders, -1).gather(2, at),
                                  (kinds, words, labels), (lines, lines, order))])  # fmt: skip
    return Sequences(flip, rule, kinds, words, labels)


def words_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The words of each kind that are one token after a space. Raises :class:`NotApplicable` for fewer than
    :data:`AT_LEAST` of a kind."""
    animals, fruits = ([word for word in kind if token_of(word, tokenizer) is not None] for kind in KINDS)
    if min(len(animals), len(fruits)) < AT_LEAST:
        raise NotApplicable(
            f"Of the animals and fruits only {len(animals)} and {len(fruits)} are one token of this tokenizer; "
            f"{AT_LEAST} of each are needed."
        )
    return animals, fruits


def labels_of(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Those of :data:`LABELS` that are one token each. Raises :class:`NotApplicable` where none are."""
    found = [pair for pair in LABELS if None not in [token_of(label, tokenizer) for label in pair]]
    if not found:
        raise NotApplicable("This tokenizer keeps neither A and B nor yes and no as one token each.")
    return found


def encode(
    sequences: Sequences, labels: tuple[str, str], tokenizer: PreTrainedTokenizerBase, *, n_ctx: int | None = None
) -> PromptSet:
    """All orders of the first sequence, then of the second, and so on: lines `` dog -> A`` and a question `` cat ->``.

    Every line begins with a space, so that its word is one token. Raises :class:`NotApplicable` for a tokenizer that
    lacks words, and what :func:`talking_heads_utils.prompts.relations.encode_words` raises.
    """
    words, questions = words_of(tokenizer), []
    flat = [
        part.flatten(0, 1).tolist() for part in (sequences.kinds, sequences.words, sequences.labels, sequences.right)
    ]
    for kinds, places, shown, right in zip(*flat):
        xs = [f" {words[kind][place]}" for kind, place in zip(kinds, places)]
        pairs = tuple((x, labels[label]) for x, label in zip(xs, shown))
        questions.append(WordQuestion(pairs, xs[-1], labels[right[-1]]))
    task = Relation(" and ".join(labels), tuple(("", label) for label in labels), 0)
    return encode_words(questions, task, tokenizer, n_ctx=n_ctx)


@torch.no_grad()
def log_odds(
    bridge: TransformerBridge,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences,
    labels: tuple[str, str],
    *,
    only_last: bool = False,
    batch: int = 32,
) -> Float[Tensor, "n orders questions"]:
    """Logit of the label that the rule gives, less the other's, at every line's arrow, or at the question alone.

    One pass over each prompt. Two columns of the unembedding are read, in double precision whatever the model's.
    """
    prompts = encode(sequences, labels, tokenizer, n_ctx=bridge.cfg.n_ctx)
    places = torch.stack(asked_at(prompts)[-1 if only_last else 0 :], 1)
    ids = [token_of(label, tokenizer) for label in labels]
    direction = bridge.W_U[:, ids[0]].double() - bridge.W_U[:, ids[1]].double()
    bias = 0.0 if bridge.unembed.b_U is None else float(bridge.unembed.b_U[ids[0]] - bridge.unembed.b_U[ids[1]])
    found = torch.zeros(places.shape, dtype=torch.float64)
    for rows in batches.blocks(len(prompts), batch, "blocks of sequences"):
        found[rows] = _streams(bridge, prompts.tokens[rows], places[rows]).double().matmul(direction).cpu() + bias
    found = found.unflatten(0, sequences.labels.shape[:2])
    return found * (1 - 2 * sequences.right[..., -1:] if only_last else 1 - 2 * sequences.right)


def _streams(
    bridge: TransformerBridge, tokens: Int[Tensor, "n n_pos"], places: Int[Tensor, "n k"]
) -> Float[Tensor, "n k d_model"]:
    """What is unembedded at some places; logits are made of one position alone, and not looked at."""
    kept = []

    def cut(module: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        stream, *more = given
        kept.append(stream[torch.arange(len(stream), device=stream.device)[:, None], places.to(stream.device)])
        return stream[:, :1], *more

    handle = bridge.unembed.register_forward_pre_hook(cut)
    try:
        bridge(tokens.to(bridge.cfg.device))
    finally:
        handle.remove()
    return kept[0]
