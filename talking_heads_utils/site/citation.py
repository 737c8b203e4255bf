"""How to cite the book: made of ``CITATION.cff``, so that it stands once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def names(people: list[Mapping[str, str]], joint: str, group: str = "{name}") -> str:
    """Authors as ``Family, Given``; a group by its name, written as ``group`` says."""
    return joint.join(
        f"{who['family-names']}, {who['given-names']}" if "family-names" in who else group.format(**who)
        for who in people
    )


def bibtex(cff: Mapping[str, Any], version: str) -> str:
    """The book as a BibTeX entry. Raises ``KeyError`` where the citation file lacks a field that it needs."""
    fields = {
        "title": f"{{{cff['title']}}}",
        "author": names(cff["authors"], " and ", "{{{name}}}"),  # BibTeX leaves what is in braces whole
        "version": version,
        "url": cff["repository-code"],
        "note": f"{cff['license']} licence",
    }
    lines = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
    return f"@software{{talking_heads_book,\n{lines}}}"


def reproduced_works(cff: Mapping[str, Any]) -> list[str]:
    """The works that the book reproduces and asks to be cited as well, one line each."""
    works = [(names(work["authors"], "; "), work, work.get("collection-title")) for work in cff["references"]]
    return [f"{who} ({work['year']}). *{work['title']}*.{f' {place}.' if place else ''}" for who, work, place in works]
