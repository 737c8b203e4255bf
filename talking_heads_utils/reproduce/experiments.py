"""The experiments that one model goes through, each with one table as its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from talking_heads_utils.editing import study as editing
from talking_heads_utils.errors import TaskError
from talking_heads_utils.icl import curves
from talking_heads_utils.icl import study as icl
from talking_heads_utils.icl.prompts import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS
from talking_heads_utils.inhibition import corpus
from talking_heads_utils.inhibition import study as inhibition
from talking_heads_utils.labels import Head
from talking_heads_utils.models import PLANTED, known_models, learners, longest_trained, shipped_models
from talking_heads_utils.positional import study as positional
from talking_heads_utils.settings import N_ITEMS, SEED

if TYPE_CHECKING:
    import pandas as pd

CROWDED, SEEN = 10, 8  # items of the lists of chapter 3; examples that laws are fitted on
LENGTHS, LONG_LENGTHS = (3, 4, 6, 8, 10, 12), (3, 5, 8, 10, 15, 20)  # of the toys, which saw no more, and of others
QUICK_LENGTHS = (4, 8, 12)
N_STRONG, FEW = 6, 8  # heads whose pairs are taken out; prompts of a quick run of chapter 4


@dataclass
class Subject:
    """A model on its way through the experiments. What a chapter's experiments share is made once.

    quick: one prompt in ten, three list lengths, a grid of five values. texts: running text for what is measured there;
    None for the first texts of Open Web Text, or for a model of the book's own texts made for it.
    """

    model: str
    seed: int = SEED
    quick: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    texts: Path | None = None

    def n(self, usual: int, least: int = 20) -> int:
        """How many prompts to take where ``usual`` are: one in ten of a quick run, but ``least`` at least."""
        return max(least, usual // 10) if self.quick else usual

    @property
    def lengths(self) -> Sequence[int]:
        """List lengths to go through."""
        usual = QUICK_LENGTHS if self.quick else LENGTHS if self.is_own else LONG_LENGTHS
        return [n for n in usual if n <= longest_trained(self.model)]

    @property
    def crowded(self) -> int:
        """Length of lists on which edits are chosen: never one that the model did not see in training."""
        return int(min(N_ITEMS if self.quick else CROWDED, longest_trained(self.model)))

    @property
    def is_own(self) -> bool:
        """Whether this is a model of the book, whose words are few."""
        return self.model == PLANTED or self.model in shipped_models()

    def forget(self) -> None:
        """Let go of everything that was kept, models with it."""
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                vars(self).pop(name, None)

    @cached_property
    def study(self) -> inhibition.Study:
        """Chapter 1's."""
        return inhibition.study(
            self.model, n_items=N_ITEMS, n_prompts=self.n(400), seed=self.seed, device=self.device
        )  # fmt: skip

    @cached_property
    def channel(self) -> positional.Channel:
        """Chapter 2's."""
        return positional.channel(self.model, seed=self.seed, device=self.device)

    @cached_property
    def bench(self) -> editing.Bench:
        """Chapter 3's."""
        size = dict(n_components=3, n_draws=1) if self.quick else dict(n_components=6, n_draws=2)
        return editing.bench(
            self.model, n_items=self.crowded, n_prompts=self.n(80), seed=self.seed, device=self.device, **size
        )

    @cached_property
    def tried(self) -> list[editing.Row]:
        """The edits that chapter 3 searches through."""
        return editing.search(self.bench, **(dict(sizes=(0.15,), values=(0.0, 2.0)) if self.quick else {}))

    @cached_property
    def asked(self) -> icl.Subject:
        """Chapter 4's."""
        return icl.subject(self.model, seed=self.seed, device=self.device, dtype=self.dtype)

    @cached_property
    def strongest(self) -> list[Head]:
        """The heads of chapter 4's model that are worth most, the most first."""
        return icl.strongest(self.asked, N_STRONG, n=self.n(64, FEW))


@dataclass(frozen=True)
class Experiment:
    """One table. weight: its share of a whole run's time, roughly, from which the time left is told."""

    name: str
    chapter: int
    weight: float
    run: Callable[[Subject], pd.DataFrame]
    about: str


def _concentration(s: Subject) -> pd.DataFrame:
    if not s.study.inhibition:
        raise TaskError(f"No head of {s.model} was found to inhibit the mover, so nothing can be concentrated in one.")
    return inhibition.ninety_table([s.study])


def _activity(s: Subject) -> pd.DataFrame:
    if s.texts is not None:
        texts, name = corpus.read_texts(s.texts), s.texts.name
    elif s.is_own:
        texts, name = corpus.generated_texts(s.study.tokenizer, 400, s.seed), corpus.OWN_TEXTS
    else:
        texts, name = corpus.open_web_text(), corpus.OPEN_WEB_TEXT
    return inhibition.activity_table(s.study, texts[: s.n(2000)])[0].assign(texts=name)


def _reach(s: Subject) -> pd.DataFrame:
    at, (n_values, n_random) = s.channel, (5, 1) if s.quick else (9, 3)
    return positional.reach_table(at, N_ITEMS, positional.axis(at, N_ITEMS, n_values), s.n(100), n_random)


