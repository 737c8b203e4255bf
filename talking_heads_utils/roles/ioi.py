"""Who does what on IOI in a model where nobody published it: movers, who inhibits them, and whom the inhibitors read.

Every head is asked three questions, on the selection half of IOI prompts and of the same prompts with a third name in
S2's place, where no name is named twice:

1. What does it add to the logit difference, and from which token does it take that? (direct effect, source by source)
2. What does its write do to a mover's attention? Its write in that mover's query alone becomes that of the third-name
   prompt (path patching, Wang et al. 2022), in closed form: no forward pass per head.
3. What does its write do to an inhibition head's *values*, and through them to the movers' attention?

A head has a role if its effect passes Holm's correction over all heads that were asked (sign flips of prompts) and the
yardstick of its size. Heads named previous-token look at the token before S2; those of the published circuit act one
token after S1 and write alike with a third name: these prompts do not find them. The held-out half
then measures the chosen heads once more, with intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils import batches, roles
from talking_heads_utils.effects import wanted_direction
from talking_heads_utils.forward.recording import Mover, Recording, mover_of, record, scores_after_shift
from talking_heads_utils.labels import Head
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.ioi import build_ioi, draw_ioi
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.roles import DIRECT, QUERY, VALUE, Role, Roles
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, holm, sign_flip_p

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

ROUNDING = 1e-4  # logits; no smaller direct effect is one
ALPHA = 0.05  # of Holm's correction over all heads that are asked one question
LEAST_SHARE = 0.05  # of the logit difference, or of what all earlier heads do to a reader: less gives no role
LEAST_DRAWS = 99_999  # of random signs behind each p
NAMES = ("IO", "S1", "S2")
THIRD = "third name"


@dataclass(frozen=True)
class Pair:
    """The same prompts twice: as they are, and with a third name in S2's place."""

    clean: Recording
    third: Recording

    @classmethod
    def of(cls, bridge: TransformerBridge, clean: PromptSet, third: PromptSet) -> Pair:
        """Both recorded, every layer but the first as reader."""
        layers = range(1, bridge.cfg.n_layers)
        return cls(record(bridge, clean, layers), record(bridge, third, layers))


def pairs_of_prompts(
    tokenizer: PreTrainedTokenizerBase, n_prompts: int = 400, seed: int = SEED
) -> tuple[tuple[PromptSet, PromptSet], tuple[PromptSet, PromptSet]]:
    """Selection half and held-out half, each as ``(clean, with a third name in S2's place)``."""
    drawn = draw_ioi(tokenizer, n_prompts, seed)
    clean, third = (build_ioi(tokenizer, seed=seed, prompts=drawn, counterfactual=how) for how in (None, THIRD))
    (first, second), (first_third, second_third) = halves(clean), halves(third)
    return (first, first_third), (second, second_third)


def find_roles(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase, *, n_prompts: int = 400, seed: int = SEED
) -> Roles:
    """Roles of a model's heads on IOI: chosen on the selection half of ``n_prompts`` prompts, measured on the other.

    Heads of the first layer have no earlier writer and can be no movers. Raises :class:`TaskError` for too few prompts,
    and as :func:`~talking_heads_utils.forward.recording.record` does for a model whose attention is not known here.
    """
    selection, held_out = pairs_of_prompts(tokenizer, n_prompts, seed)
    chosen = choose(Pair.of(bridge, *selection), looks(bridge, selection[0]))
    return confirm(Pair.of(bridge, *held_out), chosen) if chosen else Roles(())


# --- what heads do -----------------------------------------------------------------------------------------------


@torch.no_grad()
def direct_effects(recording: Recording) -> Float[Tensor, "n n_layers n_heads n_sources"]:
    """Direct effect of every head on the logit difference, in logits, by where its attention takes it from: IO, S (both
    mentions) and every other position. The last norm's divisor is the run's own. The first layer counts as zero."""
    return effects_along(recording, wanted_direction(recording), _sources(recording.prompts))


