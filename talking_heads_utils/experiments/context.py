"""One model on its way through the experiments: what they share is made once, and read by every chapter.

An experiment is a function from a :class:`Context` to rows. What a chapter chooses for itself (a channel, an edit's
components, a task) is a frozen dataclass of that chapter, made by a function of a Context and kept by
:meth:`Context.kept`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from talking_heads_utils.device import check_device
from talking_heads_utils.errors import NotApplicable, OptionError, TaskError, UnsupportedModelError
from talking_heads_utils.experiments import corpus, gate
from talking_heads_utils.experiments.gate import Cell
from talking_heads_utils.experiments.inhibition.list_roles import FoundRoles, roles_on_lists
from talking_heads_utils.experiments.rows import Row, frame, rows
from talking_heads_utils.experiments.toys import longest_trained
from talking_heads_utils.forward.recording import Recording, record
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS, PLANTED, shipped_models, shown_as
from talking_heads_utils.labels import Head
from talking_heads_utils.models import find_checkpoint, load_with_tokenizer, moved
from talking_heads_utils.planted.model import planted_roles
from talking_heads_utils.prompts import ioi, lists
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.roles import S_INHIBITION, Roles, gpt2_small_roles
from talking_heads_utils.roles.ioi import find_roles
from talking_heads_utils.scores.scores import CompositionScores, compute_scores
from talking_heads_utils.settings import N_ITEMS, SEED
from talking_heads_utils.weights.bridge import head_weights_from_bridge
from talking_heads_utils.weights.checkpoints import assembled
from talking_heads_utils.weights.heads import HeadWeights

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
LENGTHS, QUICK_LENGTHS = (3, 4, 6, 8, 10, 12), (4, 8, 12)  # of the toys' lists
QUICK_GATE = (3, 5, 8)  # list lengths of a quick run's gate
GATE, ROLES = "gate", "roles"  # experiments that others read


@dataclass
class Context:
    """A model by name, and how its experiments are run.

    model: as :func:`~talking_heads_utils.models.load_model` takes it, or :data:`CONTROL`, or
    :data:`~talking_heads_utils.known.GPT2_WEIGHTS`, which has weights, scores and published roles alone. quick: one
    prompt in ten, three list lengths, small grids. texts: running text, a file or a name that
    :func:`~talking_heads_utils.experiments.corpus.running_text` knows; see :attr:`text_source`. finished: gives the
    table of an experiment that is done, else None. loaded: the model and its tokenizer, where they are there already.
    own: whether it is asked as a model of the book is; None goes by the name.
    """

    model: str
    seed: int = SEED
    quick: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    texts: Path | str | None = None
    finished: Callable[[str], pd.DataFrame | None] = lambda name: None
    loaded: tuple[TransformerBridge, PreTrainedTokenizerBase] | None = field(default=None, repr=False)
    own: bool | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    # --- the model ---

    @property
    def bridge(self) -> TransformerBridge:
        """Raises :class:`NotApplicable` where only attention weights are there."""
        return self._model[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._model[1]

    @cached_property
    def _model(self) -> tuple[TransformerBridge, PreTrainedTokenizerBase]:
        if self.loaded is not None:
            return self.loaded
        if self.model == GPT2_WEIGHTS:
            raise NotApplicable("Only attention weights of GPT-2 small are here, so nothing can be run.")
        if self.model == CONTROL:
            from talking_heads_utils.planted.model import plant

            truth = plant(channel=False, seed=self.seed)
            return moved(truth.bridge, check_device(self.device), self.dtype), truth.tokenizer
        return load_with_tokenizer(self.model, self.device, self.dtype)

    @cached_property
    def weights(self) -> HeadWeights:
        if self.model == GPT2_WEIGHTS:
            return assembled(find_checkpoint(self.model))
        return head_weights_from_bridge(self.bridge)

    @cached_property
    def scores(self) -> CompositionScores:
        """Composition scores into queries, keys and values. Raises :class:`NotApplicable` for a model that normalises
        queries and keys."""
        try:
            return compute_scores(self.weights, seed=self.seed)
        except UnsupportedModelError as error:
            raise NotApplicable(str(error)) from error

    @property
    def is_own(self) -> bool:
        """Whether this is a model of the book, whose words are few."""
        return is_own(self.model) if self.own is None else self.own

    @property
    def shows(self) -> str:
        """What a figure of this model must be called."""
        return shown_as(self.model)

    # --- sizes ---

    def n(self, usual: int, least: int = 20) -> int:
        """How many prompts to take where ``usual`` are: one in ten of a quick run, but ``least`` at least."""
        return max(least, usual // 10) if self.quick else usual

    @property
    def lengths(self) -> Sequence[int]:
        """List lengths to go through: those that a model of the book saw in training, those that the gate lets another
        be asked about. Raises :class:`NotApplicable` where there are fewer than two."""
        if self.is_own:
            return [n for n in (QUICK_LENGTHS if self.quick else LENGTHS) if n <= longest_trained(self.model)]
        if len(self.asked_lengths) < 2:
            raise NotApplicable(f"{self.model} can be asked about lists of one length at most. {self._gate_says}")
        return self.asked_lengths

    def n_items(self, usual: int) -> int:
        """Length of the lists to ask about where ``usual`` is: never a longer one than training showed or the gate lets
        be asked about. Raises :class:`NotApplicable` where no list may be asked about."""
        if self.is_own:
            return int(min(usual, longest_trained(self.model)))
        if not self.asked_lengths:
            raise NotApplicable(f"{self.model} cannot be asked about lists. {self._gate_says}")
        return max((n for n in self.asked_lengths if n <= usual), default=min(self.asked_lengths))

    @property
    def text_source(self) -> Path | str | None:
        """Where running text comes from: unless one is named, Python's own; for a model of the book, None: texts made
        for it."""
        return self.texts or (None if self.is_own else corpus.PYDOC)

    # --- prompts ---

    def lists(self, n_items: int, n_prompts: int) -> PromptSet:
        """Lists of one length, both halves."""
        return self._keep(("lists", n_items, n_prompts),
                          lambda: lists.build_laundry(self.tokenizer, n_items, n_prompts, self.seed))  # fmt: skip

    def ioi(self, n_prompts: int) -> PromptSet:
        """IOI prompts, both halves."""
        return self._keep(("ioi", n_prompts), lambda: ioi.build_ioi(self.tokenizer, n_prompts, self.seed))

    def record(self, prompts: PromptSet, layers: Sequence[int]) -> Recording:
        """A recording with these layers as readers; of the same prompts and layers, the one that was made before.

        Raises :class:`NotApplicable` for a model whose attention is of an unknown kind.
        """
        key = ("record", prompts.recipe, hash(prompts.tokens.numpy().tobytes()), tuple(layers))
        try:
            return self._keep(key, lambda: record(self.bridge, prompts, layers))
        except UnsupportedModelError as error:
            raise NotApplicable(str(error)) from error

    # --- what the model can do, and which heads do it ---

    @cached_property
    def gate(self) -> list[Cell]:
        """Accuracy by kind of prompt, which decides what a model that is not the book's own is asked."""
        found = self.finished(GATE)
        return self.run_gate() if found is None else rows(found, Cell)

    def run_gate(self) -> list[Cell]:
        lengths, n = QUICK_GATE if self.quick else gate.LENGTHS, self.n(gate.N_PROMPTS, gate.QUICK)
        return gate.run_gate(self.bridge, self.tokenizer, lengths, n, self.seed)

    @cached_property
    def asked_lengths(self) -> list[int]:
        return sorted(cell.n_items for cell in gate.asked(self.gate) if cell.task == lists.TASK)

    def check_ioi(self) -> None:
        """Raises :class:`NotApplicable`, with its accuracy, for a model that cannot do IOI well enough to be asked."""
        gate.check_asked(self.gate, ioi.TASK)

    @property
    def _gate_says(self) -> str:
        whole = [cell for cell in self.gate if cell.whole and cell.task == lists.TASK]
        return f"The lower end must be {gate.AT_LEAST} times chance: {'; '.join(c.describe() for c in whole)}."

    @cached_property
    def roles(self) -> Roles:
        """Who does what on IOI: as published of GPT-2's weights, as planted where it is planted, else as found.

        Raises :class:`NotApplicable` for a model that cannot do IOI, :class:`LabelError` where weights that are called
        GPT-2's lack its heads."""
        if self.model == GPT2_WEIGHTS:
            published = gpt2_small_roles()
            for head in (head for heads in published.values() for head in heads):
                self.weights.head(head)  # the variable may name another model's folder
            return Roles.given(published)
        if self.model in (PLANTED, CONTROL):
            return Roles.given(planted_roles())
        found = self.finished(ROLES)
        return self.run_roles() if found is None else Roles.of_frame(found)

    def run_roles(self) -> Roles:
        self.check_ioi()
        return find_roles(self.bridge, self.tokenizer, n_prompts=self.n(400, 80), seed=self.seed)

    @property
    def task_prompts(self) -> PromptSet:
        """The prompts that roles are found on: lists for a model of the book, IOI for any other. Both halves."""
        return self.lists(self.n_items(N_ITEMS), self.n(400)) if self.is_own else self.ioi(self.n(400, 80))

    @cached_property
    def found(self) -> FoundRoles:
        """Movers and inhibition heads on lists: of the book's own models alone."""
        try:
            return roles_on_lists(self.bridge, self.task_prompts, seed=self.seed)
        except OptionError as error:
            raise NotApplicable(f"{self.model}: {error}") from error

    @property
    def mover(self) -> Head:
        """The strongest mover. Raises :class:`NotApplicable` where there is none."""
        if self.is_own:
            return self.found.movers[0]
        try:
            return self.roles.mover
        except TaskError as error:
            raise NotApplicable(f"{self.model}: {error}") from error

    @property
    def inhibition(self) -> list[Head]:
        """Inhibition heads below the strongest mover, the strongest first."""
        heads = self.found.inhibition if self.is_own else self.roles.heads(S_INHIBITION)
        return [head for head in heads if head.layer < self.mover.layer]

    # --- what is kept ---

    def kept(self, make: Callable[..., T], *given: Hashable) -> T:
        """What ``make`` makes of this context, and of ``given``, made once: for what a chapter's experiments share."""
        return self._keep((make, *given), lambda: make(self, *given))

    def _keep(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forget(self) -> None:
        """Let go of prompts, recordings and what chapters made; the model, its scores, gate and roles stay."""
        self._kept.clear()


@dataclass(frozen=True)
class Experiment:
    """One table. row: its rows. run: gives them, or raises :class:`NotApplicable` with the reason why this model has
    none. weight: its share of a whole run's time, roughly, from which the time left is told. of_own: whether the
    book's own models go through it as well. reads_texts: whether it reads running text."""

    name: str
    chapter: int
    weight: float
    row: type[Row] | None
    run: Callable[[Context], Sequence[Row] | pd.DataFrame]
    about: str
    of_own: bool = True
    reads_texts: bool = False

    @property
    def module(self) -> str:
        """Where its code begins."""
        return self.run.__module__

    def table(self, context: Context) -> pd.DataFrame:
        """Run it: its rows as a table."""
        found = self.run(context)
        return frame(found, self.row) if isinstance(found, Sequence) else found.reset_index(drop=True)


def is_own(model: str) -> bool:
    """Whether this is a model of the book, planted or trained here."""
    return model in (PLANTED, CONTROL) or model in shipped_models()
