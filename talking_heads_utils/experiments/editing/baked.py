"""The best edit as a checkpoint, measured by plain transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.editing import edit as edited
from talking_heads_utils.edits.bake import bake
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.editing import gains
from talking_heads_utils.experiments.editing.gains import LENGTHS
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.subspace import nearest_lengths
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.metrics import answer_logits
from talking_heads_utils.models import find_checkpoint
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share_change

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LISTS = 200  # of each length


class By(StrEnum):
    """What runs the model: this package, the edit in force on the loaded one; transformers, by its own code alone, the
    checkpoint as it came and the baked one."""

    PACKAGE = "package"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class BakedRow(ModelRow):
    edit: str = column("", "as in the table of gains")
    n_items: int = column("items", "length of the lists")
    by: str = column("", "package: edited in place; transformers: its own code on the baked checkpoint")
    before: float = column("share", "lists answered without the edit")
    after: float = column("share", "with it")
    gain: float = column("points", "of accuracy")
    low: float = column("points", "95% interval, lower end")
    high: float = column("points", "upper end")
    apart: float = column("logits", "largest difference of a candidate's logit from the package's")
    n: int = column("prompts", "held-out lists")


def run(c: Context) -> list[BakedRow]:
    """Raises :class:`NotApplicable` where nothing was searched."""
    best = c.kept(gains.found).best
    sets = [c.kept(Lists(Part.HELD_OUT, n, c.n(N_LISTS))) for n in nearest_lengths(c, *LENGTHS)]
    before = [by_package(c.bridge, prompts) for prompts in sets]
    edit = best.edit(c)
    with edited(c.bridge, edit):
        after = [by_package(c.bridge, prompts) for prompts in sets]
    with tempfile.TemporaryDirectory(prefix="baked-") as place:
        folder = bake(c.model, edit, Path(place) / "edited")
        plain_before, plain_after = (by_transformers(where, sets) for where in (_source(c), dict(folder=folder)))
    rows = []
    for i, prompts in enumerate(sets):
        pairs = {By.PACKAGE: (before[i], after[i]), By.TRANSFORMERS: (plain_before[i], plain_after[i])}
        rows += [_row(c, best.name, prompts, by, pair, pairs[By.PACKAGE]) for by, pair in pairs.items()]
    return rows


def by_package(bridge: TransformerBridge, prompts: PromptSet) -> Float[Tensor, "n n_candidates"]:
    """Logits of the candidates at ``end``, the answer first."""
    return answer_logits(bridge, prompts).float().cpu().gather(1, prompts.candidates)


@torch.no_grad()
def by_transformers(where: dict[str, Any], sets: Sequence[PromptSet]) -> list[Float[Tensor, "n n_candidates"]]:
    """The same of a checkpoint by transformers alone: prompts of one length together, so that there is no padding.
    where: its folder and, of a GGUF file, the file's name."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        where["folder"], gguf_file=where.get("file"), dtype=torch.float32, local_files_only=True
    ).eval()
    logging.enable_progress_bar()
    found = []
    for prompts in sets:
        end = prompts.positions["end"]
        logits = torch.zeros(prompts.candidates.shape)
        for last in end.unique().tolist():
            alike = (end == last).nonzero().flatten()
            for rows in batches.blocks(len(alike), 16):
                own = model(prompts.tokens[alike[rows], : last + 1]).logits[:, -1]
                logits[alike[rows]] = own.gather(1, prompts.candidates[alike[rows]])
        found.append(logits)
    return found


def _source(c: Context) -> dict[str, Any]:
    checkpoint = find_checkpoint(c.model)
    if checkpoint.gguf is None:
        return dict(folder=checkpoint.folder)
    return dict(folder=checkpoint.folder.parent, file=checkpoint.folder.name)


def _row(
    c: Context, name: str, prompts: PromptSet, by: By, pair: tuple[Tensor, Tensor], package: tuple[Tensor, Tensor]
) -> BakedRow:
    before, after = (logits[:, 0] > logits[:, 1:].amax(1) for logits in pair)
    gain = share_change(after, before)
    apart = max((own - other).abs().max().item() for own, other in zip(pair, package))
    return BakedRow(
        c.model, name, prompts.candidates.shape[1], by, before.double().mean().item(), after.double().mean().item(),
        100 * gain.mean, 100 * gain.low, 100 * gain.high, apart, gain.n,
    )  # fmt: skip
