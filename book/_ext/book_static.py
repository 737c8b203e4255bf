"""Sphinx extension: plotly figures drawn from the site's own copy of plotly.js, with captions and numbers.

* A notebook output of type ``application/vnd.plotly.v1+json`` becomes a numbered figure that holds the plot as
  JSON. What ``talking_heads_utils.figures.page`` put into ``layout.meta`` gives its name, caption and alternative
  text.
* Below the caption stand its data, written from the figure itself to ``_data/``, and the lines that made it.
* ``book-plotly.js`` draws a figure when it nears the window, flat ones with a part of plotly.js, others with the whole
  out of the installed wheel; both are of the wheel's version.
"""

import hashlib
import json
import os
from dataclasses import replace
from html import escape
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import load_mime_renders

from talking_heads_utils.figures import data as figure_data
from talking_heads_utils.figures.page import BUILD_VARIABLE
from talking_heads_utils.site.npm import WHOLE, bundles, is_flat
from talking_heads_utils.site.sources import locate, made_by

MIME = "application/vnd.plotly.v1+json"
FIGURE = '<div class="plotly-graph-div"'


class PlotlyMime:
    mime_priority_overrides = [("html", MIME, 1)]

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type != MIME:
            return None
        spec = data.content if isinstance(data.content, dict) else json.loads(data.content)
        meta = spec.get("layout", {}).get("meta") or {}
        about = meta.pop("book", None)
        raw = nodes.raw(text=figure_html(spec, about, f"{data.cell_index}-{data.output_index}"), format="html")
        return [numbered(renderer, data, raw, about, spec)] if about else [raw]


def figure_html(spec, about, place):
    height = spec.get("layout", {}).get("height") or 450
    content = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    ident = f"plotly-{place}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    label = f' role="group" aria-label="{escape(about["alt"])}"' if about else ""
    needs = "" if is_flat(spec) else " data-whole"
    return (
        f'{FIGURE} id="{ident}"{needs}{label} style="width:100%;height:{height}px">'
        f'<script type="{MIME}">{content}</script>'
        "<noscript>This figure needs JavaScript.</noscript></div>"
    )


def numbered(renderer, data, raw, about, spec):
    """A docutils figure with a caption, a target, so that {numref} finds it, and the line of its links."""
    caption = nodes.caption("", "")
    for node in renderer.render_markdown_inline(replace(data, mime_type="text/markdown", content=about["caption"])):
        caption += node.children if isinstance(node, nodes.paragraph) else node
    figure = nodes.figure("", raw, caption)
    figure["classes"] += ["lead"] if about.get("lead") else []
    figure["names"].append(nodes.fully_normalize_name(about["name"]))
    document = renderer.renderer.document
    figure.source, figure.line = document["source"], data.line or 0
    document.note_explicit_target(figure, figure)
    figure += nodes.legend("", nodes.raw(text=links_html(renderer, data, about["name"], spec), format="html"))
    return figure


def links_html(renderer, data, name, spec):
    """One short line: the figure's data, and, folded, what made it."""
    env = renderer.renderer.sphinx_env
    path = figure_data.write(spec, Path(env.app.outdir) / "_data", name)
    to_root = "../" * env.docname.count("/")
    size = f"{path.suffix[1:].upper().replace('PARQUET', 'parquet')}, {max(1, round(path.stat().st_size / 1000))} kB"
    cells = renderer.renderer.nb_client.notebook.cells[: data.cell_index + 1]
    made = made_by([cell["source"] for cell in cells if cell["cell_type"] == "code"], name)
    options = env.config.html_theme_options
    where = (options["repository_url"], options["repository_branch"])
    drawn = f'<a href="{locate(made.function).url(*where)}">the function that draws it</a>' if made.function else ""
    return (
        f'<div class="figure-links"><a href="{to_root}_data/{path.name}" download>its data ({size})</a>'
        f"<details><summary>made by</summary>"
        f'<div class="highlight"><pre>{escape(made.lines, quote=False)}</pre></div>{drawn}</details></div>'
    )


def find_bundles(app):
    if app.builder.format == "html":
        app.plotly = bundles()


def add_script(app, page, template, context, doctree):
    if FIGURE in context.get("body", ""):
        which = {"data-bundle": next(iter(app.plotly)), "data-whole": WHOLE}
        app.add_js_file("book-plotly.js", loading_method="defer", **which)


def copy_bundles(app, exception):
    if exception is None and app.builder.format == "html":
        for name, data in app.plotly.items():
            target = Path(app.outdir) / "_static" / name
            if not target.exists() or target.stat().st_size != len(data):
                target.write_bytes(data)


def dedupe_scripts(app, page, template, context, doctree):
    """Sphinx 7.4 prints inline scripts that extensions add late twice; sphinx-thebe's `const` then raises a
    SyntaxError on every page."""
    seen, out = set(), []
    for script in context.get("script_files", []):
        key = (str(script.filename or ""), tuple(sorted(script.attributes.items())))
        if key not in seen:
            seen.add(key)
            out.append(script)
    context["script_files"] = out


# What a screen reader, or a browser without emoji, cannot tell: ARIA has dropped the role of a bibliography's entries,
# which no list may hold; the table of what ran says it by a picture.
MENDED = {'role="doc-biblioentry"': 'role="listitem"', "<p>✅</p>": "<p>ran</p>", "<p>❌</p>": "<p>failed</p>"}


def mend(app, page, template, context, doctree):
    for found, better in MENDED.items():
        context["body"] = context.get("body", "").replace(found, better)


def setup(app):
    os.environ[BUILD_VARIABLE] = "1"  # kernels inherit it
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # whatever the shell had
    renderers = load_mime_renders()  # a cached list
    if not any(getattr(renderer, "__name__", "") == "PlotlyMime" for renderer in renderers):
        renderers.append(PlotlyMime)
    app.add_css_file("book.css")
    app.add_js_file("book.js", loading_method="defer")
    app.connect("builder-inited", find_bundles)
    app.connect("html-page-context", add_script)
    app.connect("html-page-context", dedupe_scripts, priority=990)
    app.connect("html-page-context", mend)
    app.connect("build-finished", copy_bundles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