def effects_along(
    recording: Recording, wanted: Float[Tensor, "n d_model"], sources: Float[Tensor, "n n_sources n_pos"]
) -> Float[Tensor, "n n_layers n_heads n_sources"]:
    """What every head of the recorded layers adds along a direction of the normed stream, from each set of positions
    that its attention takes it from."""
    weights, sources = recording.weights, sources.to(recording.final)
    centered = recording.norm.center(wanted) / recording.final_scale[:, None]
    found = torch.zeros(len(wanted), weights.n_layers, weights.n_heads, sources.shape[1])
    for layer, reader in recording.readers.items():
        at = reader.weights
        along = torch.einsum("hdm,nm->nhd", at.W_O, centered)
        by_position = torch.einsum("nphd,nhd->nhp", reader.values[:, :, at.kv_index], along) * reader.pattern
        found[:, layer] = torch.einsum("nhp,nsp->nhs", by_position, sources).cpu()
    return found


def _sources(prompts: PromptSet) -> Float[Tensor, "n 3 n_pos"]:
    """Which positions count as IO, as S, and as neither."""
    marks = torch.zeros(len(prompts), 3, prompts.tokens.shape[1])
    rows = torch.arange(len(prompts))
    for name, source in (("IO", 0), ("S1", 1), ("S2", 1)):
        marks[rows, source, prompts.positions[name]] = 1
    marks[:, 2] = 1 - marks[:, :2].sum(1)
    return marks


def name_odds(scores: Float[Tensor, "n k n_pos"], prompts: PromptSet) -> Float[Tensor, "n k"]:
    """Log-odds, in nats, of a head's attention from ``end`` to IO against that to S1. From scores before the softmax:
    no sink takes part, and nothing saturates where two heads do the same."""
    rows = torch.arange(len(scores), device=scores.device)
    io, s1 = (scores[rows, :, prompts.positions[name].to(scores.device)] for name in ("IO", "S1"))
    return io - s1


class Asked(NamedTuple):
    """What heads do to one reader, in nats of the movers' :func:`name_odds`: one head at a time, prompt by prompt, NaN
    at the reader's layer and above; and all earlier heads at once, mean over prompts."""

    by_head: Float[Tensor, "n n_layers n_heads"]
    together: float


@torch.no_grad()
def query_effects(pair: Pair, mover: Head) -> Asked:
    """Change of a mover's :func:`name_odds` when one head's write in its query alone is that of the third-name
    prompt."""
    at = mover_of(pair.clean, mover)
    shifts = (pair.third.write(layer) - pair.clean.write(layer) for layer in range(mover.layer))
    return _asked(pair, shifts, 1, lambda shift: _odds_change(at, shift, pair.clean.prompts))


@torch.no_grad()
def value_effects(pair: Pair, inhibition: Head, movers: Sequence[Head]) -> Asked:
    """Change of the movers' :func:`name_odds`, mean over those above, when one earlier head's write in an inhibition
    head's *values* is that of the third-name prompt and what that head then writes reaches the movers' queries."""
    above = [mover_of(pair.clean, mover) for mover in movers if mover.layer > inhibition.layer]
    first = int(pair.clean.prompts.positions["S2"].min())  # before it no position of the two runs differs
    reader = pair.clean.reader(inhibition.layer)
    W, kv = reader.weights, int(reader.weights.kv_index[inhibition.head])

    def effect(shift: Float[Tensor, "n late k d_model"]) -> Float[Tensor, "n k"]:
        values = W.norm(reader.resid[:, first:, None] + shift) @ W.W_V[kv] + W.b_V[kv]
        change = values - reader.values[:, first:, kv, None].contiguous()
        pattern = reader.pattern[:, inhibition.head, first:]
        written = torch.einsum("np,npkd->nkd", pattern, change) @ W.W_O[inhibition.head]
        return torch.stack([_odds_change(at, written, pair.clean.prompts) for at in above]).mean(0)

    def shift(layer: int) -> Tensor:
        z = pair.third.writes[layer][:, first:] - pair.clean.writes[layer][:, first:]
        return torch.einsum("nphd,hdm->nphm", z, pair.clean.weights.W_O[layer].to(z))

    return _asked(pair, map(shift, range(inhibition.layer)), 2, effect)


