"""What the explorer page gets: read back here by another route, it is what the package's own tables say."""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from talking_heads_utils import roles
from talking_heads_utils.cli import main
from talking_heads_utils.figures import atlas, style
from talking_heads_utils.files import data_dir
from talking_heads_utils.known import known_models
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.scores import scores as module
from talking_heads_utils.scores.scores import compute_scores, load_scores, load_shipped_scores, save_scores

LIMIT = 1_500_000


def read(path):
    content = path.read_text(encoding="utf-8")
    assert content.startswith("window.bookAtlas = ") and content.endswith(";\n")
    return json.loads(content[len("window.bookAtlas = ") : -2])


def unpack(packed):
    """(kind, reader) -> [(writer component, C, z)] by rank, and the singular values."""
    about, raw, at = packed["about"], zlib.decompress(base64.b64decode(packed["payload"])), 0

    def take(dtype, n):
        nonlocal at
        values = np.frombuffer(raw, dtype, n, at)
        at += values.nbytes
        return values

    def planes(n):
        return sum(take("u1", n).astype(np.int64) << shift for shift in (0, 8, 16, 24))

    n_layers, n_heads, d_head = (about[key] for key in ("n_layers", "n_heads", "d_head"))
    readers = [
        (kind, layer, head) for kind in packed["kinds"] for layer in range(1, n_layers) for head in range(n_heads)
    ]
    nulls = take("<f4", 2 * len(readers)).reshape(-1, 2, n_heads)
    counts = take("<u4", len(readers))
    S = take("<f2", n_layers * n_heads * d_head).reshape(n_layers, n_heads, d_head)
    index, steps = planes(counts.sum()), planes(counts.sum())
    assert at == len(raw)
    found, first = {}, 0
    for i, ((kind, layer, head), n) in enumerate(zip(readers, counts)):
        part = slice(first, first := first + n)
        score = (65536 - steps[part].cumsum()).astype("<u2").view("<f2").astype(float)
        mean, std = nulls[i // n_heads, :, head].astype(float)
        names = [str(Component(*map(int, np.unravel_index(j, S.shape)))) for j in index[part]]
        found[kind, str(Head(layer, head))] = list(zip(names, score, (score - mean) / std))
    return found, S


@pytest.fixture(scope="module")
def shipped_atlas(tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas") / "atlas.js"
    assert main(["atlas", "--out", str(path)]) == 0
    return path


def test_every_score_above_the_least_z_is_there_by_rank_and_exact(shipped_atlas):
    packed, scores = read(shipped_atlas), load_shipped_scores()
    found, S = unpack(packed)
    assert (S == scores.singular_values.numpy()).all()
    assert sum(map(len, found.values())) == sum(int((b.z >= atlas.LEAST_Z).sum()) for b in scores.blocks.values())
    for kind, reader in [("Q", "L9H9"), ("K", "L5H5"), ("V", "L7H3"), ("Q", "L1H0"), ("V", "L11H11")]:
        table = scores.table(reader, kind)
        table = table[table["z"] >= atlas.LEAST_Z]
        names, score, z = zip(*found[kind, reader])
        assert list(names) == list(table["writer"]) and list(table["rank"]) == list(range(1, len(names) + 1))
        assert list(score) == list(table["score"].astype(float))
        assert z == pytest.approx(table["z"], rel=1e-5)


def test_the_file_is_small_the_same_every_time_and_says_what_it_is(shipped_atlas, tmp_path):
    assert shipped_atlas.stat().st_size < LIMIT
    again = tmp_path / "again.js"
    atlas.write_atlas(load_shipped_scores(), again)
    assert again.read_bytes() == shipped_atlas.read_bytes()
    packed, scores = read(shipped_atlas), load_shipped_scores()
    assert packed["about"] == scores.about and packed["n_scores"] == 3 * 66 * 144 * 64
    assert packed["null_rms"] == pytest.approx(767**-0.5)
    assert packed["colours"]["roles"] == style.ROLE_COLOURS and packed["colours"]["kinds"] == style.KIND_COLOURS
    assert packed["roles"]["S-inhibition"] == ["L7H3", "L7H9", "L8H6", "L8H10"]
    assert packed["role_source"] == roles.GPT2_SMALL_SOURCE
    largest = max(((b.null_max - b.null_mean) / b.null_std).max().item() for b in scores.blocks.values())
    assert packed["largest_random_z"] == pytest.approx(largest)


def test_another_model_has_no_roles_and_its_undefined_scores_are_left_out(small, tmp_path, monkeypatch):
    """A reader that reads nothing, and a component that writes nothing, have no score to show."""
    weights = compute_scores(small)
    weights.blocks["Q", 1].score[..., 2] = torch.nan
    weights.blocks["K", 2].score[0, 1, 3] = torch.nan
    save_scores(weights, tmp_path / "scores.safetensors")
    assert main(["atlas", "--scores", str(tmp_path / "scores.safetensors"), "--out", str(tmp_path / "out.js")]) == 0
    packed, scores = read(tmp_path / "out.js"), load_scores(tmp_path / "scores.safetensors")
    assert packed["roles"] == {} and packed["role_source"] is None
    assert packed["n_scores"] == sum(int((~b.score.isnan()).sum()) for b in scores.blocks.values())
    monkeypatch.setattr(atlas, "LEAST_Z", 0.0)
    found, _ = unpack(atlas.pack(scores))
    assert not found["Q", "L1H2"] and "L0H1.3" not in {name for name, *_ in found["K", "L2H0"]}
    for (kind, reader), rows in found.items():
        table = scores.table(reader, kind)
        assert [name for name, *_ in rows] == list(table[table["z"] >= 0]["writer"])


def test_a_model_that_the_book_has_run_shows_its_roles_and_effects(small):
    """Out of the tables, with numbers as they stand there; only for the very weights that were run."""
    scores = compute_scores(small)
    about = dict(scores.about) | {"model": "smollm2", "revision": known_models()["smollm2"].revision}
    known = atlas.known_of(replace(scores, about=about))
    tables = {n: pd.read_parquet(data_dir() / f"results/smollm2/{n}.parquet") for n in ("roles", "effects", "heads")}
    named = {(role, head) for role, heads in known["roles"].items() for head in heads}
    assert named == set(tables["roles"].query("confirmed")[["role", "head"]].itertuples(index=False, name=None))
    found = [
        (head, known["measured"]["measures"][row[0]][0].replace("{}", row[2]), row[1], *row[3:7])
        for head, rows in known["measured"]["rows"].items()
        for row in rows
    ]
    for name, column, says in (
        ("roles", "effect", "adds directly|in L|in .* values"),
        ("effects", "effect", "removed"),
        ("heads", "alone", "on the task"),
    ):
        table = tables[name].dropna(subset=column)
        shown = sorted((head, *numbers) for head, text, _, *numbers in found if re.search(says, text)
                       and (name == "effects") == text.startswith("removed"))  # fmt: skip
        expected = sorted(table[["head", column, "low", "high", "n"]].itertuples(index=False, name=None))
        assert len(shown) == len(expected)
        assert [row[0] for row in shown] == [row[0] for row in expected]
        assert np.array([row[1:] for row in shown]) == pytest.approx(
            np.array([row[1:] for row in expected], float), rel=1e-3
        )
    assert known["start"] == "L20H0.0"
    other = atlas.known_of(replace(scores, about=about | {"revision": None}))
    assert other["roles"] == {} and other["measured"] is None and other["start"] is None


def test_a_streamed_model_is_a_page_of_its_own(checkpoints, tmp_path, monkeypatch):
    """Read block by block; of many scores every reader keeps its strongest."""
    scores, page = tmp_path / "scores", tmp_path / "page.html"
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(atlas, "MOST", 2 * 24)
    monkeypatch.setattr(atlas, "LEAST_Z", -100.0)
    assert main(["composition", "--weights", str(checkpoints["llama"]), "--out", str(scores), "--stream"]) == 0
    assert main(["atlas", "--scores", str(scores), "--out", str(page)]) == 0
    (line,) = [x for x in page.read_text().splitlines() if "window.bookAtlas = " in x]
    packed = json.loads(line[line.index("window.bookAtlas = ") + len("window.bookAtlas = ") : -1])
    found, _ = unpack(packed)
    table = load_scores(scores).table("L2H1", "V")
    assert [name for name, *_ in found["V", "L2H1"]] == list(table["writer"][:2])
    assert max(map(len, found.values())) == 2 and "DecompressionStream" in page.read_text()
    assert main(["composition", "--weights", str(checkpoints["llama"]), "--out", str(scores), "--readers", "2:3"]) == 0
    assert main(["atlas", "--scores", str(scores), "--out", str(page)]) == 2
