"""What an edit changes that it was not made for: next-token distributions on other text, and other heads' patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.editing import edit as edited
from talking_heads_utils.edits.edits import Edit
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.corpus import corpus_of
from talking_heads_utils.experiments.editing.components import Components, Prompts
from talking_heads_utils.experiments.editing.search import Candidate
from talking_heads_utils.experiments.editing.upper import Upper
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.forward.layers import wide
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import bootstrap_mean

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TextRow(Row):
    model: str = column("", "as the command took it")
    search: str = column("", "that found the edit: gradient, grid")
    draw: int | None = column("", "random components in place of the chosen ones; empty: the chosen")
    loss: float = column("nats", "per token of running text, without an edit")
    change: float = column("nats", "of the loss, by the edit")
    low: float = column("nats", "95% interval of the change over windows, paired, lower end")
    high: float = column("nats", "95% interval of the change over windows, paired, upper end")
    kl: float = column("nats", "divergence of the next token's distribution from the untouched one, mean")
    n: int = column("windows", "of running text")


@dataclass(frozen=True)
class MovedRow(Row):
    model: str = column("", "as the command took it")
    search: str = column("", "that found the edit: gradient, grid")
    draw: int | None = column("", "random components in place of the chosen ones; empty: the chosen")
    layer: int = column("", "of the head, from 0")
    head: int = column("", "within its layer, from 0")
    moved: float = column("total variation", "distance of its pattern from the untouched one, mean over positions")
    edited: bool = column("", "whether a component of this head was scaled")
    n: int = column("prompts", "IOI")


@dataclass(frozen=True)
class Harm:
    """One edit on running text, window by window.

    before, loss: mean of -log p of the next token, in nats, with untouched and with edited weights.
    kl: mean Kullback-Leibler divergence of the edited next-token distribution from the untouched one, in nats.
    pattern: total variation distance between attention patterns, mean over windows and positions, per head.
    Padding counts in none of them.
    """

    before: Float[Tensor, "n_windows"]
    loss: Float[Tensor, "n_windows"]
    kl: Float[Tensor, "n_windows"]
    pattern: Float[Tensor, "n_layers n_heads"]


@torch.no_grad()
def harm_at_end(
    upper: Upper, factors: Float[Tensor, "k n_components"]
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """On prompts of another task, at ``end``: divergence of the edited next-token distribution from the untouched one
    (nats, over the whole vocabulary), and whether the answer leads the candidates."""
    found = []
    for rows in upper.blocks(len(factors)):
        plain = upper.suffix.logits(upper.run(factors.new_ones(1, factors.shape[1]), rows)[0]).log_softmax(-1)
        logits = upper.suffix.logits(upper.run(factors, rows)[0])
        kl = (plain.exp() * (plain - logits.log_softmax(-1))).sum(-1)
        own = logits.gather(2, upper.candidates[rows, None].expand(-1, len(factors), -1))
        found.append((kl, own[..., 0] > own[..., 1:].amax(-1)))
    kl, right = (torch.cat(part).cpu() for part in zip(*found))
    return kl, right


@torch.no_grad()
def text_harm(
    bridge: TransformerBridge,
    edits: Sequence[Edit],
    tokens: Int[Tensor, "n_windows n_pos"],
    mask: Bool[Tensor, "n_windows n_pos"] | None = None,
    *,
    batch: int = 16,
) -> list[Harm]:
    """Every edit on the same text. mask: True where a token is no padding, which stands at the right; None where there
    is none. Raises as :func:`~talking_heads_utils.editing.edit` does."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    parts: list[list[Harm]] = [[] for _ in edits]
    for rows in batches.blocks(len(tokens), batch, "blocks of text"):
        part, real = tokens[rows].to(bridge.cfg.device), mask[rows].to(bridge.cfg.device)
        plain, patterns = _run(bridge, part)
        for of_edit, edit in zip(parts, edits):
            with edited(bridge, edit):
                found, after = _run(bridge, part)
            kl = _mean((plain.exp() * (plain - found)).sum(-1), real)
            moved = _mean((after - patterns).abs().sum(-1) / 2, real[:, None, None])
            of_edit.append(Harm(_loss(plain, part, real), _loss(found, part, real), kl, moved))
    return [_joined(of_edit) for of_edit in parts]


def _run(bridge: TransformerBridge, tokens: Tensor) -> tuple[Tensor, Float[Tensor, "n layers heads n_pos n_pos"]]:
    logits, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]
    return wide(logits).log_softmax(-1), torch.stack([wide(cache[name]) for name in names], 1)


def _loss(
    log_probs: Float[Tensor, "n n_pos d_vocab"], tokens: Int[Tensor, "n n_pos"], mask: Bool[Tensor, "n n_pos"]
) -> Float[Tensor, "n"]:
    flat = F.nll_loss(log_probs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return _mean(flat.view(len(tokens), -1), mask[:, 1:])


def _mean(values: Float[Tensor, "*rows n_pos"], mask: Bool[Tensor, "*rows n_pos"]) -> Float[Tensor, "*rows"]:
    """Over the positions that are no padding."""
    return values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)


def _joined(rows: list[Harm]) -> Harm:
    """Batches put together; patterns, kept per window so far, become their mean."""
    before, loss, kl, pattern = (
        torch.cat([getattr(row, name) for row in rows]).cpu() for name in ("before", "loss", "kl", "pattern")
    )
    return Harm(before, loss, kl, pattern.mean(0))


def on_text(
    run: Context, at: Components, chosen: Sequence[Candidate], texts: Sequence[str], n_windows: int = 100
) -> list[TextRow]:
    """Edits on running text. For models trained on such: the book's toys were trained on answers alone."""
    tokens, rows = corpus_of(texts, run.tokenizer, n_windows=n_windows).tokens, []
    for c, found in zip(chosen, text_harm(run.bridge, [at.edit(run, c.factors) for c in chosen], tokens)):
        change = bootstrap_mean(found.loss - found.before)
        rows.append(TextRow(run.model, c.search, c.draw, found.before.mean().item(), *change[:3],
                            found.kl.mean().item(), change.n))  # fmt: skip
    return rows


def heads_moved(run: Context, at: Components, chosen: Sequence[Candidate], n_prompts: int = 24) -> list[MovedRow]:
    """How far every head's pattern moves on IOI prompts, which no edit was made for."""
    prompts = at.on(run, Prompts.IOI)[0]
    tokens, mask, rows = prompts.tokens[:n_prompts], prompts.mask[:n_prompts], []
    for c, found in zip(chosen, text_harm(run.bridge, [at.edit(run, c.factors) for c in chosen], tokens, mask)):
        own = {one.of_head for one, g in zip(at.every, c.factors.tolist()) if g != 1}
        rows += [
            MovedRow(run.model, c.search, c.draw, layer, head, moved, Head(layer, head) in own, len(tokens))
            for layer, of_layer in enumerate(found.pattern.tolist()) for head, moved in enumerate(of_layer)
        ]  # fmt: skip
    return rows
