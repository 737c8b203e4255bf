"""Chapter 1's experiments on one model, and the tables that put several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import roles
from talking_heads_utils.device import check_device
from talking_heads_utils.effects import (
    INTERVENTIONS,
    KEY,
    QUERY,
    Effects,
    attention_without,
    component_effects,
    inhibition_score,
    total_effect,
)
from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.corpus import activity, contexts, corpus_of, rates
from talking_heads_utils.experiments.inhibition.agreement import Agreement, agreement
from talking_heads_utils.experiments.inhibition.concentration import (
    RANDOM,
    channel_curve,
    concentration,
    dimension,
    needed_for,
    shares,
    stable_rank,
    whole_effect,
)
from talking_heads_utils.experiments.inhibition.signal import factorial_prompts, place_or_identity, place_or_name
from talking_heads_utils.forward.recording import Recording, record
from talking_heads_utils.forward.suffix import suffix
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.models import PLANTED, known_models, load_model, load_with_tokenizer, moved, shown_as
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.ioi import build_ioi, draw_ioi
from talking_heads_utils.prompts.lists import build_laundry
from talking_heads_utils.prompts.sets import PromptSet, item_positions
from talking_heads_utils.roles import Roles
from talking_heads_utils.roles.lists import (
    FoundRoles,
    by_weights,
    precision_and_recall,
    remove_from_values,
    roles_on_lists,
)
from talking_heads_utils.scores.scores import ONE_COMPONENT, CompositionScores, compute_scores
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import bootstrap_mean, spearman

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

CONTROL = "planted, no channel"
N_FOLLOWED = 64  # components whose total effect is measured, the strongest and as many at random


@dataclass(frozen=True)
class Study:
    """A model and its prompts. What is measured is computed when it is first asked for and kept.

    roles: those found on IOI, whose selection half is that of ``prompts``; without them, movers and inhibition heads
    are found on the selection half of ``prompts``, which are lists.
    """

    name: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    seed: int
    roles: Roles | None = None

    @property
    def shows(self) -> str:
        """What a figure of this model must be called."""
        return shown_as(self.name.split(",")[0])

    @cached_property
    def found(self) -> FoundRoles:
        """Movers and inhibition heads, by the selection half."""
        return roles_on_lists(self.bridge, self.prompts, seed=self.seed)

    @property
    def mover(self) -> Head:
        """The strongest mover. Raises :class:`TaskError` where IOI has none."""
        return self.found.movers[0] if self.roles is None else self.roles.mover

    @property
    def inhibition(self) -> list[Head]:
        """Inhibition heads below the strongest mover, the strongest first."""
        found = self.found.inhibition if self.roles is None else self.roles.heads(roles.S_INHIBITION)
        return [head for head in found if head.layer < self.mover.layer]

    @cached_property
    def halves(self) -> tuple[Recording, Recording]:
        """Recordings of the selection half and the held-out one, the mover's layer as reader."""
        first, second = (record(self.bridge, half, [self.mover.layer]) for half in halves(self.prompts))
        return first, second

    @property
    def held_out(self) -> Recording:
        return self.halves[1]

    @cached_property
    def effects(self) -> Effects:
        """Removal of every component from the mover's query, on the held-out half."""
        return component_effects(self.held_out, self.mover)

    @cached_property
    def agreement(self) -> Agreement:
        return agreement(self.held_out, self.effects, seed=self.seed)

    @cached_property
    def scores(self) -> CompositionScores:
        """Composition scores of the model's own weights, into queries."""
        return compute_scores(self.held_out.weights, "Q", seed=self.seed)

    @cached_property
    def ranked(self) -> list[Component]:
        """Components of the inhibition heads, by how much the removal of each lowers I(m) on the selection half."""
        table = component_effects(self.halves[0], self.mover).table()
        named = [Component.parse(name) for name in table.sort_values("inhibition", kind="stable")["writer"]]
        return [c for c in named if c.of_head in self.inhibition]

    def strongest(self, n: int) -> list[Component]:
        """The first of :attr:`ranked`."""
        return self.ranked[:n]


