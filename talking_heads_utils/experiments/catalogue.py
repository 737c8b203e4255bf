"""The experiments that one model goes through, each with one table as its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.editing import study as editing
from talking_heads_utils.experiments.gate import (
    ALL,
    ANYWHERE,
    AT_LEAST,
    N_PROMPTS,
    QUICK,
    Cell,
    asked,
    check_asked,
    gate_from,
    gate_table,
    run_gate,
)
from talking_heads_utils.experiments.gate import LENGTHS as GATE_LENGTHS
from talking_heads_utils.experiments.icl import curves
from talking_heads_utils.experiments.icl import study as icl
from talking_heads_utils.experiments.icl.words import words_table
from talking_heads_utils.experiments.inhibition import study as inhibition
from talking_heads_utils.experiments.inhibition.circuit import circuit_table
from talking_heads_utils.experiments.positional import study as positional
from talking_heads_utils.experiments.prefixes import prefix_candidates, prefix_table
from talking_heads_utils.forward.answers import function_table
from talking_heads_utils.labels import Head
from talking_heads_utils.models import (
    PLANTED,
    known_models,
    learners,
    load_with_tokenizer,
    longest_trained,
    shipped_models,
)
from talking_heads_utils.prompts import ioi
from talking_heads_utils.prompts import lists as laundry
from talking_heads_utils.prompts.questions import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS
from talking_heads_utils.roles import Roles
from talking_heads_utils.roles.ioi import Pair, find_roles, pairs_of_prompts
from talking_heads_utils.settings import N_ITEMS, SEED

if TYPE_CHECKING:
    import pandas as pd

CROWDED, SEEN = 10, 8  # items of the lists of chapter 3; examples that laws are fitted on
LENGTHS, QUICK_LENGTHS = (3, 4, 6, 8, 10, 12), (4, 8, 12)  # of the toys' lists
QUICK_GATE = (3, 5, 8)  # list lengths of a quick run's gate
GATE, ROLES = "gate", "roles"  # experiments that others read
N_STRONG, FEW = 6, 8  # heads whose pairs are taken out; prompts of a quick run of chapter 4


@dataclass
class Subject:
    """A model on its way through the experiments. What a chapter's experiments share is made once.

    quick: one prompt in ten, three list lengths, grids of five values and of three. texts: running text for what is
    measured there; a file, or a name that :func:`~talking_heads_utils.experiments.corpus.running_text` knows; see
    :attr:`text_source`. finished: gives the table of an experiment that is done already, else None: the gate and the
    roles are made once and read by every chapter.
    """

    model: str
    seed: int = SEED
    quick: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    texts: Path | str | None = None
    finished: Callable[[str], pd.DataFrame | None] = lambda name: None

    def n(self, usual: int, least: int = 20) -> int:
        """How many prompts to take where ``usual`` are: one in ten of a quick run, but ``least`` at least."""
        return max(least, usual // 10) if self.quick else usual

    @property
    def lengths(self) -> Sequence[int]:
        """List lengths to go through: those that a model of the book saw in training, those that the gate lets another
        be asked about. Raises :class:`TaskError` where there are fewer than two."""
        if self.is_own:
            return [n for n in (QUICK_LENGTHS if self.quick else LENGTHS) if n <= longest_trained(self.model)]
        if len(self.asked_lengths) < 2:
            raise TaskError(f"{self.model} can be asked about lists of one length at most. {self._gate_says}")
        return self.asked_lengths

    def n_items(self, usual: int) -> int:
        """Length of the lists to ask about where ``usual`` is: never a longer one than training showed or the gate lets
        be asked about. Raises :class:`TaskError` where no list may be asked about."""
        if self.is_own:
            return int(min(usual, longest_trained(self.model)))
        if not self.asked_lengths:
            raise TaskError(f"{self.model} cannot be asked about lists. {self._gate_says}")
        return max((n for n in self.asked_lengths if n <= usual), default=min(self.asked_lengths))

    @property
    def crowded(self) -> int:
        """Length of lists on which edits are chosen."""
        return self.n_items(N_ITEMS if self.quick else CROWDED)

    @cached_property
    def gate(self) -> list[Cell]:
        """Accuracy by kind of prompt, which decides what a model that is not the book's own is asked."""
        found = self.finished(GATE)
        return gate_from(_gate(self) if found is None else found)

    @cached_property
    def asked_lengths(self) -> list[int]:
        return sorted(cell.n_items for cell in asked(self.gate) if cell.task == laundry.TASK)

    @property
    def _gate_says(self) -> str:
        whole = [c for c in self.gate if (c.task, c.order, c.wording, c.place) == (laundry.TASK, ALL, ALL, ANYWHERE)]
        return f"The lower end must be {AT_LEAST} times chance: {'; '.join(c.describe() for c in whole)}."

    @cached_property
    def roles(self) -> Roles:
        """Who does what on IOI, for every chapter the same."""
        found = self.finished(ROLES)
        return Roles.of_frame(_roles(self) if found is None else found)

    @property
    def is_own(self) -> bool:
        """Whether this is a model of the book, whose words are few."""
        return self.model == PLANTED or self.model in shipped_models()

    @property
    def text_source(self) -> Path | str | None:
        """Where running text comes from: unless one is named, every Python's own; for a model of the book, None: texts
        made for it."""
        return self.texts or (None if self.is_own else corpus.PYDOC)

    def forget(self) -> None:
        """Let go of everything that was kept, models with it."""
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                vars(self).pop(name, None)

    @cached_property
    def study(self) -> inhibition.Study:
        """Chapter 1's: on lists for a model of the book, else on IOI."""
        seed, device, dtype = self.seed, self.device, self.dtype
        if self.is_own:
            n = self.n(400)
            return inhibition.study(self.model, n_items=N_ITEMS, n_prompts=n, seed=seed, device=device, dtype=dtype)
        n = self.n(400, 80)
        return inhibition.study_on_ioi(self.model, self.roles, n_prompts=n, seed=seed, device=device, dtype=dtype)

    @cached_property
    def channel(self) -> positional.Channel:
        """Chapter 2's."""
        mover = None if self.is_own else self.roles.mover
        return positional.channel(self.model, seed=self.seed, device=self.device, dtype=self.dtype, mover=mover)

    @cached_property
    def bench(self) -> editing.Bench:
        """Chapter 3's."""
        size = dict(n_components=3, n_draws=1) if self.quick else dict(n_components=6, n_draws=2)
        return editing.bench(
            self.model, n_items=self.crowded, n_prompts=self.n(80), seed=self.seed, device=self.device,
            dtype=self.dtype, mover=None if self.is_own else self.roles.mover, **size,
        )  # fmt: skip

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
    """One table. weight: its share of a whole run's time, roughly, from which the time left is told. of_own: whether
    the book's own models go through it as well."""

    name: str
    chapter: int
    weight: float
    run: Callable[[Subject], pd.DataFrame]
    about: str
    of_own: bool = True


