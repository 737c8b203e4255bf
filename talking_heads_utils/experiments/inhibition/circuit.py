"""Who does what on IOI, and how much of it runs through those heads: what they add to the logit difference, and what is
left of it when they see a prompt without a duplicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches, roles
from talking_heads_utils.effects import wanted_direction
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import ModelRow, Row, column, maybe
from talking_heads_utils.experiments.rows import rows as rows_of
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.forward.engine import Z, prepare
from talking_heads_utils.forward.layers import attention_layer
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Head
from talking_heads_utils.roles import Roles
from talking_heads_utils.roles.ioi import Pair, direct_effects, logit_difference, pairs_of_prompts
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, middle

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DIRECT_ROLES = (roles.NAME_MOVER, roles.S_SUPPRESSION, roles.NO_NAME, roles.NEGATIVE_MOVER, roles.S_COPY)
OTHER_HEADS, MLPS, BELOW = "other heads", "MLPs", "embedding and first layer"
SOURCES, EXCHANGE = "sources", "exchange"
ALL_THREE = "all three"  # name movers, inhibition heads and those that suppress S
N_DRAWS = 99  # of sets of heads without a role, as many of each layer; equal ones count once


@dataclass(frozen=True)
class CircuitRow(ModelRow):
    """What heads have to do with the logit difference on IOI: in parts that add up to it, and what is lost of it when
    heads write at ``end`` what they write there on the third-name prompts."""

    measure: str = column("", "sources: parts of the logit difference; exchange: change of it")
    part: str = column("", "a role, or what else adds to the logit difference")
    heads: str = column("", "those of the role")
    effect: float = column("logits", "mean over prompts")
    low: float = column("logits", "lower end of its 95% interval over prompts")
    high: float = column("logits", "upper end")
    share: float = column("share", "of the logit difference, or of its change from clean to third-name prompts")
    n: int = column("prompts", "of the held-out half")
    control: float | None = maybe("logits", "exchange: mean over matched sets of heads without a role")
    control_low: float | None = maybe("logits", "2.5% point of those sets")
    control_high: float | None = maybe("logits", "97.5% point")
    n_sets: int | None = maybe("sets", "how many different ones there are")
    p: float | None = maybe("", "share of sets, itself included, that lower it as much")


@dataclass(frozen=True)
class RoleRow(Row):
    """One head's role on IOI through one path; a head that acts on several readers has a row for each."""

    role: str = column("", "name mover, S-inhibition and so on")
    head: str = column("", "the head")
    path: str = column("", "what it acts on: the logits, a mover's query, or an inhibition head's values")
    reader: str = column("", "that mover or inhibition head; empty for the logits")
    effect: float = column("`unit`", "mean over the held-out half")
    low: float = column("`unit`", "lower end of its 95% interval over prompts")
    high: float = column("`unit`", "upper end")
    unit: str = column("", "logits of the logit difference, or nats of a mover's attention, IO to S1")
    n: int = column("prompts", "of the held-out half")
    chosen_by: float = column("`unit`", "mean over the selection half")
    p: float = column("", "there, sign flips over prompts, after Holm's correction over all heads and readers")
    to_io: float = column("share of attention", "mean from end to IO; empty for the first layer")
    to_s1: float = column("share of attention", "to S1")
    to_s2: float = column("share of attention", "to S2")
    confirmed: bool = column("", "whether the held-out half's interval lies on the selection half's side of zero")


def run_roles(c: Context) -> list[RoleRow]:
    """Who does what; :class:`~talking_heads_utils.roles.Roles` reads the rows back. Raises :class:`NotApplicable` for a
    model that cannot do IOI."""
    return rows_of(c.run_roles().frame(), RoleRow)


def run(c: Context) -> list[CircuitRow]:
    """Both measures on the held-out half. Raises :class:`NotApplicable` for a model that cannot do IOI."""
    found = c.roles  # first: a model without any is not run
    held_out = Pair.of(c.bridge, *pairs_of_prompts(c.tokenizer, c.n(400, 80), c.seed)[1])
    sources = source_rows(held_out.clean, found, model=c.model)
    return [*sources, *exchange_rows(c.bridge, held_out, found, model=c.model, seed=c.seed)]


def layer_effects(recording: Recording) -> Float[Tensor, "n n_layers"]:
    """Direct effect of what each layer adds to the stream at ``end`` on the logit difference, attention and MLP
    together, in logits, under the run's own last divisor. The first layer's entry holds the embedding as well."""
    centered = recording.norm.center(wanted_direction(recording))
    scale = recording.final_scale
    streams = [recording.readers[layer].resid[recording.rows, recording.end] for layer in sorted(recording.readers)]
    along = torch.stack([(x * centered).sum(-1) / scale for x in (*streams, recording.final)], 1)
    return along.diff(dim=1, prepend=torch.zeros_like(along[:, :1])).cpu()