def study(
    name: str, *, n_items: int, n_prompts: int = 400, seed: int = SEED, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Study:  # fmt: skip
    """A model by name (also :data:`CONTROL`) with lists of ``n_items``."""
    from talking_heads_utils.planted.model import plant

    if name in (PLANTED, CONTROL):
        truth = plant(channel=name == PLANTED, seed=seed)
        bridge, tokenizer = moved(truth.bridge, check_device(device), dtype), truth.tokenizer
    else:
        bridge = load_model(name, device, dtype)
        tokenizer = bridge.tokenizer
    return Study(name, bridge, tokenizer, build_laundry(tokenizer, n_items, n_prompts, seed), seed)


def study_on_ioi(
    name: str, found: Roles, *, n_prompts: int = 400, seed: int = SEED, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Study:  # fmt: skip
    """A model by name with IOI prompts and the roles that
    :func:`~talking_heads_utils.roles.ioi.find_roles` found on as many, with the same seed."""
    bridge, tokenizer = load_with_tokenizer(name, device, dtype)
    return Study(name, bridge, tokenizer, build_ioi(tokenizer, n_prompts, seed), seed, found)


def circuit_table(studies: Sequence[Study]) -> pd.DataFrame:
    """One row per model. Columns: model, movers, their share of the logit difference; where the answer runs through the
    movers also inhibition heads, I(m) of the strongest mover with its 95% interval, n; where others published roles,
    how many of the published heads were found. A dash where a column does not apply."""
    import pandas as pd

    rows = []
    for s in studies:
        row = {
            "model": s.name, "movers": ", ".join(map(str, s.found.movers)),
            "their share of the logit difference": s.found.share,
        }  # fmt: skip
        if s.found.through_movers:
            score = bootstrap_mean(inhibition_score(s.held_out, s.mover).cpu())
            row |= {
                "inhibition heads": ", ".join(map(str, s.inhibition)) or "none",
                "I(m)": f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]",
                "n": str(score.n),
            }
        rows.append(row | _against_published(s))
    return pd.DataFrame(rows).fillna("—")


def _against_published(s: Study) -> dict[str, str]:
    """How many heads of the published roles were found, where a model has any."""
    known = known_models().get(s.name)
    if known is None or not known.roles:
        return {}
    pairs = ((roles.NAME_MOVER, s.found.movers), (roles.S_INHIBITION, s.found.inhibition))
    return {
        f"published {role}s found": f"{len(set(known.roles[role]) & set(found))} of {len(known.roles[role])}"
        for role, found in pairs
    }


def agreement_table(studies: Sequence[Study]) -> pd.DataFrame:
    """:class:`~experiments.inhibition.agreement.Agreement` of each model, a row each. Columns: model, Spearman,
    low, high, the largest draws of two nulls, the mean of the third, components, prompts."""
    import pandas as pd

    rows = []
    for s in studies:
        a = s.agreement
        rows.append({
            "model": s.name, "Spearman": a.value, "low": a.low, "high": a.high,
            "noise alone, largest": a.noise.max().item(), "shuffled within heads, largest": a.permuted.max().item(),
            "rotated bases, mean": a.rotated.mean().item(), "components": a.n_components, "prompts": a.n_prompts,
        })  # fmt: skip
    return pd.DataFrame(rows)


def concentration_tables(studies: Sequence[Study], n_heads: int = 3) -> dict[str, pd.DataFrame]:
    """``"model: head"`` -> removal of its top k components, of k random ones and of the whole head."""
    return {
        f"{s.name}: {head}": concentration(*s.halves, s.mover, head, seed=s.seed)
        for s in studies
        for head in s.inhibition[:n_heads]
    }


def ninety_table(studies: Sequence[Study]) -> pd.DataFrame:
    """How many components reach 90% of each inhibition head's effect. Columns: model, head, change of I(m) with the
    whole head out, components for 90% (empty where the head does not lower I(m)), stable rank of its weights, of
    (d_head)."""
    import pandas as pd

    rows = []
    for s in studies:
        ranks = stable_rank(s.held_out.singular_values)
        for head in s.inhibition:
            k, whole = needed_for(*s.halves, s.mover, head)
            rows.append({
                "model": s.name, "head": str(head), "whole head: change of I(m)": whole, "components for 90%": k,
                "stable rank": ranks[head.layer, head.head].item(), "of": s.held_out.weights.d_head,
            })  # fmt: skip
    return pd.DataFrame(rows)


def channel_table(studies: Sequence[Study]) -> pd.DataFrame:
    """What the inhibition heads of each model together write into the mover's query: the change of I(m) when all of it
    is taken out, how many directions do 90% of that, and which share as many random ones do."""
    import pandas as pd

    rows = []
    for s in studies:
        table = channel_curve(*s.halves, s.mover, s.inhibition, seed=s.seed)
        k, random = dimension(table), shares(table, RANDOM)
        rows.append({
            "model": s.name,
            "all of it: change of I(m)": whole_effect(table),
            "directions for 90%": k or f"more than {max(random)}", "as many at random": random[k or max(random)],
        })  # fmt: skip
    return pd.DataFrame(rows)


def recovery_tables(studies: Sequence[Study]) -> dict[str, pd.DataFrame]:
    """Model -> heads in the order of the weights against the heads found by patching."""
    return {s.name: precision_and_recall(by_weights(s.scores, s.found.movers), s.found.inhibition) for s in studies}


def second_step_table(studies: Sequence[Study]) -> pd.DataFrame:
    """One step further back, for every inhibition head with a layer below: the head whose single component its values
    read most, by weights, beside the score of a random direction (chance), and the head whose removal from those
    values lowers I(m) most, on the held-out half."""
    import pandas as pd

    rows = []
    for s in studies:
        heads = [head for head in s.inhibition if head.layer > 0]
        if not heads:
            continue
        movers = [m for m in s.found.movers if m.layer == s.mover.layer]
        readers = {head.layer for head in heads} | {s.mover.layer}
        recording = record(s.bridge, s.held_out.prompts, sorted(readers))
        scores = compute_scores(recording.weights, "V", seed=s.seed)
        into_values = scores.pairs("V", ONE_COMPONENT)
        for head in heads:
            by_score = into_values[:, :, head.layer, head.head]
            removed = remove_from_values(recording, head, movers)
            best = [_top(by_score), _top(-removed)]
            rows.append({
                "model": s.name, "inhibition head": str(head), "by weights": str(best[0]),
                "score": by_score[best[0].layer, best[0].head].item(), "chance": scores.null_rms,
                "by removal": str(best[1]),
                "change of I(m)": removed[best[1].layer, best[1].head].item(), "the same": best[0] == best[1],
                "heads to choose from": int((~removed.isnan()).sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _top(values: Float[Tensor, "n_layers n_heads"]) -> Head:
    return Head(*divmod(int(values.nan_to_num(nan=-torch.inf).argmax()), values.shape[1]))


def _some(s: Study, n_components: int) -> list[Component]:
    """The strongest components of the inhibition heads. Raises :class:`TaskError` where no such head was found."""
    if not (chosen := s.strongest(n_components)):
        raise TaskError(f"No head of {s.name} was found to inhibit the mover, so there is no component to follow.")
    return chosen


def carries_table(studies: Sequence[Study], n_components: int = 3) -> pd.DataFrame:
    """What each model's strongest components carry on lists: place or identity, three splits."""
    import pandas as pd

    parts = []
    for s in studies:
        chosen = _some(s, n_components)
        part = place_or_identity(s.held_out, chosen, seed=s.seed)
        part.insert(0, "model", s.name)
        part.insert(1, "components", ", ".join(map(str, chosen)))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def factors_table(studies: Sequence[Study], n_prompts: int = 100, n_components: int = 3) -> pd.DataFrame:
    """On IOI in four versions of each prompt, those of the held-out half: order, name or their interaction, per
    component."""
    import pandas as pd

    parts = []
    for s in studies:
        drawn = draw_ioi(s.tokenizer, 2 * n_prompts, s.seed)
        sets = factorial_prompts(s.tokenizer, [p for i, p in enumerate(drawn) if i // 2 % 2])
        runs = [record(s.bridge, prompts, [s.mover.layer]) for prompts in sets]
        part = place_or_name(runs, _some(s, n_components))
        part.insert(0, "model", s.name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def activity_table(s: Study, texts: Sequence[str], n_control: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``(rates, contexts)``: where in texts each inhibition head's strongest component is active, beside the first
    components of as many random other heads; and the contexts in which the strongest of them is most active."""
    text = corpus_of(texts, s.tokenizer)
    chosen: dict[Head, Component] = {}
    for component in _some(s, len(s.ranked)):
        chosen.setdefault(component.of_head, component)
    earlier = heads_in(range(s.mover.layer), s.held_out.weights.n_heads)
    others = [head for head in earlier if head not in s.inhibition]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(s.seed))[:n_control].tolist()
    control = [Component(others[i].layer, others[i].head, 0) for i in order]
    components = [*chosen.values(), *control]
    active = activity(s.bridge, s.held_out.directions, text, components)
    table = rates(active, text, components)
    table.insert(0, "inhibition", table["component"].isin([str(c) for c in chosen.values()]))
    return table, contexts(active[0], text, s.tokenizer)


def one_prompt(s: Study, component: Component, row: int) -> pd.DataFrame:
    """One held-out list: the mover's attention to each item where it is first named, untouched and with a component out
    of its query. Columns: item, answer, before, after; I(m) is the answer's attention less the mean of the others'."""
    import pandas as pd

    prompts = s.held_out.prompts
    at, words = item_positions(prompts)
    pattern = attention_without(s.held_out, s.mover, component, row)[:, at[row].to(s.held_out.final.device)].cpu()
    return pd.DataFrame({
        "item": [s.tokenizer.decode([word]).strip() for word in words[row].tolist()],
        "answer": (words[row] == prompts.answers[row]).tolist(),
        "before": pattern[0].tolist(), "after": pattern[1].tolist(),
    })  # fmt: skip


def interventions_table(s: Study, component: Component) -> pd.DataFrame:
    """One component by every intervention on the mover's query and keys. Columns: side, intervention, change of I(m)
    with its 95% interval, how far the pattern moved (total variation), direct effect on the logit difference, n."""
    import pandas as pd

    rows = []
    for side in (QUERY, KEY):
        for intervention in INTERVENTIONS:
            effects = component_effects(s.held_out, s.mover, intervention, side=side)
            at = (slice(None), component.layer, component.head, component.component)
            score = bootstrap_mean(effects.inhibition[at].cpu())
            rows.append({
                "side": side, "intervention": intervention, "change of I(m)": score.mean,
                "95% interval": f"{score.low:z.3f} to {score.high:z.3f}",
                "pattern moved": effects.pattern[at].mean().item(),
                "direct effect on the logit difference": effects.direct[at].mean().item(), "n": score.n,
            })  # fmt: skip
    return pd.DataFrame(rows)


def total_against_direct(s: Study, n: int = N_FOLLOWED) -> tuple[float, Float[Tensor, "k"], Float[Tensor, "k"]]:
    """``(Spearman, direct, total)``: effects on the logit difference of the n strongest components and n at random."""
    table = s.effects.table()
    size = table["direct"].abs()
    strongest = size.nlargest(min(n, len(table))).index.tolist()
    rest = torch.tensor([i for i in table.index if i not in set(strongest)])
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(s.seed))[:n]].tolist()
    chosen = [Component.parse(table["writer"][i]) for i in strongest + drawn]
    above = suffix(s.bridge, s.held_out.prompts, s.mover.layer)
    total = total_effect(s.held_out, above, s.effects, chosen).mean(0)
    direct = torch.tensor(table["direct"].to_numpy())[strongest + drawn]
    return spearman(direct.double(), total.double().cpu()[None]).item(), direct, total