def _prefix(s: Subject) -> pd.DataFrame:
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    return prefix_table(bridge, tokenizer, prefix_candidates(tokenizer), s.n(100), s.seed)


def _gate(s: Subject) -> pd.DataFrame:
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    lengths = QUICK_GATE if s.quick else GATE_LENGTHS
    return gate_table(run_gate(bridge, tokenizer, lengths, s.n(N_PROMPTS, QUICK), s.seed))


def _roles(s: Subject) -> pd.DataFrame:
    check_asked(s.gate, ioi.TASK)
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    return find_roles(bridge, tokenizer, n_prompts=s.n(400, 80), seed=s.seed).frame()


def _circuit(s: Subject) -> pd.DataFrame:
    """Both tables in one: the logit difference in parts, then what exchanges change."""
    found = s.roles  # first: a model without any is not run
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    held_out = Pair.of(bridge, *pairs_of_prompts(tokenizer, s.n(400, 80), s.seed)[1])
    return circuit_table(bridge, held_out, found, seed=s.seed)


def _concentration(s: Subject) -> pd.DataFrame:
    if not s.study.inhibition:
        raise TaskError(f"No head of {s.model} was found to inhibit the mover, so nothing can be concentrated in one.")
    return inhibition.ninety_table([s.study])


def _activity(s: Subject) -> pd.DataFrame:
    if s.text_source is None:
        texts, name = corpus.generated_texts(s.study.tokenizer, 400, s.seed)[: s.n(2000)], corpus.OWN_TEXTS
    else:
        texts, name = corpus.running_text(s.text_source, s.n(2000)), corpus.texts_shown_as(s.text_source)
    return inhibition.activity_table(s.study, texts)[0].assign(texts=name)


