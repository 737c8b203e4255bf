"""The small models trained from several seeds: what varies between runs of one recipe, and what does not.

Each run's mover, inhibition heads and channel are measured, and kept as one part of a
:class:`~talking_heads_utils.resume.Store`; only seed 0 ships as a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.effects import check_mover, inhibition_change, inhibition_score
from talking_heads_utils.errors import CheckpointError, ResultError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.list_roles import LEAST_CHANGE, roles_on_lists
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.files import data_dir
from talking_heads_utils.forward.recording import Recording, mover_of
from talking_heads_utils.labels import Head
from talking_heads_utils.models import find_checkpoint
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.resume import Store
from talking_heads_utils.settings import FINAL, N_ITEMS, SEED
from talking_heads_utils.stats import bootstrap_mean
from talking_heads_utils.training.spec import SPECS, MiniSpec

N_PROMPTS = 400
TOP, RANDOM, TOGETHER = "top k", "k random", "all of it"
SHARE = 0.9  # of the effect of all, which the channel's dimensions must carry
CARD = ("seed", "step", "minutes", "longest", "complete_at", "early_at", "accuracy")


def measure_all(runs: Sequence[Path], out: Path, n_prompts: int = N_PROMPTS) -> None:
    """Measure every run that ``out`` does not have yet, and say what was found.

    Raises :class:`CheckpointError` for a folder that holds no finished run, before anything is measured, and
    :class:`ResultError` where another run's measures are in the way.
    """
    cards = [(_card(run), Path(run).resolve() / FINAL) for run in runs]
    store = Store(out, dict(n_prompts=n_prompts, n_items=N_ITEMS, prompts_seed=SEED), ".json")
    store.check()
    for card, folder in cards:
        name, checkpoint = f"{card['model']}-{card['seed']}", find_checkpoint(folder).sha256()
        stale = store.stale(name, {"checkpoint": checkpoint})
        if stale:
            raise ResultError(f"{store.path(name)} is of another run of that seed. Remove it, or choose another --out.")
        if stale is not None:
            with store.part(name) as part:
                part.note |= card | dict(checkpoint=checkpoint) | measure(folder, n_prompts)
        heads = ", ".join(head["head"] for head in store.note(name)["inhibition_heads"]) or "none"
        print(f"{store.path(name)}: heads that inhibit: {heads}{'' if stale is not None else ' (there already)'}")


def measure(folder: Path, n_prompts: int = N_PROMPTS) -> dict[str, Any]:
    """A checkpoint on lists of :data:`N_ITEMS`; what is chosen is chosen on the selection half and measured on the
    other. Heads without which the mover looks as before on the other half are none."""
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
    heads = [head for head in of.inhibition if head.layer < mover.layer]
    channel = channel_curve(selection, held_out, mover, heads) if heads else []
    if not heads or not -channel[-1]["mean"] > LEAST_CHANGE:
        return found  # chosen on one half, but the other does not bear them out
    out = -torch.stack([held_out.write(head.layer)[:, head.head] for head in heads], 1)
    changes = inhibition_change(held_out, mover, out).mean(0).tolist()
    found["inhibition_heads"] = [dict(head=str(head), change=value) for head, value in zip(heads, changes)]
    return found | dict(dimension=dimension(channel), channel=channel)


def _card(run: Path) -> dict[str, Any]:
    """What is kept of a run's training.json. Raises :class:`CheckpointError` where there is none of a model of
    lists."""
    try:
        card = json.loads((Path(run) / FINAL / "training.json").read_text(encoding="utf-8"))
        kept = {"model": card["spec"]["name"]} | {field: card[field] for field in CARD}
        if not isinstance(SPECS[kept["model"]], MiniSpec):
            raise ValueError(f"{kept['model']} learned no lists")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{str(run)[:80]!r} holds no finished run of a small model of lists ({str(error)[:120]}). Train it first: "
            "python -m talking_heads_utils train NAME --out FOLDER."
        ) from error
    return kept


def channel_curve(
    selection: Recording, held_out: Recording, mover: Head, writers: Sequence[Head], *, k_max: int = 8,
    n_random: int = 20,
) -> list[dict[str, Any]]:  # fmt: skip
    """Change of I(m) on the held-out half when k directions of what some heads together write into a mover's query are
    taken out of it: the first k principal ones of the selection half (not centred), k random ones, and all of it.

    A dictionary each of ``k, what, mean, low, high, n``: 95% intervals over prompts, of random directions over draws.
    """
    n_queries = selection.weights.d_head
    k_max = min(k_max, n_queries)
    basis = torch.linalg.svd(_into_query(selection, mover, writers)[0], full_matrices=True)[2]
    noise = torch.randn(n_random, n_queries, n_queries, generator=torch.Generator().manual_seed(SEED)).to(basis)
    turned, ks = torch.linalg.qr(noise)[0], range(1, k_max + 1)
    projections = [basis[:k].T @ basis[:k] for k in ks] + [torch.eye(n_queries).to(basis)]
    projections += [draw[:, :k] @ draw[:, :k].T for k in ks for draw in turned]
    written, back = _into_query(held_out, mover, writers)
    shifts = -torch.einsum("nq,kqr,rm->nkm", written, torch.stack(projections), back)
    found = inhibition_change(held_out, mover, shifts).cpu()
    random = found[:, k_max + 1 :].mean(0).view(k_max, -1)
    return [
        dict(k=k, what=what) | bootstrap_mean(values)._asdict()
        for k in ks
        for what, values in ((TOP, found[:, k - 1]), (RANDOM, random[k - 1]), (TOGETHER, found[:, k_max]))
    ]


def _into_query(
    recording: Recording, mover: Head, writers: Sequence[Head]
) -> tuple[Float[Tensor, "n d_head"], Float[Tensor, "d_head d_model"]]:
    """What heads together write into a mover's query up to the norm's divisor, and the way back: for each change of
    the query the smallest change of its input that makes it."""
    at = mover_of(recording, check_mover(recording, mover))
    reads = at.norm.center(at.W_Q.T).T
    write = torch.stack([recording.write(head.layer)[:, head.head] for head in writers]).sum(0)
    return at.norm.center(write) @ reads, torch.linalg.pinv(reads)


def carried(channel: Sequence[dict[str, Any]], what: str) -> dict[int, float]:
    """k -> share of the effect of all that so many directions of a kind carry, out of :func:`channel_curve`."""
    return {row["k"]: row["mean"] / channel[-1]["mean"] for row in channel if row["what"] == what}


def dimension(channel: Sequence[dict[str, Any]]) -> int | None:
    """The smallest k of :func:`channel_curve` that carries :data:`SHARE` of all; None where none does, or all lowers
    nothing."""
    reach = [k for k, share in carried(channel, TOP).items() if share >= SHARE]
    return min(reach) if reach and channel[-1]["mean"] < 0 else None


def all_runs(folder: Path | None = None) -> list[dict[str, Any]]:
    """Every run that was measured, by recipe in their own order and by seed; without a folder those of the book.

    Raises :class:`ResultError` for a damaged measure or one of a recipe that is not there.
    """
    store = Store.of(folder or data_dir() / "seeds", ".json")
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
    solved: int = column("", "kinds of prompt (IOI and each list length) that are answered to 99%")
    inhibition_score: float | None = column("share", "I(m) of the strongest mover")
    heads: str = column("", "inhibition heads, the strongest first")
    dimension: int | None = column("directions", "fewest that carry 90% of what these heads together do; 8 at most")
    random_share: float | None = column("share", "of that effect that as many random directions carry")


def seed_rows(runs: Sequence[dict[str, Any]]) -> list[SeedRow]:
    """One row per run of :func:`all_runs`; what was not found is None."""
    rows = []
    for run in runs:
        accuracy, random = run["accuracy"], carried(run.get("channel", []), RANDOM)
        rows.append(SeedRow(
            model=run["model"], seed=run["seed"], steps=run["step"], early_step=run["early_at"],
            ioi=accuracy["ioi"], longest_lists=accuracy[f"n={run['longest']}"],
            solved=sum(value >= 0.99 for value in accuracy.values()),
            inhibition_score=run["inhibition_score"]["mean"] if "inhibition_score" in run else None,
            heads=", ".join(head["head"] for head in run["inhibition_heads"]),
            dimension=run.get("dimension"), random_share=random[run["dimension"] or max(random)] if random else None,
        ))  # fmt: skip
    return rows
