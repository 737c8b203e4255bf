"""Who does what on IOI, as rows; :class:`~talking_heads_utils.roles.Roles` reads them back."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.rows import Row, column, rows


@dataclass(frozen=True)
class RoleRow(Row):
    """One head's role on IOI through one path; a head that acts on several readers has a row for each."""

    role: str = column("", "name mover, S-inhibition and so on")
    head: str = column("", "the head")
    path: str = column("", "what it acts on: the logits, a mover's query, or an inhibition head's values")
    reader: str = column("", "that mover or inhibition head; empty for the logits")
    effect: float = column("`unit`", "mean over the held-out half")
    low: float = column("`unit`", "lower end of its 95% interval over prompts")
    high: float = column("`unit`", "upper end")
    unit: str = column("", "logits of the logit difference, or nats of a mover's attention, IO to S1")
    n: int = column("prompts", "of the held-out half")
    chosen_by: float = column("`unit`", "mean over the selection half")
    p: float = column("", "there, sign flips over prompts, after Holm's correction over all heads and readers")
    to_io: float = column("share of attention", "mean from end to IO; empty for the first layer")
    to_s1: float = column("share of attention", "to S1")
    to_s2: float = column("share of attention", "to S2")
    confirmed: bool = column("", "whether the held-out half's interval lies on the selection half's side of zero")


def run(c: Context) -> list[RoleRow]:
    """Raises :class:`NotApplicable` for a model that cannot do IOI."""
    return rows(c.run_roles().frame(), RoleRow)
