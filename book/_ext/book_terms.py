"""Sphinx extension: the first mention of every glossary term on a page leads to its entry, and says it on the spot.

Notebooks stay free of markup for it, so that they read the same on Colab. The entry's text becomes the link's title,
which ``book.js`` shows as a tip that keys can reach too.
"""

import re

from docutils import nodes

GLOSSARY = "book/glossary"
AMBIGUOUS = {"gap", "rank", "role", "share"}  # everyday words too: linked where a page says {term}
OTHER_SENSE = {"notebooks/04_icl_redundancy": {"reader"}}  # there it is the one who applies Bayes' rule
CLOSED = (nodes.reference, nodes.literal, nodes.title, nodes.caption, nodes.table, nodes.math, nodes.citation)


def glossary_entries(env):
    """Term in lower case -> (anchor, definition)."""
    entries = {}
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        definition = next(item.findall(nodes.definition)).astext().replace("\n", " ")
        for term in item.findall(nodes.term):
            if term["ids"]:
                entries[term.astext().lower()] = term["ids"][0], definition
    return entries


def pattern(entries):
    """Any of the terms as a word of its own, the longest first, also in the plural."""
    words = "|".join(re.escape(term) for term in sorted(entries, key=len, reverse=True))
    return re.compile(rf"(?<![\w.-])({words})(s?)(?![\w-])", re.I)


def linked_by_itself(docname, entries):
    """Anchors of the terms whose first mention on a page is linked without being asked."""
    terms = entries.keys() - AMBIGUOUS - OTHER_SENSE.get(docname, set()) if docname != GLOSSARY else ()
    return {entries[term][0] for term in terms}


def enclosed(node, kinds):
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def link_terms(app, doctree, docname):
    if app.builder.format != "html" or GLOSSARY not in app.env.found_docs:
        return
    entries = glossary_entries(app.env)
    place = app.builder.get_relative_uri(docname, GLOSSARY) if docname != GLOSSARY else ""
    left = linked_by_itself(docname, entries)
    for reference in doctree.findall(nodes.reference):
        anchor = reference.get("refuri", "").rpartition("#")[2] or reference.get("refid", "")
        for found, definition in entries.values():
            if found == anchor:
                reference["reftitle"] = definition
                reference["classes"].append("term")
                left.discard(anchor)
    texts = [t for p in doctree.findall(nodes.paragraph) for t in p.findall(nodes.Text) if not enclosed(t, CLOSED)]
    for text in texts:
        text.parent.replace(text, linked(text, entries, left, place))


def linked(text, entries, left, place):
    """The pieces of a text, the first mention of each term that is left turned into a link."""
    pieces, done = [], 0
    for match in pattern(entries).finditer(text):
        anchor, definition = entries[match[1].lower()]
        if anchor not in left:
            continue
        left.remove(anchor)
        link = nodes.reference("", match[0], refuri=f"{place}#{anchor}", reftitle=definition, internal=True)
        link["classes"].append("term")
        pieces += [nodes.Text(text[done : match.start()]), link]
        done = match.end()
    return [*pieces, nodes.Text(text[done:])]


def setup(app):
    app.connect("doctree-resolved", link_terms)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