def _asked(pair: Pair, shifts: Iterable[Tensor], dim: int, effect: Callable[[Tensor], Tensor]) -> Asked:
    """shifts: layer by layer what all its heads write on the third-name prompts, less that on the clean ones; heads are
    dimension ``dim``."""
    weights = pair.clean.weights
    found = torch.full((len(pair.clean.prompts), weights.n_layers, weights.n_heads), torch.nan)
    every = torch.zeros(())
    for layer, shift in enumerate(shifts):
        found[:, layer] = effect(shift).cpu()
        every = every + shift.sum(dim, keepdim=True)
    return Asked(found, effect(every).mean().item())


def _odds_change(at: Mover, shift: Float[Tensor, "n k d_model"], prompts: PromptSet) -> Float[Tensor, "n k"]:
    shifts = torch.cat([torch.zeros_like(shift[:, :1]), shift], 1)
    odds = name_odds(scores_after_shift(at, shifts), prompts)
    return odds[:, 1:] - odds[:, :1]


# --- who has a role ----------------------------------------------------------------------------------------------


def choose(pair: Pair, named: Mapping[Head, str]) -> list[Role]:
    """Roles by one half of the prompts. named: what a head whose write the inhibition heads' values read is called, by
    where it looks (:func:`looks`)."""
    direct = list(_direct_roles(pair))
    movers = _movers(direct)
    inhibition = list(_inhibition_roles(pair, movers))
    return direct + inhibition + list(_value_roles(pair, inhibition, movers, named))


def _movers(found: Sequence[Role]) -> list[Head]:
    return [role.head for role in found if role.role == roles.NAME_MOVER]


def _direct_roles(pair: Pair) -> Iterator[Role]:
    """Heads whose direct effect is sure and above both yardsticks, by the token that most of it comes from.

    The yardsticks: :data:`LEAST_SHARE` of the model's logit difference, and the largest direct effect that any head has
    on the third-name prompts, where nothing tells IO from S.
    """
    effects = direct_effects(pair.clean)
    total = effects.sum(-1)
    noise = direct_effects(pair.third).sum(-1).mean(0).abs().max().item()
    least = max(ROUNDING, noise, LEAST_SHARE * abs(logit_difference(pair.clean).mean().item()))
    mean, by_source = total.mean(0), effects.mean(0)
    p = _corrected(total, mean.abs() >= least, n_asked=mean[1:].numel())
    for layer, head in (p < ALPHA).nonzero().tolist():
        source = int(by_source[layer, head].abs().argmax())
        name = _direct_role(source, bool(by_source[layer, head, source] > 0))
        yield _role(name, Head(layer, head), DIRECT, None, mean[layer, head], p[layer, head])


def _direct_role(source: int, helps: bool) -> str:
    """IO copied from its token or held down, S held down or copied, or neither name looked at."""
    if source == 0:
        return roles.NAME_MOVER if helps else roles.NEGATIVE_MOVER
    if source == 1:
        return roles.S_SUPPRESSION if helps else roles.S_COPY
    return roles.NO_NAME


def _inhibition_roles(pair: Pair, movers: Sequence[Head]) -> Iterator[Role]:
    """Mover by mover, the heads that turn its attention from S to IO."""
    for head, mover, effect, p in _lowering({m: query_effects(pair, m) for m in movers}):
        yield _role(roles.S_INHIBITION, head, QUERY, mover, effect, p)


def _value_roles(
    pair: Pair, inhibition: Sequence[Role], movers: Sequence[Head], named: Mapping[Head, str]
) -> Iterator[Role]:
    """Inhibition head by inhibition head, the earlier heads whose writes its values read."""
    readers = [head for head in dict.fromkeys(role.head for role in inhibition) if head.layer > 0]
    for head, reader, effect, p in _lowering({r: value_effects(pair, r, movers) for r in readers}):
        yield _role(named.get(head, roles.VALUE_SOURCE), head, VALUE, reader, effect, p)


def _lowering(asked: Mapping[Head, Asked]) -> Iterator[tuple[Head, Head, Tensor, Tensor]]:
    """``(head, reader, mean effect, p)`` of heads without which a reader looks less at IO: sure after Holm's correction
    over all heads and readers, and at least :data:`LEAST_SHARE` of what all earlier heads do together."""
    if not asked:
        return
    every = torch.stack([found.by_head for found in asked.values()], 1)
    mean = every.mean(0)
    least = torch.tensor([max(ROUNDING, LEAST_SHARE * abs(found.together)) for found in asked.values()])
    p = _corrected(every, mean <= -least[:, None, None], n_asked=int((~mean.isnan()).sum()))
    for i, layer, head in (p < ALPHA).nonzero().tolist():
        yield Head(layer, head), list(asked)[i], mean[i, layer, head], p[i, layer, head]


