"""The components that edits scale, random ones beside them, and the prompts that choose and score edits.

Choices are made on the selection half of lists of ``n_items``. What is reported as a gain is measured on the other
half, on a wording that no choice saw, and on longer lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.components import is_empty
from talking_heads_utils.edits.edits import Edit, new_edit
from talking_heads_utils.effects import component_effects
from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing.upper import Upper, prepare
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.halves import halves
from talking_heads_utils.prompts.lists import HELD_OUT, wordings
from talking_heads_utils.prompts.sets import PromptSet

LIKE = 2.0  # a random component's singular value is at most so many times the chosen one's, or less by it
SHORT = 4  # items of the lists that no edit was made for


class Prompts(StrEnum):
    """A set of prompts: lists of the selection half; of the held-out half in wordings that choices saw, in the one that
    they did not, and in both; IOI."""

    SELECTION = "selection"
    KNOWN = "known_wordings"
    NEW = "new_wording"
    LISTS = "lists"
    IOI = "ioi"


ELSEWHERE = ((Prompts.IOI, None), (Prompts.LISTS, SHORT))  # what edits were not made for


@dataclass(frozen=True)
class Components:
    """Components of the mover's channel, and as many random ones per draw.

    n_items: of the lists that edits are chosen on. n_prompts: of a set that chooses, twice as many where lists are
    scored.
    """

    chosen: tuple[Component, ...]
    random: tuple[tuple[Component, ...], ...]
    n_items: int
    n_prompts: int
    _kept: dict[tuple[Prompts, int], tuple[PromptSet, Upper]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def every(self) -> tuple[Component, ...]:
        """All components that some edit scales: the chosen ones, then each draw's."""
        return (*self.chosen, *(c for draw in self.random for c in draw))

    def columns(self, draw: int | None = None) -> list[int]:
        """Where the chosen components, or those of a draw, stand among :attr:`every`."""
        first = 0 if draw is None else len(self.chosen) * (1 + draw)
        return list(range(first, first + len(self.chosen)))

    def on(self, run: Context, prompts: Prompts, n_items: int | None = None) -> tuple[PromptSet, Upper]:
        """A set of prompts, run once with all components ready to be scaled. n_items: of lists, where not those that
        edits are chosen on."""
        key = (prompts, n_items or self.n_items)
        if key not in self._kept:
            found = prompts_of(run, prompts, key[1], self.n_prompts)
            self._kept[key] = found, prepare(run.bridge, found, self.every)
        return self._kept[key]

    def edit(self, run: Context, factors: Float[Tensor, "n_components"]) -> Edit:
        """The edit that scales by these factors, as data."""
        changed = {c: g for c, g in zip(self.every, factors.tolist()) if g != 1}
        return new_edit(run.weights, changed, model=run.model)  # type: ignore[arg-type]  # a Mapping's keys are invariant


def prompts_of(run: Context, prompts: Prompts, n_items: int, n_prompts: int) -> PromptSet:
    """A set of ``n_prompts``; of held-out lists twice as many."""
    if prompts == Prompts.IOI:
        return run.ioi(n_prompts)
    if prompts == Prompts.SELECTION:
        return halves(run.lists(n_items, 2 * n_prompts))[0]
    new = wordings(held_out=True)
    parts = len(wordings()) // len(new) if prompts == Prompts.NEW else 2
    found = run.lists(n_items, 4 * n_prompts * parts).where(half=HELD_OUT)
    if prompts != Prompts.LISTS:
        found = found.select(torch.tensor([(w in new) == (prompts == Prompts.NEW) for w in found.info["wording"]]))
    return found.select(list(range(min(2 * n_prompts, len(found)))))


def choose(run: Context, n_items: int, n_prompts: int = 60, n_components: int = 6, n_draws: int = 3) -> Components:
    """The components whose removal from the mover's query changes I(m) most, either way, on the selection half; beside
    them random ones of the same layers, of like singular value where there are such.

    Raises :class:`NotApplicable` where a layer has too few others to draw from, and :class:`OptionError` for no
    component or no draw: no edit stands without a control.
    """
    if n_components < 1 or n_draws < 1:
        raise OptionError(
            f"One component and one random draw at least, not {n_components} and {n_draws}: no edit stands without its "
            "control."
        )
    recording = run.record(prompts_of(run, Prompts.SELECTION, n_items, n_prompts), [run.mover.layer])
    table = component_effects(recording, run.mover).table()
    order = table["inhibition"].abs().sort_values(ascending=False, kind="stable").index[:n_components]
    chosen = tuple(Component.parse(writer) for writer in table.loc[order, "writer"])
    draws: list[tuple[Component, ...]] = []
    for draw in range(n_draws):
        taken = [c for others in draws for c in others]
        draws.append(tuple(random_like(recording.singular_values, chosen, taken, run.seed + draw)))
    return Components(chosen, tuple(draws), n_items, n_prompts)


def random_like(
    S: Float[Tensor, "n_layers n_heads d_head"], chosen: Sequence[Component], taken: Sequence[Component], seed: int
) -> list[Component]:
    """For each chosen component another one of its layer, of like singular value where there is one, drawn at random.

    taken: components that must not be drawn. Where none is within :data:`LIKE`, one of the three nearest is drawn. It
    can be of quite another size, so what is said of single components must count those.
    Raises :class:`NotApplicable` for a layer without enough others.
    """
    generator = torch.Generator().manual_seed(seed)
    used, found = {*chosen, *taken}, []
    for c in chosen:
        values = S[c.layer].masked_fill(is_empty(S[c.layer]), torch.nan)
        apart = (values / S[c.layer, c.head, c.component]).log().abs()
        defined = [i for i in apart.flatten().argsort().tolist() if not apart.flatten()[i].isnan()]
        order = [Component(c.layer, *divmod(i, S.shape[2])) for i in defined]
        free = [other for other in order if other not in used]
        near = [other for other in free if apart[other.head, other.component] <= math.log(LIKE)]
        pool = near or free[:3]
        if not pool:
            raise NotApplicable(f"Layer {c.layer} has no other component to compare {c} with.")
        found.append(pool[int(torch.randint(len(pool), (1,), generator=generator))])
        used.add(found[-1])
    return found
