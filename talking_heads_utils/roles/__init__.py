"""Roles of heads: those that others published, which are claims of their source, and those that are found here.

``ioi``  found on IOI: movers, who inhibits them, and whom the inhibitors read
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from talking_heads_utils.errors import TaskError
from talking_heads_utils.labels import Head
from talking_heads_utils.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

PREVIOUS_TOKEN = "previous-token"
DUPLICATE_TOKEN = "duplicate-token"
INDUCTION = "induction"
S_INHIBITION = "S-inhibition"
NAME_MOVER = "name mover"
BACKUP_MOVER = "backup mover"
NEGATIVE_MOVER = "negative mover"
S_SUPPRESSION = "S suppression"  # looks at S and writes against it
S_COPY = "S copying"  # looks at S and writes for it
NO_NAME = "no name looked at"  # a direct effect that comes from no name's token
VALUE_SOURCE = "other value source"  # read by an inhibition head's values, looking at no token that has a name here

ALL = (
    PREVIOUS_TOKEN, DUPLICATE_TOKEN, INDUCTION, S_INHIBITION, NAME_MOVER, BACKUP_MOVER, NEGATIVE_MOVER, S_SUPPRESSION,
    S_COPY, NO_NAME, VALUE_SOURCE,
)  # fmt: skip

DIRECT, QUERY, KEY, VALUE = "logits", "query", "key", "value"  # where an effect goes in: the logits, a reader's input
PATHS = {"Q": QUERY, "K": KEY, "V": VALUE}
UNITS = {DIRECT: "logits", QUERY: "nats", KEY: "nats", VALUE: "nats"}
"""The logit difference; log-odds of a mover's attention, IO to S1."""

GPT2_SMALL_SOURCE = "Wang et al. 2022, Interpretability in the wild (the IOI circuit of GPT-2 small)"

_GPT2_SMALL = {
    PREVIOUS_TOKEN: "L2H2 L4H11",
    DUPLICATE_TOKEN: "L0H1 L0H10 L3H0",
    INDUCTION: "L5H5 L5H8 L5H9 L6H9",
    S_INHIBITION: "L7H3 L7H9 L8H6 L8H10",
    NAME_MOVER: "L9H6 L9H9 L10H0",
    BACKUP_MOVER: "L9H0 L9H7 L10H1 L10H2 L10H6 L10H10 L11H2 L11H9",
    NEGATIVE_MOVER: "L10H7 L11H10",
}

# The links of the IOI circuit that go from head to head: writers' role, readers' role, and which input is read.
IOI_LINKS = (
    (PREVIOUS_TOKEN, INDUCTION, "K"),
    (DUPLICATE_TOKEN, S_INHIBITION, "V"),
    (INDUCTION, S_INHIBITION, "V"),
    (S_INHIBITION, NAME_MOVER, "Q"),
)


def gpt2_small_roles() -> dict[str, list[Head]]:
    """Role -> heads of GPT-2 small, from :data:`GPT2_SMALL_SOURCE`."""
    return {role: [Head.parse(name) for name in names.split()] for role, names in _GPT2_SMALL.items()}


def role_of(head: Head, roles: Mapping[str, list[Head]]) -> str | None:
    """The role of one head, or None where none was published."""
    return next((role for role, heads in roles.items() if head in heads), None)


READ_BY = {kind: readers for _, readers, kind in IOI_LINKS}  # who reads through which input


@dataclass(frozen=True)
class Link:
    """What goes from heads of one role to heads of another: the input that is read, Q, K or V, and each writer with
    each reader that it acts on."""

    writers_role: str
    readers_role: str
    kind: str
    pairs: tuple[tuple[Head, Head], ...]

    @property
    def name(self) -> str:
        return f"{self.writers_role} → {self.readers_role} ({self.kind})"

    @property
    def writers(self) -> list[Head]:
        return sorted({writer for writer, _ in self.pairs})

    @property
    def readers(self) -> list[Head]:
        return sorted({reader for _, reader in self.pairs})


COLUMNS = [
    "role", "head", "path", "reader", "effect", "low", "high", "unit", "n", "chosen_by", "p", "to_io", "to_s1", "to_s2",
    "confirmed",
]  # fmt: skip


@dataclass(frozen=True)
class Role:
    """One head's role on IOI, found by what it does through one path.

    path: :data:`DIRECT`, on the logit difference; :data:`QUERY`, in one mover's query; :data:`VALUE`, in one inhibition
        head's values. reader: that mover or inhibition head, None for the logits.
    A role that was published or planted, not found, has no effect: p is NaN then.
    chosen_by: mean effect on the selection half, p: there, after Holm's correction over all heads and readers.
    effect: on the held-out half, in :data:`UNITS`. attention: there, mean from ``end`` to IO, S1 and S2.
    """

    role: str
    head: Head
    path: str
    reader: Head | None
    chosen_by: float
    p: float
    effect: Interval = Interval(math.nan, math.nan, math.nan, 0)
    attention: tuple[float, float, float] = (math.nan, math.nan, math.nan)

    @property
    def confirmed(self) -> bool:
        """Whether the held-out half's interval lies on the same side of zero; of a role that was not found but given,
        True."""
        if math.isnan(self.p):
            return True
        return self.effect.low > 0 if self.chosen_by > 0 else self.effect.high < 0


