"""What an edit may do: families of heads, parts of them, and what becomes of these."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """Heads whose components are edited: those that write into the movers' queries, the name movers, those with the
    largest direct effect on the answer whatever their role; and random heads of the same layers."""

    INTO_QUERIES = "into_queries"
    MOVERS = "movers"
    DIRECT = "direct"
    RANDOM = "random"


class Extent(StrEnum):
    """How much of a head: one component, its leading ones together, all of it."""

    SINGLE = "single"
    LEADING = "leading"
    HEAD = "whole_head"
