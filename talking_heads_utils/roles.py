"""Head roles that others published. A role is a claim of its source, not of this book."""

from __future__ import annotations

from talking_heads_utils.labels import Head

PREVIOUS_TOKEN = "previous-token"
DUPLICATE_TOKEN = "duplicate-token"
INDUCTION = "induction"
S_INHIBITION = "S-inhibition"
NAME_MOVER = "name mover"
BACKUP_MOVER = "backup mover"
NEGATIVE_MOVER = "negative mover"

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


def role_of(head: Head, roles: dict[str, list[Head]]) -> str | None:
    """The role of one head, or None where none was published."""
    return next((role for role, heads in roles.items() if head in heads), None)