@dataclass(frozen=True)
class Roles:
    """The roles of one model's heads. A head that acts on several readers has one entry for each."""

    entries: tuple[Role, ...]

    def heads(self, *names: str) -> list[Head]:
        """Heads whose role has one of these names, the largest sum of effects on the selection half first, less those
        that the held-out half does not confirm."""
        total: dict[Head, float] = {}
        for role in self.entries:
            if role.role in names and role.confirmed:
                total[role.head] = total.get(role.head, 0.0) + abs(role.chosen_by)
        return sorted(total, key=lambda head: -total[head])

    def links(self) -> tuple[Link, ...]:
        """The confirmed links from head to head, in the order of :data:`IOI_LINKS`, then of other writers."""
        pairs: dict[tuple[str, str], list[tuple[Head, Head]]] = {}
        for role in self.entries:
            if role.confirmed and role.reader is not None:
                kind = next(kind for kind, path in PATHS.items() if path == role.path)
                pairs.setdefault((role.role, kind), []).append((role.head, role.reader))
        known = [(writers, kind) for writers, _, kind in IOI_LINKS]
        order = sorted(pairs, key=lambda key: known.index(key) if key in known else len(known))
        return tuple(Link(role, READ_BY[kind], kind, tuple(pairs[role, kind])) for role, kind in order)

    def role_of(self, head: Head) -> str:
        """The first role of a head that is confirmed; empty for none."""
        return next((role.role for role in self.entries if role.head == head and role.confirmed), "")

    @property
    def mover(self) -> Head:
        """The strongest name mover. Raises :class:`TaskError` where there is none."""
        if not (movers := self.heads(NAME_MOVER)):
            raise TaskError("No head was found to copy IO from its token: there is no name mover to ask about.")
        return movers[0]

    def shown(self) -> pd.DataFrame:
        """The confirmed heads as a page shows them, one row a head and role: role, head, reads into, effect with its
        interval (of several readers, that on which it is largest), attention from ``end`` to IO, S1 and S2 (not of
        heads that act through values: they work at S2), n."""
        found = self.frame().astype({"confirmed": bool, "effect": float})
        found = found[found["confirmed"]].sort_values("effect", key=abs, ascending=False, kind="stable")
        found.loc[found["path"] == VALUE, ["to_io", "to_s1", "to_s2"]] = math.nan
        found["acts_on"] = [f"{reader}'s {path}" if reader else f"the {path}"
                            for reader, path in zip(found["reader"], found["path"])]  # fmt: skip
        rest = ("effect", "low", "high", "unit", "to_io", "to_s1", "to_s2", "n")
        heads = found.groupby(["role", "head"], sort=False)
        return heads.agg({"acts_on": ", ".join} | dict.fromkeys(rest, "first")).reset_index()

    def frame(self) -> pd.DataFrame:
        """One row per entry: role, head, path, reader, effect, low, high, unit, n, the selection half's effect and p,
        attention from ``end`` to IO, S1 and S2, confirmed."""
        import pandas as pd

        rows = [
            (r.role, str(r.head), r.path, str(r.reader or ""), *r.effect[:3], UNITS[r.path], r.effect.n, r.chosen_by,
             r.p, *r.attention, r.confirmed)
            for r in self.entries
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=COLUMNS)

    @classmethod
    def given(cls, heads: Mapping[str, Sequence[Head]]) -> Roles:
        """Roles that were published or planted: role -> heads. Where :data:`IOI_LINKS` names no reader of a role, what
        it acts on is the logits."""
        entries = []
        for role, writers in heads.items():
            read_by: list[tuple[Head | None, str]] = [
                (reader, PATHS[kind]) for of, into, kind in IOI_LINKS if of == role for reader in heads.get(into, ())
            ]
            for writer in writers:
                for reader, path in read_by or [(None, DIRECT)]:
                    if reader is None or writer.layer < reader.layer:
                        entries.append(Role(role, writer, path, reader, chosen_by=0.0, p=math.nan))
        return cls(tuple(entries))

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> Roles:
        """What :meth:`frame` made a table of."""
        return cls(tuple(
            Role(
                row["role"], Head.parse(row["head"]), row["path"], Head.parse(row["reader"]) if row["reader"] else None,
                row["chosen_by"], row["p"], Interval(row["effect"], row["low"], row["high"], row["n"]),
                (row["to_io"], row["to_s1"], row["to_s2"]),
            )
            for row in frame.to_dict("records")
        ))  # fmt: skip
