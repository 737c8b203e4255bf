"""The explorer page of any file of scores: every score that stands out, as data for ``atlas.js``, or as a whole page.

A script, unlike a fetched file, also loads on a page opened from ``file://``. What the page shows is what the scores'
own file says: scores travel as the float16 that it holds, ranks are places in a list that is kept from its first place
on, and z is computed there from the null's mean and standard deviation.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from talking_heads_utils import roles
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.inhibition.circuit import EXCHANGE
from talking_heads_utils.experiments.store import finished
from talking_heads_utils.figures.style import CONTROL, KIND_COLOURS, KIND_READS, ROLE_COLOURS, words
from talking_heads_utils.files import data_dir, written_whole
from talking_heads_utils.known import is_real, known_models
from talking_heads_utils.labels import Head
from talking_heads_utils.scores.composition import ReaderScores
from talking_heads_utils.scores.scores import CompositionScores

LEAST_Z = 3.0  # scores below are left out: about what the largest of a reader's random directions reaches
MOST = 1_000_000  # scores that a page can hold; of a larger model every reader keeps its strongest


def pack(scores: CompositionScores) -> dict[str, Any]:
    """What the page needs, as plain values; ``payload`` is base64 of a deflated run of little-endian arrays.

    In this order, readers being every head of layers 1 and up, layer by layer, for each of ``kinds`` in turn: mean,
    then standard deviation of each layer's null (float32); how many components each reader keeps (uint32); singular
    values ``[n_layers, n_heads, d_head]`` (float16); the kept components of all readers, the strongest first (index
    into ``[n_layers, n_heads, d_head]``, uint32); by how much the float16 pattern of each score lies below the one
    before it, 65536 before the first (uint32). The last two are laid out byte by byte, which deflates better.
    Raises :class:`OptionError` for scores that lack some reader layers.
    """
    keys = [(kind, layer) for kind in scores.kinds for layer in range(1, scores.n_layers)]
    if lacking := [layer for kind, layer in keys if (kind, layer) not in scores.blocks]:
        raise OptionError(f"These scores lack reader layer {lacking[0]}; the explorer shows whole models only.")
    nulls, kept, largest, n_scores = [], [], -np.inf, 0
    for block in map(scores.blocks.__getitem__, keys):  # one at a time: all of a large model's do not fit
        nulls.append(np.concatenate([block.null_mean, block.null_std]))
        kept += _kept(block, MOST // (len(keys) * scores.n_heads))
        random_z = (block.null_max - block.null_mean) / block.null_std
        largest = max(largest, random_z.nan_to_num(nan=-np.inf).max().item())
        n_scores += int((~block.score.isnan()).sum())
    index, bits = zip(*kept)
    payload = b"".join([
        np.stack(nulls).astype("<f4").tobytes(),
        np.array([len(part) for part in index], "<u4").tobytes(),
        scores.singular_values.numpy().astype("<f2").tobytes(),
        _planes(np.concatenate(index)),
        _planes(np.concatenate([-np.diff(part, prepend=[1 << 16]) for part in bits])),
    ])  # fmt: skip
    return {
        "about": dict(scores.about),
        "kinds": scores.kinds,
        "null_rms": scores.null_rms,
        "least_z": LEAST_Z,
        "largest_random_z": largest,
        "n_scores": n_scores,
        **known_of(scores),
        "colours": {"roles": ROLE_COLOURS, "kinds": KIND_COLOURS, "none": CONTROL},
        "reads": KIND_READS,
        "payload": base64.b64encode(zlib.compress(payload, 9)).decode(),
    }


def _kept(block: ReaderScores, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per reader its components with z of at least :data:`LEAST_Z`, by rank, and their scores as float16 patterns."""
    z, rank, found = block.z.flatten(0, -2), block.rank.flatten(0, -2), []
    for head in range(block.score.shape[-1]):
        index = (z[:, head] >= LEAST_Z).nonzero()[:, 0]
        index = index[rank[index, head].argsort()][:most]
        score = block.score.flatten(0, -2)[index, head]
        found.append((index.numpy(), score.numpy().astype("<f2").view("<u2").astype(np.int64)))
    return found


def _planes(values: np.ndarray) -> bytes:
    return values.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()


def known_of(scores: CompositionScores) -> dict[str, Any]:
    """What the page says of a model beside its scores.

    shown: what it is. roles: role -> heads, and their source. start: the component that the page opens on, None for an
    overview. measured: of :func:`measured`. notes: more sentences. Roles of GPT-2
    small are those published; those of a model that the book has run are out of ``data/results``; others have none.
    """
    model, revision = scores.about["model"], scores.about.get("revision")
    known = dict[str, Any](shown=model, roles={}, role_source=None, start=None, measured=None, notes=[])
    if model == "gpt2-small":
        heads, source = roles.gpt2_small_roles(), roles.GPT2_SMALL_SOURCE
        return known | dict(shown=f"{model}, real weights", roles=_named(heads), role_source=source, start="L8H10.1")
    tables = {name: result.table for name, result in finished(model).items()} if is_real(model, revision) else {}
    notes = [_AT_0] if scores.about.get("rotary_distance") == 0 else []
    if "roles" not in tables or "hits" not in tables:
        return known | {"notes": notes}
    found, hits = roles.Roles.of_frame(tables["roles"]), tables["hits"]
    first = found.heads(roles.S_INHIBITION)[:1]
    start = hits.loc[hits["head"].isin(map(str, first)), "strongest"]
    return known | dict(
        shown=known_models()[model].shown, roles=_named({role: found.heads(role) for role in roles.ALL}),
        role_source=f"found by chapter 1 on IOI, with effects on {tables['roles']['n'].max()} held-out prompts",
        start=None if start.empty else start.iloc[0], measured=measured(tables),
        notes=notes + _compared(tables.get("prediction")),
    )  # fmt: skip