def _steering_gains(s: Subject) -> pd.DataFrame:
    at, n_random = s.channel, 1 if s.quick else 2
    found = {
        str(n): positional.steering_gains(at, n, positional.axis(at, n, 5), s.n(800), n_random)
        for n in (N_ITEMS, 12)
        if n <= longest_trained(s.model)
    }
    table = positional.gains_table(found).rename(columns={"model": "n_items"})
    return table.assign(model=s.model)


def _edit_gains(s: Subject) -> pd.DataFrame:
    longer = [f"lists of {s.crowded + 2}"] if s.crowded + 2 <= longest_trained(s.model) else []
    sets = [editing.KNOWN, editing.NEW, *longer]
    return editing.gains_table(s.bench, editing.winners(s.tried), sets[:1] if s.quick else sets)


def _harm(s: Subject) -> pd.DataFrame:
    return editing.harm_table(s.bench, editing.with_controls(editing.winners(s.tried)))


def _pairs(s: Subject) -> pd.DataFrame:
    import pandas as pd

    asked, n = s.asked, s.n(64, FEW)
    of = {"strongest": s.strongest, "random": icl.others(asked, s.strongest)}
    return pd.concat([icl.interaction_table(asked, some, n=n).assign(heads=kind) for kind, some in of.items()])


def _heads_out(s: Subject) -> pd.DataFrame:
    layers, heads = s.asked.shape
    return icl.removal_table(s.asked, n=s.n(64, FEW), most=4 if s.quick and layers * heads > 100 else None)


def _patch(s: Subject) -> pd.DataFrame:
    import pandas as pd

    sets = icl.post_sets(s.asked)
    tables = [icl.patch_table(s.asked, sets, n=s.n(64, FEW), b=b).assign(b=b)
              for b in (OTHER_FUNCTION, RANDOM_PAIRS, NO_EXAMPLES)]  # fmt: skip
    return pd.concat(tables)


def _backups(s: Subject) -> pd.DataFrame:
    asked, top = s.asked, s.strongest[:3]
    return icl.compensation_table(asked, {"strongest": top, **icl.random_sets(asked, top, 2)}, n=s.n(64, FEW))


def _log_odds(s: Subject) -> pd.DataFrame:
    found = icl.belief(s.asked, n=s.n(200))
    table, _ = curves.fit_laws(found.model, found.readers, seen=SEEN, seed=s.seed)
    return s.asked.marked(table)


EXPERIMENTS = (
    Experiment("agreement", 1, 4, lambda s: inhibition.agreement_table([s.study]), "weights against effects"),
    Experiment("concentration", 1, 1, _concentration, "components for 90% of an effect"),
    Experiment("carries", 1, 1, lambda s: inhibition.carries_table([s.study]), "place or identity"),
    Experiment("activity", 1, 2, _activity, "where in running text components are active"),
    Experiment("decoding", 2, 4, lambda s: positional.decoding_table(s.channel, N_ITEMS, s.n(400)), "from subspaces"),
    Experiment("crowding", 2, 4, lambda s: positional.crowding_table(s.channel, s.lengths, s.n(120)), "by length"),
    Experiment("places", 2, 1, lambda s: positional.accuracy_by_place(s.channel, s.lengths, s.n(120)), "by place"),
    Experiment("reach", 2, 5, _reach, "where a setting brings the mover"),
    Experiment("steering-gains", 2, 45, _steering_gains, "accuracy by steering"),
    Experiment("removal", 3, 6, lambda s: editing.removal_table(s.bench), "single components removed"),
    Experiment("edit-gains", 3, 14, _edit_gains, "accuracy by edits of the weights"),
    Experiment("edit-harm", 3, 2, _harm, "what the edits cost elsewhere"),
    Experiment("accuracy", 4, 1, lambda s: icl.accuracy_table(s.asked, s.n(200)), "by number of examples"),
    Experiment("pairs", 4, 3, _pairs, "interactions of heads"),
    Experiment("heads-out", 4, 6, _heads_out, "accuracy as heads go"),
    Experiment("patch", 4, 5, _patch, "patching by layer and ablation"),
    Experiment("post", 4, 1, lambda s: icl.post_table(s.asked).astype(str), "the post's own prompts"),
    Experiment("backups", 4, 2, _backups, "direct effects after ablations"),
    Experiment("log-odds", 4, 1, _log_odds, "laws of belief"),
    Experiment("additivity", 4, 8, lambda s: icl.additivity_table(s.asked, n=s.n(48, FEW)), "sums of contributions"),
    Experiment("parts", 4, 1, lambda s: icl.layer_table(s.asked, n=s.n(100, FEW)), "layers taken out"),
    Experiment("looks-back", 4, 1, lambda s: icl.attention_table(s.asked, n=s.n(48, FEW)), "attention to answers"),
)  # fmt: skip


def chapters_of(model: str) -> tuple[int, ...]:
    """The chapters whose experiments suit a model: known ones by their table, the book's own by their task."""
    known = known_models().get(model)
    if known is not None:
        return known.chapters
    if model == PLANTED or model in shipped_models():
        return (4,) if model in learners() else (1, 2, 3)
    return (1, 2, 3, 4)