def _corrected(effects: Float[Tensor, "n *k"], large: Bool[Tensor, "*k"], n_asked: int) -> Float[Tensor, "*k"]:
    """p of the mean effects that are large enough, by Holm's correction for all that were asked: those that are too
    small count as p = 1, which is on the safe side."""
    p = torch.ones(large.shape, dtype=torch.float64)
    if large.any():
        draws = max(LEAST_DRAWS, 2 * int(n_asked / ALPHA))  # so many that a sure effect can pass
        p[large] = holm(sign_flip_p(effects[:, large], n_draws=draws), n_asked)
    return p


def _role(name: str, head: Head, path: str, reader: Head | None, effect: Tensor, p: Tensor) -> Role:
    return Role(role=name, head=head, path=path, reader=reader, chosen_by=effect.item(), p=p.item())


@torch.no_grad()
def looks(bridge: TransformerBridge, prompts: PromptSet) -> dict[Head, str]:
    """A name for every head that has one, by where more than half of its attention from S2 goes, S2 itself and the
    first position (a sink in many models) left aside: S1 duplicate-token, the token after S1 induction, the one before
    S2 previous-token."""
    s1, s2 = (prompts.positions[name] for name in ("S1", "S2"))
    places = {roles.DUPLICATE_TOKEN: s1, roles.INDUCTION: s1 + 1, roles.PREVIOUS_TOKEN: s2 - 1}
    total = torch.zeros(1 + len(places), bridge.cfg.n_layers, bridge.cfg.n_heads)
    for rows in batches.blocks(len(prompts), 64):
        tokens = prompts.tokens[rows].to(bridge.cfg.device)
        _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_pattern"))
        each, at = torch.arange(len(tokens)), s2[rows]
        for layer in range(bridge.cfg.n_layers):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][each, :, at].float().cpu()
            pattern[each, :, at] = 0
            pattern[:, :, 0] = 0
            total[0, layer] += pattern.sum((0, 2))
            for i, place in enumerate(places.values(), 1):
                total[i, layer] += pattern[each, :, place[rows]].sum(0)
    marks = total[1:] > 0.5 * total[0]
    return {Head(layer, head): list(places)[i] for i, layer, head in marks.nonzero().tolist()}


# --- once more, on the other half --------------------------------------------------------------------------------


def confirm(pair: Pair, chosen: Sequence[Role]) -> Roles:
    """The effects of the heads that were chosen, on prompts that did not choose them, with intervals."""
    movers = _movers(chosen)
    measured: dict[tuple[str, Head | None], Tensor] = {}
    for path, reader in dict.fromkeys((role.path, role.reader) for role in chosen):
        if reader is None:
            effects = direct_effects(pair.clean).sum(-1)
        else:
            effects = (query_effects(pair, reader) if path == QUERY else value_effects(pair, reader, movers)).by_head
        measured[path, reader] = effects
    found = []
    for role in chosen:
        at = (slice(None), role.head.layer, role.head.head)
        effect = bootstrap_mean(measured[role.path, role.reader][at])
        found.append(replace(role, effect=effect, attention=attention_to_names(pair.clean, role.head)))
    return Roles(tuple(found))


def attention_to_names(recording: Recording, head: Head) -> tuple[float, float, float]:
    """Mean attention from ``end`` to IO, S1 and S2; NaN for a head of the first layer, which is not recorded."""
    if head.layer not in recording.readers:
        return math.nan, math.nan, math.nan
    pattern = recording.readers[head.layer].pattern[:, head.head]
    at = (recording.prompts.positions[name].to(pattern.device) for name in NAMES)
    io, s1, s2 = (pattern[recording.rows, place].mean().item() for place in at)
    return io, s1, s2


def logit_difference(recording: Recording) -> Float[Tensor, "n"]:
    """Of the run itself: IO's logit less S's, biases of the unembedding aside."""
    return (recording.norm(recording.final) * wanted_direction(recording)).sum(-1)
