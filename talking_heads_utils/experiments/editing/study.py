"""Chapter 3's experiments on one model.

Choices are made on the selection half of lists of ``n_items``. What is reported as a gain is measured on the other
half, on a wording that no choice saw, and on longer lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talking_heads_utils.components import is_empty, write_directions
from talking_heads_utils.edit.edits import Edit, new_edit, scales
from talking_heads_utils.effects import component_effects
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.corpus import corpus_of
from talking_heads_utils.experiments.editing.harm import harm_at_end, text_harm
from talking_heads_utils.experiments.editing.search import (
    LIKE,
    Tried,
    at_norm,
    by_gradient,
    by_grid,
    grid_amounts,
    random_like,
    score,
)
from talking_heads_utils.experiments.positional.gains import NONE, gains
from talking_heads_utils.experiments.positional.study import Channel, axis, right_under
from talking_heads_utils.forward.recording import record
from talking_heads_utils.forward.upper import Upper, prepare
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.metrics import contrast
from talking_heads_utils.models import load_with_tokenizer, shown_as
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.ioi import build_ioi
from talking_heads_utils.prompts.lists import HELD_OUT, build_laundry, wordings
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.roles.lists import roles_on_lists
from talking_heads_utils.settings import SEED
from talking_heads_utils.stats import Interval, bootstrap_mean, share, share_change
from talking_heads_utils.steer import grid
from talking_heads_utils.steer import prepare as prepare_steering
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

SELECTION, KNOWN, NEW, IOI, SHORT = "selection", "held-out prompts", "held-out wording", "IOI", "lists of 4"
GRADIENT, GRID, RANDOM = "gradient", "grid", "random"
SIZES = (0.05, 0.15, 0.4)  # of an edit: shares of the Frobenius norm of all chosen components together
VALUES = (0.0, 0.5, 2.0)  # scales of the grid


class Row(NamedTuple):
    """An edit that was tried: what found it, its factors over all of a bench's components, its Frobenius norm, and the
    objective on the selection half (nats)."""

    found_by: str
    factors: Float[Tensor, "n_components"]
    size: float
    objective: float


@dataclass(frozen=True)
class Bench:
    """A model, the components of its channel, and as many random ones per draw.

    mover, components: by the selection half of lists of ``n_items``: those whose removal from the mover's query changes
    I(m) most, either way. random: draws of other components of the same layers, of like singular
    value where there are such.
    """

    name: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    weights: HeadWeights
    mover: Head
    components: tuple[Component, ...]
    random: tuple[tuple[Component, ...], ...]
    n_items: int
    n_prompts: int
    seed: int
    _kept: dict[str, tuple[PromptSet, Upper]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shows(self) -> str:
        return shown_as(self.name)

    @property
    def every(self) -> tuple[Component, ...]:
        """All components that some edit scales: the chosen ones, then each draw's."""
        return (*self.components, *(c for draw in self.random for c in draw))

    def columns(self, draw: int | None = None) -> list[int]:
        """Where the chosen components, or those of a draw, stand among :attr:`every`."""
        first = 0 if draw is None else len(self.components) * (1 + draw)
        return list(range(first, first + len(self.components)))

    def on(self, name: str) -> tuple[PromptSet, Upper]:
        """Prompts by name, run once: :data:`SELECTION`, :data:`KNOWN`, :data:`NEW`, :data:`IOI`, :data:`SHORT`, or
        ``lists of n`` (held-out half). Raises :class:`OptionError` for any other."""
        if name not in self._kept:
            prompts = self._prompts(name)
            self._kept[name] = prompts, prepare(self.bridge, prompts, self.every)
        return self._kept[name]

    def _prompts(self, name: str) -> PromptSet:
        n, length = self.n_prompts, re.fullmatch(r"lists of (\d+)", name)
        if length is None and name not in (SELECTION, KNOWN, NEW, IOI):
            raise OptionError(
                f"No prompts are called {name!r}: choose "
                f"{SELECTION!r}, {KNOWN!r}, {NEW!r}, {IOI!r} or 'lists of 12', say."
            )
        if name == IOI:
            return build_ioi(self.tokenizer, n, self.seed)
        if name == SELECTION:
            return halves(build_laundry(self.tokenizer, self.n_items, 2 * n, self.seed))[0]
        n_items = int(length[1]) if length else self.n_items
        new = wordings(held_out=True)
        parts = len(wordings()) // len(new) if name == NEW else 2
        n = n if name == SHORT else 2 * n
        found = build_laundry(self.tokenizer, n_items, 2 * n * parts, self.seed).where(half=HELD_OUT)
        if name in (KNOWN, NEW):
            found = found.select(torch.tensor([(w in new) == (name == NEW) for w in found.info["wording"]]))
        return found.select(list(range(min(n, len(found)))))

    def edit(self, factors: Float[Tensor, "n_components"]) -> Edit:
        """The edit that scales by these factors, as data."""
        changed = {c: g for c, g in zip(self.every, factors.tolist()) if g != 1}
        return new_edit(self.weights, scales(changed), model=self.name)


