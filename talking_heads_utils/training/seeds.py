"""The small models trained from several seeds: what varies between runs of one recipe, and what does not.

Each run is measured as chapter 1 measures a model and kept as one part of a :class:`~talking_heads_utils.resume.Store`;
only seed 0 ships as a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talking_heads_utils.effects import inhibition_score
from talking_heads_utils.errors import CheckpointError, ResultError, TalkingHeadsError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition import concentration
from talking_heads_utils.experiments.inhibition.agreement import agreement
from talking_heads_utils.experiments.inhibition.list_roles import LEAST_CHANGE, roles_on_lists
from talking_heads_utils.experiments.inhibition.mover import MoverRuns
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.files import data_dir
from talking_heads_utils.labels import Head
from talking_heads_utils.models import find_checkpoint
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.sets import check_seed
from talking_heads_utils.resume import Store
from talking_heads_utils.settings import FINAL, N_ITEMS, SEED
from talking_heads_utils.stats import bootstrap_mean
from talking_heads_utils.training.card import write_card
from talking_heads_utils.training.spec import SPECS, MiniSpec, spec_of

N_PROMPTS = 400
CURVE = ("k", "what", "mean", "low", "high", "n")  # what is kept of a curve
N_SCORES = 5  # components shown of a head
CARD = ("step", "minutes", "longest", "complete_at", "early_at", "accuracy")


def seeds_dir() -> Path:
    """Where the book keeps its runs' measures."""
    return data_dir() / "seeds"


def measure_all(
    runs: Sequence[Path], out: Path, say: Callable[[str], None] = print, n_prompts: int = N_PROMPTS
) -> None:
    """Measure every run that ``out`` does not have yet; each is written whole, and told on the run's card.

    Raises :class:`CheckpointError` for a folder that holds no finished run, before anything is measured, and
    :class:`ResultError` where another run's measures are in the way.
    """
    cards = [(_card(Path(run)), Path(run).resolve()) for run in runs]
    store = Store(out, dict(n_prompts=n_prompts, n_items=N_ITEMS, prompts_seed=SEED), ".json")
    store.check()
    for card, run in cards:
        name = f"{card['spec']['name']}-{card['seed']}"
        checkpoint = find_checkpoint(run / FINAL).sha256()
        stale = store.stale(name, {"checkpoint": checkpoint})
        if stale:
            raise ResultError(f"{store.path(name)} is of another run of that seed. Remove it, or choose another --out.")
        if stale is not None:
            with store.part(name) as part:
                part.note |= dict(model=card["spec"]["name"], seed=card["seed"], checkpoint=checkpoint)
                part.note |= {field: card[field] for field in CARD} | measure(run / FINAL, n_prompts)
        found = store.note(name)
        write_card(run / FINAL, found)
        heads = ", ".join(head["head"] for head in found["inhibition_heads"]) or "none"
        say(f"{store.path(name)}: heads that inhibit: {heads}{'' if stale is not None else ' (there already)'}")


def measure(folder: Path, n_prompts: int = N_PROMPTS) -> dict[str, Any]:
    """A checkpoint by chapter 1's measures, on lists of :data:`N_ITEMS`; what is chosen is chosen on the selection
    half and measured on the other. Heads without which the mover looks as before on the other half are none."""
    c = Context(str(folder.resolve()), own=True)
    prompts = c.lists(N_ITEMS, n_prompts)
    of = roles_on_lists(c.bridge, prompts, seed=c.seed)
    found = dict(
        movers=[str(head) for head in of.movers], share=of.share, inhibition_heads=[],
        n_items=N_ITEMS, prompts_seed=SEED, processing=c.weights.processing.describe(),
    )  # fmt: skip
    if not of.through_movers:
        return found
    mover = of.movers[0]
    selection, held_out = (c.record(half, [mover.layer]) for half in halves(prompts))
    found["inhibition_score"] = bootstrap_mean(inhibition_score(held_out, mover).cpu())._asdict()
    if inhibition := [head for head in of.inhibition if head.layer < mover.layer]:
        at = MoverRuns(c.model, mover, tuple(inhibition), selection, held_out)
        curve = concentration.channel_curve(selection, held_out, mover, inhibition)
        if not -concentration.whole_effect(curve) > LEAST_CHANGE:
            return found  # chosen on one half, but the other does not bear them out
        found["inhibition_heads"] = [_head(c, at, head) for head in inhibition]
        channel = [{name: value for name, value in asdict(row).items() if name in CURVE} for row in curve]
        found |= dict(dimension=concentration.dimension(curve), channel=channel)
        a = agreement(held_out, at.effects)
        found["agreement"] = dict(spearman=a.spearman, low=a.low, high=a.high, rotated=a.rotated_mean)
    return found


