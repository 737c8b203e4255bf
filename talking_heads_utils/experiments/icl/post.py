"""The post's own two prompts: what its stored outputs show, with their source, and what a model answers to them here.

:func:`reported` and what is made of it was not measured by this project; :func:`run` is, with the plain run that the
post lacks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl.asked import Asked, Task
from talking_heads_utils.experiments.icl.patching import posts_layers
from talking_heads_utils.experiments.icl.swaps import How, Ready, exchanged, grid
from talking_heads_utils.experiments.icl.tasks import whole_numbers
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.files import data_dir
from talking_heads_utils.forward.engine import prepare
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.questions import Numbers, Question, encode_questions

if TYPE_CHECKING:
    import pandas as pd

# y = 2x + 3, asked at 42 with the examples (A) and at 15 without (B).
PAIRS = (
    (28, 59), (86, 175), (13, 29), (55, 113), (84, 171), (66, 135),
    (85, 173), (27, 57), (15, 33), (94, 191), (37, 77), (14, 31),
)  # fmt: skip
FUNCTION, AT_A, AT_B = (2, 3), 42, 15
LARGEST = 200  # of the numbers that answers are read among
LLAMA = (32, 32)  # layers and heads of Llama-3-8B, and what the post took out of it
FIVE = ("L10H5", "L10H7", "L13H6", "L13H27", "L14H18")
LAYERS = ((10, 11), (10, 11, 13), (10, 11, 13, 15))
N_TOP = 5


@dataclass(frozen=True)
class PostRow(ModelRow):
    """What the model answers to the post's own two prompts, read among the numbers."""

    out: str = column("", "heads or layers whose heads are zero in A at the last token; empty for none")
    a_top_five: str = column("", "A's five most likely numbers, the first one first")
    b_plain: int = column("", "B's answer with nothing patched")
    layer: int = column("", "whose resid_pre is patched from A into B")
    b_patched: int = column("", "B's answer then")


def run(c: Context) -> list[PostRow]:
    """The post's patching, and the plain run that it lacks. Of a model of another shape than Llama-3-8B's, the two
    layers in proportion are taken out. Raises :class:`NotApplicable` for a model whose tokenizer splits 0 to 200."""
    if (numbers := whole_numbers(c.tokenizer, LARGEST)) is None:
        raise NotApplicable(
            f"The post's two prompts are answered by a number of one token, and the tokenizer of {c.model} splits some "
            f"of 0 to {LARGEST}."
        )
    a, b = (_ready(c, numbers, question) for question in questions())
    out = {"": []} | taken_out((c.bridge.cfg.n_layers, c.bridge.cfg.n_heads))  # type: ignore[var-annotated]
    found, rows = grid(a, list(out.values()), b.clean, b.asked.right, how=How.ZERO), []
    for i, (name, heads) in enumerate(out.items()):
        best, plain = " ".join(map(str, _best(a, heads))), int(found.plain.number)  # type: ignore[arg-type]
        answers = found.patched.number[0, :, i].tolist()  # type: ignore[index]
        rows += [PostRow(c.model, name, best, plain, layer, answer) for layer, answer in enumerate(answers)]
    return rows


def questions() -> tuple[Question, Question]:
    """A's and B's, as the post asks them."""
    return Question(PAIRS, AT_A, FUNCTION), Question((), AT_B, FUNCTION)


def taken_out(shape: tuple[int, int]) -> dict[str, list[Head]]:
    """What the post took out of a model of Llama-3-8B's ``shape`` (layers, heads), by name; of any other its two layers
    in proportion. Raises :class:`NotApplicable` for one layer."""
    some = LAYERS if shape == LLAMA else [posts_layers(shape[0])]
    layers = {f"layers {','.join(map(str, chosen))}": heads_in(chosen, shape[1]) for chosen in some}
    return ({"heads " + ",".join(FIVE): [Head.parse(name) for name in FIVE]} if shape == LLAMA else {}) | layers


def _ready(c: Context, numbers: Numbers, question: Question) -> Ready:
    """One question, run once; without a twin, since heads are set to zero."""
    prompts = encode_questions([question], c.tokenizer, seed=c.seed, n_ctx=c.bridge.cfg.n_ctx)
    ran, task = prepare(c.bridge, prompts), Task("post", numbers, len(question.pairs))
    return Ready(Asked(task, prompts, prompts, prompts.answers, prompts.answers, numbers=numbers), ran, ran)


def _best(a: Ready, out: Sequence[Head]) -> list[int]:
    """A's most likely numbers: each the most likely of those that are left."""
    best, left = list[int](), a.asked.task.answers
    for _ in range(N_TOP):
        said = exchanged(replace(a, asked=replace(a.asked, numbers=left)), [out], how=How.ZERO)
        best.append(int(said.number))  # type: ignore[arg-type]
        kept = left.values != best[-1]
        left = Numbers(left.values[kept], left.ids[kept])
    return best


def reported() -> dict[str, Any]:
    """``data/reference/icl_post.json``."""
    return json.loads((data_dir() / "reference" / "icl_post.json").read_text(encoding="utf-8"))


def patching_table() -> pd.DataFrame:
    """The post's patching, one row per set of heads out of A: A's top five, where B answers 2x, where A's answer is."""
    import pandas as pd

    return pd.DataFrame({
        "out of A": row["out"],
        "A's own top five": " ".join(map(str, row["top5"])),
        "B answers 30 (2x)": row["b_answers_30"],
        "A's answer takes over": f"layer {row['takes_over']} ({row['takes_over_with']})",
    } for row in reported()["patching"])  # fmt: skip


def said() -> dict[str, str]:
    """Id of a claim (:class:`~experiments.claims.ClaimId`) -> what the post or its notebooks show for it, in one
    line."""
    report = reported()
    before, after = (report["head_scores"][name] for name in ("plain", "without layers 10 and 11"))
    rose = [after[head] > before[head] for head in after]  # of others no score was stored
    return {
        "redundant": "claimed; no measure, no unablated baseline",
        "survives": "claimed; all heads of two layers out, still about 2x; no plain run",
        "moves-up": f"2x appears at: {'; '.join(row['b_answers_30'] for row in report['patching'])}",
        "backups": f"{sum(rose)} of {len(rose)} named heads rise, left free",
        "evidence": "claimed; no result",
        "adds": "claimed; no result",
        "in-parts": "claimed; no result for this model",
        "looks-back": "claimed from patterns; no number",
    }