def bench(
    name: str, *, n_items: int, n_prompts: int = 60, n_components: int = 6, n_draws: int = 3, seed: int = SEED,
    device: str = "cpu", dtype: torch.dtype = torch.float32, mover: Head | None = None,
) -> Bench:  # fmt: skip
    """Find the components of a mover's channel on the selection half, and without ``mover`` that mover; draw random
    components beside them.

    n_prompts: of each set, twice as many where gains are scored. Raises :class:`OptionError` where a
    layer has too few other components to draw from, and for no component or no draw: no edit stands without a control.
    """
    if n_components < 1 or n_draws < 1:
        raise OptionError(
            f"A bench needs one component and one random draw at least, not {n_components} and {n_draws}: "
            "no edit stands without its control."
        )
    bridge, tokenizer = load_with_tokenizer(name, device, dtype)
    prompts = build_laundry(tokenizer, n_items, 2 * n_prompts, seed)
    mover = mover or roles_on_lists(bridge, prompts, seed=seed).movers[0]
    recording = record(bridge, halves(prompts)[0], [mover.layer])
    table = component_effects(recording, mover).table()
    order = table["inhibition"].abs().sort_values(ascending=False, kind="stable").index[:n_components]
    chosen = tuple(Component.parse(writer) for writer in table.loc[order, "writer"])
    draws: list[tuple[Component, ...]] = []
    for draw in range(n_draws):
        taken = [c for others in draws for c in others]
        draws.append(tuple(random_like(recording.singular_values, chosen, taken, seed + draw)))
    return Bench(
        name, bridge, tokenizer, recording.weights, mover, chosen, tuple(draws), n_items, n_prompts, seed
    )  # fmt: skip


def gain_without(at: Bench, component: Component) -> Interval:
    """Paired change of accuracy on held-out prompts, in shares, when one of the bench's components is removed."""
    _, upper = at.on(KNOWN)
    factors = torch.ones(2, len(at.every))
    factors[1, at.every.index(component)] = 0
    right = score(upper, factors).right
    return share_change(right[:, 1], right[:, 0])


