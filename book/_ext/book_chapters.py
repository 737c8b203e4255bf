"""Sphinx extension: what a chapter's page has beside its notebook, which stays free of it and reads the same on Colab.

* How long it ran when the page was built, and on what, under the title.
* Its one figure, which the notebook shows where its data is there, at the top.
* A name such as ``talking_heads_utils.stats.bootstrap_mean`` in code type leads to that function in the
  repository. A name that the package does not hold is a warning, which fails the build.
* A link to another page's source in the repository, or to another chapter on Colab, which is what leads somewhere from
  a notebook that is opened there, leads to the page itself.
"""

import re

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging

from talking_heads_utils.errors import LabelError
from talking_heads_utils.provenance import machine
from talking_heads_utils.site.sources import COLAB, PACKAGE, REPOSITORY, locate

CHAPTERS = "notebooks/"
LEAD = "lead"  # class of a figure that book_static found marked so
NAME = re.compile(rf"{PACKAGE}(\.\w+)+")
PAGE = re.compile(rf"({REPOSITORY}|{COLAB})/blob/main/(?P<page>(book|notebooks)/\w+)\.(md|ipynb)(?P<anchor>#.*)?")
log = logging.getLogger(__name__)


def finish(app, doctree):
    link_sources(app, doctree)
    docname = app.env.docname
    ran = NbMetadataCollector.get_exec_data(app.env, docname) if docname.startswith(CHAPTERS) else None
    if ran:
        first = next(doctree.findall(nodes.paragraph))
        place = first.parent.index(first) + 1
        first.parent[place:place] = [run_line(ran), *lead(doctree)]


def run_line(ran):
    on = machine()
    cores = "core" if on["threads"] == 1 else "cores"
    text = f"When this page was built it ran in {ran['runtime']:.0f} s on {on['threads']} {cores} of {on['cpu']}"
    gpu = f", with {on['gpu']}." if on["gpu"] else ", without a GPU."
    return nodes.paragraph("", "", nodes.emphasis("", text + gpu))


def lead(doctree):
    """The one figure, taken from its place, under a heading that is in no table of contents."""
    figures = [figure for figure in doctree.findall(nodes.figure) if LEAD in figure["classes"]]
    if len(figures) != 1:
        log.warning("a chapter has one figure for its top, not %d", len(figures), location=doctree)
    for figure in figures[:1]:
        figure.parent.remove(figure)
    return [nodes.rubric("", "In one figure"), *figures[:1]] if figures else []


def link_sources(app, doctree):
    options = app.config.html_theme_options
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if not NAME.fullmatch(name) or isinstance(literal.parent, nodes.reference):
            continue
        try:
            url = locate(name).url(options["repository_url"], options["repository_branch"])
        except LabelError as error:
            log.warning("%s", error, location=literal)
            continue
        short = nodes.literal("", name.removeprefix(f"{PACKAGE}."))
        literal.replace_self(nodes.reference("", "", short, refuri=url, reftitle=name, internal=False))


def link_pages(app, doctree, docname):
    for reference in doctree.findall(nodes.reference) if docname.startswith(CHAPTERS) else ():
        found = PAGE.fullmatch(reference.get("refuri", ""))
        if found and found["page"] not in app.env.found_docs:
            log.warning("%s leads to no page of the book", reference["refuri"], location=reference)
        elif found:
            reference["refuri"] = app.builder.get_relative_uri(docname, found["page"]) + (found["anchor"] or "")
            reference["internal"] = True


def setup(app):
    app.connect("doctree-read", finish)
    app.connect("doctree-resolved", link_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
