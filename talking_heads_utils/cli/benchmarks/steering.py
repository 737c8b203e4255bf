"""Steering: one token per setting on kept keys and values, beside whole hooked runs of the same settings.

SmolLM2 has chapter 2's components and movers. Speed does not depend on the weights' values, so a model of GPT-2 small's
shape has random ones, large enough that steering moves attention. Ours runs the paper's whole grid on one prompt; the
plain way a sample of the same settings on the same prompt, its time scaled up to the grid. The results are compared on
that sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talking_heads_utils.cli.benchmarks import Row, check_moved, compare, hooked, random_model
from talking_heads_utils.experiments.list_prompts import Lists, Part, build
from talking_heads_utils.experiments.positional.grid import ATTENTION, LOGITS, Steering, grid, prepare, steer
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.toy import word_tokenizer
from talking_heads_utils.weights.packages import SMOLLM2

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABOUT = "SmolLM2, and GPT-2 small's shape with random values"
N_ITEMS = 5
VALUES = tuple(float(v) for v in range(-100, 101, 10))  # the paper's axis: 21 values, 9,261 settings
PLAIN_BATCH, N_PLAIN = 32, 64  # of the plain way: settings per run, and settings of the sample


@dataclass(frozen=True)
class Case:
    """A model, who writes and who is read."""

    name: str
    bridge: TransformerBridge
    writers: Sequence[Component]
    movers: Sequence[Head]

    @cached_property
    def exact(self) -> Case:
        """The same in double precision."""
        return replace(self, bridge=copy.deepcopy(self.bridge).to(torch.float64))


def rows(repeats: int = 3, device: str = "cpu") -> list[Row]:
    """Both models, attention of the movers and logits of the candidates."""
    real, shape = smollm2(device), gpt2_shape(device)
    return [row(case, N_ITEMS, read, repeats) for case in (real, shape) for read in (ATTENTION, LOGITS)]


def smollm2(device: str = "cpu") -> Case:
    """SmolLM2, chapter 2's triple of writers and the movers above them."""
    from talking_heads_utils.experiments.positional.sweep import usual

    context, writers, movers = usual(SMOLLM2.name, device)
    return Case("SmolLM2", context.bridge, writers, movers)


def gpt2_shape(device: str) -> Case:
    """Random weights in GPT-2 small's shape."""
    from transformers import GPT2Config

    bridge = random_model(GPT2Config(initializer_range=0.1), word_tokenizer(), device)
    writers = [Component.parse(name) for name in ("L7H3.1", "L8H6.2", "L8H10.1")]
    return Case("GPT-2 shape", bridge, writers, [Head(9, 6), Head(9, 9)])


def row(
    case: Case, n_items: int, read: str, repeats: int, values: Sequence[float] = VALUES, n_plain: int = N_PLAIN
) -> Row:
    """One model, one list length, one read-out: times of the whole grid on one prompt."""
    prompts = build(case.bridge.tokenizer, Lists(Part.SELECTION, n_items, 1))
    steering = prepare(case.bridge, prompts, case.writers)
    settings = grid(values, len(case.writers))
    sample = settings[torch.randperm(len(settings), generator=torch.Generator().manual_seed(0))[:n_plain]]
    what: dict[str, Any] = dict(movers=case.movers) if read == ATTENTION else dict(logits=True)

    def difference(ours: Tensor, plain: Tensor) -> float:
        """In double precision: in single precision either way is some 5e-4 from the truth where logits lie at 35."""
        check_moved(ours[0].std(0), f"{read} of {case.name} by steering")
        exact, own = case.exact, sample.double()
        steered = prepare(exact.bridge, prompts, exact.writers)
        found = steer(steered, own, **what)[read][0]
        return (found - plain_runs(exact, prompts, steered, own, read)).abs().max().item()

    n_pos = int(prompts.positions["end"][0]) + 1
    return compare(
        f"{case.name}, {read}, {n_items} items ({n_pos} tokens): {len(settings):,} settings of one prompt",
        lambda: steer(prepare(case.bridge, prompts, case.writers), settings, **what)[read],
        lambda: plain_runs(case, prompts, steering, sample, read),
        difference,
        repeats,
        ran=(len(sample), len(settings)),
    )


def plain_runs(case: Case, prompts: PromptSet, steering: Steering, settings: Tensor, read: str) -> Tensor:
    """Whole runs of the whole prompt with hooks, a batch of settings at a time."""
    end, found = int(prompts.positions["end"][0]), []
    patterns = {m.layer: f"blocks.{m.layer}.attn.hook_pattern" for m in case.movers}
    for batch in settings.to(steering.middle).split(PLAIN_BATCH):

        def adding(layer: int, batch: Tensor = batch) -> Callable[[Tensor], Tensor]:
            columns = [k for k, w in enumerate(case.writers) if w.layer == layer]
            write = batch[:, columns] @ steering.directions[columns]
            return lambda out: out[:, end].add_(write)

        changes = [(f"blocks.{layer}.hook_attn_out", adding(layer)) for layer in {w.layer for w in case.writers}]
        tokens = prompts.tokens[:, : end + 1].expand(len(batch), -1)
        logits, seen = hooked(case.bridge, tokens, changes, patterns.values())
        if read == ATTENTION:
            at_end = torch.stack([seen[patterns[m.layer]][:, m.head, end] for m in case.movers], 1)
            to_items = at_end[:, :, steering.items[0]]
            found.append(to_items / to_items.sum(-1, keepdim=True))
        else:
            found.append(logits[:, end, steering.candidates[0]])
    return torch.cat(found)