def _carries(s: Subject) -> pd.DataFrame:
    """On lists, place or identity; on IOI, order or name."""
    return inhibition.carries_table([s.study]) if s.is_own else inhibition.factors_table([s.study], s.n(100))


def _decoding(s: Subject) -> pd.DataFrame:
    return positional.decoding_table(s.channel, s.n_items(N_ITEMS), s.n(400))


def _reach(s: Subject) -> pd.DataFrame:
    at, n_items, (n_values, n_random) = s.channel, s.n_items(N_ITEMS), (5, 1) if s.quick else (9, 3)
    return positional.reach_table(at, n_items, positional.axis(at, n_items, n_values), s.n(100), n_random)


def _steering_gains(s: Subject) -> pd.DataFrame:
    at, (n_values, n_random) = s.channel, (3, 1) if s.quick else (5, 2)
    found = {
        str(n): positional.steering_gains(at, n, positional.axis(at, n, n_values), s.n(800), n_random)
        for n in dict.fromkeys((s.n_items(N_ITEMS), s.n_items(12)))
    }
    table = positional.gains_table(found).rename(columns={"model": "n_items"})
    return table.assign(model=s.model)


def _edit_gains(s: Subject) -> pd.DataFrame:
    longer = s.n_items(s.crowded + 2)
    sets = [editing.KNOWN, editing.NEW, *([f"lists of {longer}"] if longer > s.crowded else [])]
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


def _words(s: Subject) -> pd.DataFrame:
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    counts = (0, 4, 8) if s.quick else (0, 1, 2, 4, 8, 16)
    return words_table(bridge, tokenizer, s.n(32, FEW), counts, s.seed, halves=(laundry.HELD_OUT,))


def _functions(s: Subject) -> pd.DataFrame:
    bridge, tokenizer = load_with_tokenizer(s.model, s.device, s.dtype)
    return function_table(bridge, tokenizer, n=s.n(64, FEW), seed=s.seed)


EXPERIMENTS = (
    Experiment("prefix", 1, 3, _prefix, "what stands in front of a prompt", of_own=False),
    Experiment(GATE, 1, 6, _gate, "which tasks the model can do", of_own=False),
    Experiment(ROLES, 1, 4, _roles, "who does what on IOI", of_own=False),
    Experiment("circuit", 1, 3, _circuit, "how much of IOI runs through these heads", of_own=False),
    Experiment("agreement", 1, 4, lambda s: inhibition.agreement_table([s.study]), "weights against effects"),
    Experiment("concentration", 1, 1, _concentration, "components for 90% of an effect"),
    Experiment("carries", 1, 1, _carries, "place or identity"),
    Experiment("activity", 1, 2, _activity, "where in running text components are active"),
    Experiment("decoding", 2, 4, _decoding, "from subspaces"),
    Experiment("crowding", 2, 4, lambda s: positional.crowding_table(s.channel, s.lengths, s.n(120)), "by length"),
    Experiment("places", 2, 1, lambda s: positional.accuracy_by_place(s.channel, s.lengths, s.n(120)), "by place"),
    Experiment("reach", 2, 5, _reach, "where a setting brings the mover"),
    Experiment("steering-gains", 2, 45, _steering_gains, "accuracy by steering"),
    Experiment("removal", 3, 6, lambda s: editing.removal_table(s.bench), "single components removed"),
    Experiment("edit-gains", 3, 14, _edit_gains, "accuracy by edits of the weights"),
    Experiment("edit-harm", 3, 2, _harm, "what the edits cost elsewhere"),
    Experiment("words", 4, 5, _words, "in-context tasks of words", of_own=False),
    Experiment("functions", 4, 4, _functions, "whole answers of y = a x + b", of_own=False),
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


def is_own(model: str) -> bool:
    """Whether this is a model of the book, planted or trained here."""
    return model == PLANTED or model in shipped_models()


def chapters_of(model: str) -> tuple[int, ...]:
    """The chapters whose experiments suit a model: known ones by their table, the book's own by their task."""
    known = known_models().get(model)
    if known is not None:
        return known.chapters
    if is_own(model):
        return (4,) if model in learners() else (1, 2, 3)
    return (1, 2, 3, 4)