def _head(c: Context, at: MoverRuns, head: Head) -> dict[str, Any]:
    """One inhibition head: its components into the mover's query, and how many of them carry its effect."""
    needed, whole = concentration.needed_for(at.selection, at.held_out, at.mover, head)
    scores = c.scores.table(at.mover, "Q")
    own = scores[scores["writer"].str.startswith(f"{head}.") & scores["score"].notna()]
    return dict(
        head=str(head), change=whole, components=needed, null=c.scores.null_rms,
        scores={row.writer: round(row.score, 4) for row in own.head(N_SCORES).itertuples()},
    )  # fmt: skip


def _card(run: Path) -> dict[str, Any]:
    """A run's training.json. Raises :class:`CheckpointError` where there is none of a model of lists."""
    try:
        card = json.loads((run / FINAL / "training.json").read_text(encoding="utf-8"))
        if lacking := {*CARD, "spec", "seed"} - set(card):
            raise ValueError(f"its card lacks {', '.join(sorted(lacking))}")
        if not isinstance(spec_of(card["spec"]["name"]), MiniSpec):
            raise ValueError(f"{card['spec']['name']} learned no lists")
        check_seed(card["seed"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError, TalkingHeadsError) as error:
        raise CheckpointError(
            f"{str(run)[:80]!r} holds no finished run of a small model of lists ({str(error)[:120]}). Train it first: "
            "python -m talking_heads_utils train NAME --out FOLDER."
        ) from error
    return card


def all_runs(folder: Path | None = None) -> list[dict[str, Any]]:
    """Every run that was measured, by recipe in their own order and by seed.

    Raises :class:`ResultError` for a damaged measure or one of a recipe that is not there.
    """
    store = Store.of(folder or seeds_dir(), ".json")
    found = [store.note(name) for name in store.names()]
    if unknown := [run.get("model") for run in found if run.get("model") not in SPECS]:
        raise ResultError(f"{store.folder} holds measures of {unknown[0]!r}, which is no recipe. Remove them.")
    return sorted(found, key=lambda run: (list(SPECS).index(run["model"]), run["seed"]))


@dataclass(frozen=True)
class SeedRow(Row):
    """One run: what it answers at the end, and the channel into its mover, where one was found."""

    model: str = column("", "the recipe")
    seed: int = column("", "of the first weights and the prompts")
    steps: int = column("steps", "of training")
    early_step: int | None = column("steps", "at which the early checkpoint was taken")
    ioi: float = column("share", "of IOI prompts answered rightly, over the vocabulary")
    longest_lists: float = column("share", "of the longest lists in training answered rightly, over the vocabulary")
    kinds: int = column("", "kinds of prompt in training: IOI and each list length")
    solved: int = column("", "kinds of prompt that are answered to 99%")
    inhibition_score: float | None = column("share", "I(m) of the strongest mover")
    heads: str = column("", "inhibition heads, each with how many of its components do 90% of what it does")
    dimension: int | None = column("directions", "fewest that carry 90% of what these heads together do; 8 at most")
    random_share: float | None = column("share", "of that effect that as many random directions carry")
    spearman: float | None = column("", "rank correlation of scores and cross-validated effects of components")
    rotated: float | None = column("", "the same in random bases of each head, mean")


def seed_rows(runs: Sequence[dict[str, Any]]) -> list[SeedRow]:
    """One row per run of :func:`all_runs`; what was not found is None."""
    rows = []
    for run in runs:
        accuracy, heads, order = run["accuracy"], run["inhibition_heads"], run.get("agreement", {})
        rows.append(SeedRow(
            model=run["model"], seed=run["seed"], steps=run["step"], early_step=run["early_at"],
            ioi=accuracy["ioi"], longest_lists=accuracy[f"n={run['longest']}"], kinds=len(accuracy),
            solved=sum(value >= 0.99 for value in accuracy.values()),
            inhibition_score=run["inhibition_score"]["mean"] if "inhibition_score" in run else None,
            heads=", ".join(f"{h['head']} ({h['components'] or 'more than 8'})" for h in heads),
            dimension=run.get("dimension"), random_share=_at_random(run) if heads else None,
            spearman=order.get("spearman"), rotated=order.get("rotated"),
        ))  # fmt: skip
    return rows


def _at_random(run: dict[str, Any]) -> float:
    """Share of the whole effect that as many random directions as the channel has carry."""
    import pandas as pd

    found = concentration.shares(list(pd.DataFrame(run["channel"]).itertuples()), concentration.RANDOM)
    return found[run["dimension"] or max(found)]