def source_rows(recording: Recording, found: Roles, *, model: str = "") -> list[CircuitRow]:
    """The logit difference in parts that add up to it: heads by role, all other heads, the MLPs of each quarter of the
    layers (attention biases among them), and what stands below the second layer."""
    heads = direct_effects(recording).sum(-1)
    layers = layer_effects(recording)
    named = {role: found.heads(role) for role in DIRECT_ROLES}
    parts = {
        role: torch.stack([heads[:, h.layer, h.head] for h in some]).sum(0) for role, some in named.items() if some
    }
    parts[OTHER_HEADS] = heads.sum((1, 2)) - sum(parts.values(), torch.zeros(len(heads)))
    mlps = layers[:, 1:] - heads[:, 1:].sum(-1)
    for quarter in torch.arange(1, recording.weights.n_layers).chunk(4):
        parts[f"{MLPS}, layers {quarter[0]} to {quarter[-1]}"] = mlps[:, quarter - 1].sum(1)
    parts[BELOW] = layers[:, 0]
    whole = logit_difference(recording).mean().item()
    rows = []
    for part, values in parts.items():
        mean, low, high, n = bootstrap_mean(values)
        names = ", ".join(map(str, named.get(part, ())))
        rows.append(CircuitRow(model, SOURCES, part, names, mean, low, high, mean / whole, n))
    return rows


def exchange_rows(
    bridge: TransformerBridge, pair: Pair, found: Roles, *, model: str = "", seed: int = SEED
) -> list[CircuitRow]:
    """What the logit difference is when the heads of a role write at ``end`` what they write on the third-name prompts,
    everything above them taking part; beside up to :data:`N_DRAWS` sets of heads without a role, as many of each layer.
    """
    three = (roles.NAME_MOVER, roles.S_INHIBITION, roles.S_SUPPRESSION)
    named = {role: [role] for role in three} | {ALL_THREE: [*three]}
    sets = {name: heads for name, of in named.items() if (heads := found.heads(*of))}
    if not sets:
        return []
    taken = {role.head for role in found.entries}
    draws = {name: matched_sets(heads, taken, pair.clean.weights.n_heads, seed=seed) for name, heads in sets.items()}
    values = exchanged(bridge, pair, [[], *sets.values(), *(some for name in sets for some in draws[name])])
    change = values[:, 1:] - values[:, :1]
    whole = (logit_difference(pair.third) - logit_difference(pair.clean)).mean().item()
    controls = change[:, len(sets) :].mean(0).split([len(draws[name]) for name in sets])
    rows = []
    for i, ((name, heads), control) in enumerate(zip(sets.items(), controls)):
        mean, low, high, n = bootstrap_mean(change[:, i])
        names, (control_low, control_high) = ", ".join(map(str, heads)), middle(control)
        rows.append(CircuitRow(
            model, EXCHANGE, name, names, mean, low, high, mean / whole, n, control=control.mean().item(),
            control_low=control_low, control_high=control_high, n_sets=len(control), p=rank_p(-mean, -control),
        ))  # fmt: skip
    return rows


def matched_sets(
    heads: Sequence[Head], taken: set[Head], n_heads: int, n: int = N_DRAWS, *, seed: int = SEED
) -> list[list[Head]]:
    """The different ones of ``n`` draws of as many heads of each layer as ``heads`` has there, none of them ``taken``;
    where a layer has too few others, all of those."""
    generator = torch.Generator().manual_seed(seed)
    by_layer = Counter(head.layer for head in heads)
    found: dict[tuple[Head, ...], None] = {}
    for _ in range(n):
        drawn: list[Head] = []
        for layer, k in by_layer.items():
            free = [Head(layer, h) for h in range(n_heads) if Head(layer, h) not in taken]
            drawn += [free[i] for i in torch.randperm(len(free), generator=generator)[:k].tolist()]
        found[tuple(sorted(drawn))] = None
    return [list(drawn) for drawn in found]


@torch.no_grad()
def exchanged(
    bridge: TransformerBridge, pair: Pair, variants: Sequence[Sequence[Head]]
) -> Float[Tensor, "n n_variants"]:
    """Logit difference of every variant: the heads it names write at ``end`` what they write there on the third-name
    prompts, and the last token runs through all layers above."""
    prompts, n_heads = pair.clean.prompts, pair.clean.weights.n_heads
    start = min((head.layer for some in variants for head in some), default=bridge.cfg.n_layers - 1)
    ends = prepare(bridge, prompts, start)
    marks = torch.zeros(len(variants), bridge.cfg.n_layers, n_heads, dtype=torch.bool, device=ends.end.device)
    for i, some in enumerate(variants):
        for head in some:
            marks[i, head.layer, head.head] = True
    other = {layer: _z_at_end(bridge, pair.third, layer) for layer in range(start, bridge.cfg.n_layers)}
    candidates, parts = prompts.candidates.to(ends.end.device), []
    for rows in batches.blocks(len(prompts), 16):

        def change(site: str, layer: int, value: Tensor, rows: slice = rows) -> Tensor:
            if site != Z:
                return value
            return torch.where(marks[:, layer, None, :, None], other[layer][rows, None, None], value)

        x = ends.resid[rows, None, None].expand(-1, len(marks), -1, -1)
        x = ends.run(x, ends.at_end(), change=change, rows=rows)[:, :, 0]
        logits = ends.logits(x, candidates[rows])
        parts.append(logits[..., 0] - logits[..., 1:].mean(-1))
    return torch.cat(parts).cpu()


def _z_at_end(bridge: TransformerBridge, recording: Recording, layer: int) -> Float[Tensor, "n n_heads d_head"]:
    """What a layer's heads gather at ``end``, value biases included."""
    if layer in recording.writes:
        at = attention_layer(bridge, layer)
        return recording.writes[layer][recording.rows, recording.end] + at.b_V[at.kv_index]
    reader = recording.reader(layer)
    return torch.einsum("nhp,nphd->nhd", reader.pattern, reader.values[:, :, reader.weights.kv_index])
