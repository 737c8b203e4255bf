"""One mover, the heads that inhibit it, and what it does on both halves of the prompts: what chapter 1 asks about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from talking_heads_utils.effects import Effects, component_effects
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.forward.recording import Recording
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.prompts.halves import halves


@dataclass(frozen=True)
class MoverRuns:
    """heads: inhibition heads below the mover, the strongest first. selection, held_out: recordings of the prompts that
    roles were found on, the mover's layer as reader; only the first half chose anything."""

    model: str
    mover: Head
    heads: tuple[Head, ...]
    selection: Recording
    held_out: Recording

    @cached_property
    def effects(self) -> Effects:
        """Removal of every component from the mover's query, on the held-out half."""
        return component_effects(self.held_out, self.mover)

    @cached_property
    def ranked(self) -> list[Component]:
        """Components of the inhibition heads, by how much the removal of each lowers I(m) on the selection half."""
        table = component_effects(self.selection, self.mover).table()
        named = [Component.parse(name) for name in table.sort_values("inhibition", kind="stable")["writer"]]
        return [c for c in named if c.of_head in self.heads]

    def strongest(self, n: int | None = None) -> list[Component]:
        """The first ``n`` of :attr:`ranked`. Raises :class:`NotApplicable` where there is no inhibition head."""
        if not self.ranked:
            raise NotApplicable(
                f"No head of {self.model} was found to inhibit the mover: no component can be followed."
            )
        return self.ranked[:n]

    def best_of_each_head(self) -> dict[Head, Component]:
        """The first of :attr:`ranked` of each inhibition head."""
        found: dict[Head, Component] = {}
        for c in self.strongest():
            found.setdefault(c.of_head, c)
        return found


def mover_runs(c: Context) -> MoverRuns:
    """Raises :class:`NotApplicable` for a model without a mover."""
    mover = c.mover
    selection, held_out = (c.record(half, [mover.layer]) for half in halves(c.task_prompts))
    return MoverRuns(c.model, mover, tuple(c.inhibition), selection, held_out)