def removal_table(at: Bench) -> pd.DataFrame:
    """Every chosen component removed by an edit, beside each draw's and beside all components of a head; on held-out
    prompts. Columns: model, removed, kind, size (Frobenius norm), n_items, n, I(m) and accuracy with intervals, their
    paired changes."""
    import pandas as pd

    prompts, _ = at.on(KNOWN)
    heads = list(dict.fromkeys(c.of_head for c in at.components))
    S = write_directions(at.weights)[1]
    whole = {h: [Component(h.layer, h.head, i) for i in (~is_empty(S[h.layer, h.head])).nonzero()[:, 0].tolist()]
             for h in heads}  # fmt: skip
    every = list(dict.fromkeys([*at.every, *(c for part in whole.values() for c in part)]))
    sets: dict[str, tuple[str, list[Component]]] = {"nothing": ("untouched", [])}
    sets |= {str(c): ("channel", [c]) for c in at.components}
    sets |= {str(c): (RANDOM, [c]) for c in at.every[len(at.components) :]}
    sets |= {str(h): ("whole head", part) for h, part in whole.items()}
    factors = torch.ones(len(sets), len(every))
    for k, (_, part) in enumerate(sets.values()):
        factors[k, [every.index(c) for c in part]] = 0
    found = score(prepare(at.bridge, prompts, every), factors, at.mover)
    assert found.attention is not None  # since a mover is named
    inhibition = (found.attention * contrast(prompts)[:, None]).sum(-1)
    rows, right = [], found.right
    for k, (name, (kind, part)) in enumerate(sets.items()):
        size = sum(float(S[c.layer, c.head, c.component]) ** 2 for c in part) ** 0.5
        row: dict[str, Any] = {"model": at.name, "removed": name, "kind": kind, "size": size, "n_items": at.n_items,
                               "n": len(prompts)}  # fmt: skip
        measured = {
            "I(m)": (bootstrap_mean(inhibition[:, k]), bootstrap_mean(inhibition[:, k] - inhibition[:, 0])),
            "accuracy": (
                share(right[:, k]),
                share_change(right[:, k], right[:, 0]) if part else Interval(0.0, 0.0, 0.0, len(right)),
            ),
        }
        for label, (level, change) in measured.items():
            row |= {label: level.mean, f"{label} low": level.low, f"{label} high": level.high,
                    f"change of {label}": change.mean, f"change of {label} low": change.low,
                    f"change of {label} high": change.high}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def removal_summary(removed: pd.DataFrame) -> pd.DataFrame:
    """What the removal of a component of the channel and of a random one does on average, and per unit of size, which
    tells whether the larger components merely do more. Random ones are drawn in the order of the channel's.

    removed: of :func:`removal_table`. Columns: model, channel, random (mean change of accuracy, points), channel per
    size, random per size (points, sums over sums), alike (random ones within a factor of :data:`LIKE` of the component
    they were drawn for), of, worst (random one, points).
    """
    import pandas as pd

    rows = []
    for model, part in removed.groupby("model", sort=False):
        kinds = {kind: part[part["kind"] == kind] for kind in ("channel", RANDOM)}
        points = {kind: 100 * of["change of accuracy"] for kind, of in kinds.items()}
        size = {kind: of["size"].to_numpy() for kind, of in kinds.items()}
        ratio = size[RANDOM].reshape(-1, len(size["channel"])) / size["channel"]
        rows.append(
            {"model": model}
            | {kind: values.mean() for kind, values in points.items()}
            | {f"{kind} per size": values.sum() / size[kind].sum() for kind, values in points.items()}
            | {"alike": int(((ratio >= 1 / LIKE) & (ratio <= LIKE)).sum()), "of": ratio.size,
               "worst": points[RANDOM].min()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def scale_lines(at: Bench, values: Sequence[float], lengths: Sequence[int], n_prompts: int = 40) -> pd.DataFrame:
    """Accuracy on the selection half when one component is scaled, by list length: model, n_items, component, scale,
    accuracy."""
    import pandas as pd

    rows = []
    for n_items in lengths:
        upper = prepare(at.bridge, _selection(at, n_items, n_prompts), at.components)
        factors = torch.ones(len(values), len(at.components), len(at.components))
        factors[:, range(len(at.components)), range(len(at.components))] = torch.tensor(list(values))[:, None]
        right = score(upper, factors.flatten(0, 1)).right.double().mean(0).view(len(values), -1)
        rows += [
            dict(model=at.name, n_items=n_items, component=str(c), scale=value, accuracy=right[i, j].item())
            for i, value in enumerate(values) for j, c in enumerate(at.components)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def scale_planes(
    at: Bench, values: Sequence[float], lengths: Sequence[int], pair: tuple[int, int] = (0, 1), n_prompts: int = 40
) -> dict[int, Float[Tensor, "v v"]]:
    """List length -> accuracy on the selection half with two components scaled, the first along rows."""
    planes = {}
    settings = grid(values, 2)
    for n_items in lengths:
        upper = prepare(at.bridge, _selection(at, n_items, n_prompts), [at.components[i] for i in pair])
        planes[n_items] = score(upper, settings).right.double().mean(0).view(len(values), len(values))
    return planes


def _selection(at: Bench, n_items: int, n_prompts: int) -> PromptSet:
    return halves(build_laundry(at.tokenizer, n_items, 2 * n_prompts, at.seed))[0]


def search(at: Bench, *, sizes: Sequence[float] = SIZES, values: Sequence[float] = VALUES) -> list[Row]:
    """All edits that were tried on the selection half. The chosen components by the grid and, for each size, by the
    gradient. Then every draw by both, at the Frobenius norm of ours that did best: the same grid with all its edits
    brought to that norm, and the gradient. Raises :class:`OptionError` for no size, or no scale but 1, which changes
    nothing."""
    if not sizes or all(value == 1 for value in values):
        raise OptionError(
            f"A search needs one size and one scale other than 1 at least, not {tuple(sizes)} and {tuple(values)}."
        )
    upper = at.on(SELECTION)[1]
    S = upper.singular_values[at.columns()]
    whole = float(S.norm())
    amounts = grid_amounts(S, values)
    found = [(GRID, by_grid(upper, at.columns(), amounts))]
    found += [(GRADIENT, by_gradient(upper, at.columns(), part * whole)) for part in sizes]
    rows = [row for name, tried in found for row in _rows(name, tried)]
    size, same = best(rows, GRADIENT).size, at_norm(amounts, best(rows, GRID).size)
    for draw in range(len(at.random)):
        rows += _rows(drawn(GRADIENT, draw), by_gradient(upper, at.columns(draw), size))
        rows += _rows(drawn(GRID, draw), by_grid(upper, at.columns(draw), same))
    return rows


def drawn(found_by: str, draw: int | str = "") -> str:
    """What a search with random components is called."""
    return f"{RANDOM} {found_by} {draw}".strip()


def _rows(name: str, tried: Tried) -> list[Row]:
    return [Row(name, *row) for row in zip(tried.factors, tried.sizes.tolist(), tried.objective.tolist())]


def best(rows: Sequence[Row], found_by: str) -> Row:
    """The edit with the highest objective among those of one search."""
    return max((row for row in rows if row.found_by == found_by), key=lambda row: row.objective)


def winners(rows: Sequence[Row]) -> dict[str, Row]:
    """The best edit of every search."""
    return {name: best(rows, name) for name in dict.fromkeys(row.found_by for row in rows)}


def with_controls(chosen: Mapping[str, Row]) -> dict[str, Row]:
    """The two searches' edits, each followed by the one of the same norm that the first draw gave."""
    return {name: chosen[name] for found_by in (GRADIENT, GRID) for name in (found_by, drawn(found_by, 0))}


def gains_table(at: Bench, chosen: Mapping[str, Row], sets: Sequence[str]) -> pd.DataFrame:
    """What the chosen edits gain on prompts that no choice saw, against no edit, paired. Each search stands beside the
    same search with random components: the mean over draws, per prompt.

    Columns: model, prompts, edit, before, after, gain, low, high (points), relative, beyond random (with its interval;
    its lower end once more as a number), objective (nats, on the selection half; not for random edits), n.
    """
    import pandas as pd

    rows = []
    for name in sets:
        right = _right(at, name, chosen)
        for found_by in (GRADIENT, GRID):
            draws = [values for key, values in right.items() if key.startswith(drawn(found_by))]
            random = torch.stack(draws).double().mean(0)
            before = right[""].double().mean().item()
            for label, values in ((found_by, right[found_by]), (drawn(found_by), random)):
                gain = share_change(values, right[""])
                row: dict[str, Any] = {
                    "model": at.name, "prompts": name, "edit": label, "before": before, "after": before + gain.mean,
                    "gain": 100 * gain.mean, "low": 100 * gain.low, "high": 100 * gain.high,
                    "relative": gain.mean / before if before else nan,
                    "beyond random": "", "beyond random, low": nan, "objective": nan, "n": gain.n,
                }  # fmt: skip
                if label == found_by:
                    beyond = share_change(values, random)
                    row |= {"beyond random": points(beyond), "beyond random, low": 100 * beyond.low,
                            "objective": chosen[label].objective}  # fmt: skip
                rows.append(row)
    return pd.DataFrame(rows)


def clearly_beyond(gained: pd.DataFrame, model: str, edit: str) -> tuple[int, int]:
    """On how many sets of prompts an edit gains more than random ones do (interval above 0), and how many sets there
    are. gained: of :func:`gains_table`."""
    rows = gained[(gained["model"] == model) & (gained["edit"] == edit)]
    return int((rows["beyond random, low"] > 0).sum()), len(rows)


def said_beyond(gained: pd.DataFrame, models: Sequence[str]) -> str:
    """Which models' edits gain clearly more than random ones, and on how many sets of prompts: ``gradient in a (2 of 3
    sets)``; ``none`` where none does. gained: of :func:`gains_table`."""
    found = {(edit, model): clearly_beyond(gained, model, edit) for model in models for edit in (GRADIENT, GRID)}
    return ", ".join(f"{e} in {m} ({k} of {n} sets)" for (e, m), (k, n) in found.items() if k) or "none"


def points(interval: Interval) -> str:
    """An interval of shares in percentage points."""
    return f"{100 * interval.mean:+.0f} ({100 * interval.low:+.0f} to {100 * interval.high:+.0f})"


def _right(at: Bench, name: str, chosen: Mapping[str, Row]) -> dict[str, Bool[Tensor, "n"]]:
    """Whether each prompt is answered: untouched (``""``) and under every edit."""
    upper = at.on(name)[1]
    factors = torch.stack([torch.ones(len(at.every)), *(row.factors for row in chosen.values())])
    return dict(zip(("", *chosen), score(upper, factors).right.T))


def pareto_table(at: Bench, rows: Sequence[Row]) -> pd.DataFrame:
    """Gain on held-out prompts against damage elsewhere, of every edit that was tried, on the prompts of
    :func:`gains_table` and :func:`harm_table`. Columns: model, found_by, size, gain (points, with its interval), kl
    (nats at ``end``, mean over IOI and short lists), lost (points of accuracy there), n (held-out prompts)."""
    import pandas as pd

    factors = torch.stack([torch.ones(len(at.every)), *(row.factors for row in rows)])
    right = score(at.on(KNOWN)[1], factors).right
    harm = [harm_at_end(at.on(name)[1], factors) for name in (IOI, SHORT)]
    kl = torch.stack([divergence.mean(0) for divergence, _ in harm]).mean(0)
    kept = torch.stack([answered.double().mean(0) for _, answered in harm]).mean(0)
    found = []
    for k, row in enumerate(rows, 1):
        gain = share_change(right[:, k], right[:, 0])
        found.append(dict(model=at.name, found_by=row.found_by, size=row.size, gain=100 * gain.mean,
                          low=100 * gain.low, high=100 * gain.high, kl=kl[k].item(),
                          lost=100 * (kept[0] - kept[k]).item(), n=gain.n))  # fmt: skip
    return pd.DataFrame(found)


def harm_table(at: Bench, chosen: Mapping[str, Row]) -> pd.DataFrame:
    """IOI and short lists under some edits: accuracy before and after with its paired interval, and how far the
    next-token distribution at ``end`` moved. Columns: model, prompts, edit, before, after, change, KL, n."""
    import pandas as pd

    rows = []
    for name in (IOI, SHORT):
        factors = torch.stack([torch.ones(len(at.every)), *(row.factors for row in chosen.values())])
        kl, right = harm_at_end(at.on(name)[1], factors)
        for k, label in enumerate(chosen, 1):
            change = share_change(right[:, k], right[:, 0])
            rows.append({
                "model": at.name, "prompts": name, "edit": label, "before": right[:, 0].double().mean().item(),
                "after": right[:, k].double().mean().item(), "change, points": points(change),
                "KL, nats": kl[:, k].mean().item(), "n": len(right),
            })  # fmt: skip
    return pd.DataFrame(rows)


def text_table(at: Bench, chosen: Mapping[str, Row], texts: Sequence[str], n_windows: int = 100) -> pd.DataFrame:
    """The best edits on running text: loss before, its change with the paired interval over windows, and divergence, in
    nats per token. For models trained on running text: the book's toys were trained on answers alone.

    Columns: model, edit, loss before, change of loss, 95% interval, KL, n (windows).
    """
    import pandas as pd

    tokens = corpus_of(texts, at.tokenizer, n_windows=n_windows).tokens
    rows = []
    for name, harm in text_harm(at.bridge, _edits(at, chosen), tokens).items():
        change = bootstrap_mean(harm.loss - harm.before)
        rows.append({
            "model": at.name, "edit": name, "loss before": harm.before.mean().item(), "change of loss": change.mean,
            "95% interval": f"{change.low:+.3f} to {change.high:+.3f}", "KL, nats": harm.kl.mean().item(),
            "n": change.n,
        })  # fmt: skip
    return pd.DataFrame(rows)


def heads_moved(
    at: Bench, chosen: Mapping[str, Row], n_prompts: int = 24
) -> tuple[pd.DataFrame, dict[str, Float[Tensor, "n_layers n_heads"]]]:
    """How far every head's pattern moves on IOI prompts, which no edit was made for: total variation distance, mean
    over positions that are no padding; the table sums it up.

    Columns: model, edit, other heads (mean over those whose weights were not edited), most moved, by, n.
    """
    import pandas as pd

    prompts = at.on(IOI)[0]
    tokens, mask = prompts.tokens[:n_prompts], prompts.mask[:n_prompts]
    found = {name: harm.pattern for name, harm in text_harm(at.bridge, _edits(at, chosen), tokens, mask).items()}
    rows = []
    for name, moved in found.items():
        own = {c.of_head for c, g in zip(at.every, chosen[name].factors.tolist()) if g != 1}
        heads = [Head(*divmod(i, moved.shape[1])) for i in range(moved.numel())]
        other = torch.tensor([head not in own for head in heads])
        top = int(moved.argmax())
        rows.append({
            "model": at.name, "edit": name, "other heads": moved.flatten()[other].mean().item(),
            "most moved": str(heads[top]), "by": moved.flatten()[top].item(), "n": len(tokens),
        })  # fmt: skip
    return pd.DataFrame(rows), found


def _edits(at: Bench, chosen: Mapping[str, Row]) -> dict[str, Edit]:
    return {name: at.edit(row.factors) for name, row in chosen.items()}


def against_steering(at: Bench, row: Row, n_values: int = 5) -> pd.DataFrame:
    """The edit and steering along its three strongest components, chosen on the same prompts and scored on the same
    others. Columns: model, method, accuracy, gain, low, high (points), n. Raises :class:`OptionError` for a bench of
    fewer components."""
    import pandas as pd

    if len(at.components) < 3:
        raise OptionError(f"Steering goes along three components; this bench has {len(at.components)}: ask for more.")
    writers = at.components[:3]
    (chosen_on, _), (scored_on, upper) = at.on(SELECTION), at.on(KNOWN)
    steerings = [prepare_steering(at.bridge, prompts, writers) for prompts in (chosen_on, scored_on)]
    channel = Channel(at.name, at.bridge, at.tokenizer, at.mover, writers, steerings[0].directions, at.seed)
    settings = grid(axis(channel, at.n_items, n_values))
    right = torch.cat([right_under(s, p, settings) for s, p in zip(steerings, (chosen_on, scored_on))])
    place = torch.cat([torch.as_tensor(prompts.info["index"]) for prompts in (chosen_on, scored_on)])
    found = gains(right, torch.arange(len(right)) < len(chosen_on), place, settings)
    edited = score(upper, torch.stack([torch.ones(len(at.every)), row.factors])).right
    gain, accuracy = share_change(edited[:, 1], edited[:, 0]), share(edited[:, 1])
    methods = {"edit": (accuracy, gain)} | {
        f"steering: {k}": (v.accuracy, v.gain) for k, v in found.items() if k != NONE
    }
    return pd.DataFrame([
        {"model": at.name, "method": name, "accuracy": a.mean, "gain": 100 * g.mean, "low": 100 * g.low,
         "high": 100 * g.high, "n": g.n} for name, (a, g) in methods.items()
    ])  # fmt: skip