def _named(heads: Mapping[str, list[Head]]) -> dict[str, list[str]]:
    return {role: list(map(str, found)) for role, found in heads.items() if found}


_AT_0 = "Positions are rotary: the scores into queries and keys are those at distance 0, query and key at one position."


def _compared(table: pd.DataFrame | None) -> list[str]:
    """How far the scores at distance 0 lie from those by which chapter 1 predicts. table: of ``prediction``."""
    if table is None or not table["n_distances"].max():
        return []
    apart = (table["score"] - table["score_at_0"]).abs().max()
    return [
        "Chapter 1 ranks links by these scores; its prediction of components takes the mean over its prompts' "
        f"{table['n_distances'].max()} distances, which differs by at most {apart:.3f} on {len(table)} components."
    ]


ALONE, TOGETHER, REMOVED = "alone", "together", "removed"
_ONE, _FOUR = "notebooks/01_inhibition_heads.html", "notebooks/04_icl_redundancy.html"
MEASURED = ("circuit", "roles", "effects", "heads")
MEASURES = {  # what is measured, in which unit, and where the book says more; {} is a reader, a task or other heads
    roles.DIRECT: ("adds directly to the logit difference, IO less S", "logits", "chapter 1", f"{_ONE}#who-does-what"),
    roles.QUERY: ("exchanged in {}'s query: change of {}'s attention, log-odds of IO to S1", "nats", "chapter 1",
                  f"{_ONE}#who-does-what"),
    roles.VALUE: ("exchanged in {}'s values: change of the name movers' attention, log-odds of IO to S1", "nats",
                  "chapter 1", f"{_ONE}#who-does-what"),
    TOGETHER: ("exchanged{}: change of the logit difference, IO less S", "logits", "chapter 1", f"{_ONE}#fig-exchange"),
    REMOVED: ("removed from {}'s query: change of {}'s attention to IO less that to S1", "share of attention",
              "chapter 1", f"{_ONE}#fig-effects"),
    ALONE: ("exchanged on the task {}: log-odds of the right word lost", "nats", "chapter 4",
            f"{_FOUR}#which-heads-matter"),
}  # fmt: skip


def measured(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the book has measured of a model's heads: ``measures`` as of :data:`MEASURES`, and by head rows of: place in
    them, component or None, what ``{}`` stands for, effect, low, high, n, the range of matched controls or None.
    tables: ``roles``, ``circuit``, ``effects`` and ``heads``, as far as they are there."""
    by = {name: tables[name].to_dict("records") if name in tables else [] for name in MEASURED}
    found: dict[str, list[list[Any]]] = {}

    def add(head: str, measure: str, row: Mapping[str, Any], of: str, effect: str = "effect", **more: Any) -> None:
        numbers = [*(float(f"{row[name]:.4g}") for name in (effect, "low", "high")), int(row["n"])]
        place = [list(MEASURES).index(measure), more.get("component"), of]
        found.setdefault(head, []).append([*place, *numbers, more.get("control")])

    for row in (row for row in by["circuit"] if row["measure"] == EXCHANGE):  # with the others of its role, or alone
        ends = [round(row[end], 4) for end in ("control_low", "control_high")]
        for head in (heads := row["heads"].split(", ")):
            others = ", ".join(other for other in heads if other != head)
            control = None if any(map(isnan, ends)) else ends
            add(head, TOGETHER, row, f" with {others}" if others else "", control=control)
    for row in (row for row in by["roles"] if row["confirmed"]):
        add(row["head"], row["path"], row, row["reader"])
    for row in by["effects"]:
        add(row["head"], REMOVED, row, row["mover"], component=row["component"])
    for row in (row for row in by["heads"] if not isnan(row["alone"])):
        add(row["head"], ALONE, row, words(row["task"]), "alone")
    return {"measures": list(MEASURES.values()), "rows": found}


def write_atlas(scores: CompositionScores, path: Path) -> None:
    """The script that the book's explorer page loads, or, where ``path`` ends in ``.html``, a page of its own."""
    content = json.dumps(pack(scores), separators=(",", ":")).replace("<", "\\u003c")
    script = f"window.bookAtlas = {content};\n"
    with written_whole(path) as part:
        part.write_text(_page(scores, script) if path.suffix == ".html" else script, encoding="utf-8")


def _page(scores: CompositionScores, script: str) -> str:
    """The explorer as one file, with the book's own script and style."""
    places = (data_dir().parent / "book" / "_static", data_dir() / "static")  # in a checkout, once installed
    style, code = (
        next(p / n for p in places if (p / n).is_file()).read_text("utf-8") for n in ("book.css", "atlas.js")
    )
    title = html.escape(f"Composition scores of {scores.about['model']}")
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_PLAIN}{style}</style>'
        f'<body><h1>{title}</h1><div id="atlas"><p role="status">Loading the scores …</p></div>'
        f"<script>{script}</script><script>{code}</script></body></html>\n"
    )


_PLAIN = (
    "body { max-width: 70rem; margin: 1rem auto; padding: 0 1rem; font-family: sans-serif; --pst-color-background: "
    "white; --pst-color-text-base: #222; --pst-color-text-muted: #666; --pst-color-link: #1f6feb; --pst-color-border: "
    "#ccc; --pst-color-danger: #b00; } "
)
