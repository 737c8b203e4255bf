"""What a chapter asks of the place where it runs: which model, on which device, whether it fits there, and its tables:
stored ones, or made here and now."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import torch
from IPython.display import Markdown

from talking_heads_utils import progress
from talking_heads_utils.batches import is_out_of_memory
from talking_heads_utils.device import free_memory
from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.run import FIRST
from talking_heads_utils.experiments.store import Finished, finished
from talking_heads_utils.figures.page import MISSING, building_book
from talking_heads_utils.forward.recording import record
from talking_heads_utils.known import known_models
from talking_heads_utils.labels import Head
from talking_heads_utils.metrics import answer_logits
from talking_heads_utils.models import find_checkpoint
from talking_heads_utils.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MODEL_VARIABLE = "TALKING_HEADS_MODEL"  # a model for every chapter, such as a folder that stands in for a real one
QUICK_VARIABLE = "TALKING_HEADS_QUICK"  # if it is set, what is run here is run on one prompt in ten
TOKEN = "HF_TOKEN"
NAMES = {"smollm2": "SmolLM2", "gpt2": "GPT-2 small", "gpt2-weights": "GPT-2 small"}  # of models, in sentences


def on_colab() -> bool:
    """Whether this runs in Google Colab."""
    return "google.colab" in sys.modules


def show_bars() -> None:
    """Progress bars for whatever takes long, where a kernel runs; none in the pages of the book."""
    if not building_book():
        progress.show(always=True)


def device() -> str:
    """``cuda`` where there is a GPU that works, else ``cpu``."""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        return "cpu"
    return "cuda"


def prepare(model: str) -> str:
    """Make ready for a model; one line on where it will run and whether that is enough.

    On Colab a gated model's token is taken from the secrets (``HF_TOKEN``), if it is there and allowed.
    """
    where = device()
    name = torch.cuda.get_device_name() if where == "cuda" else "no GPU, so the CPU"
    known = known_models().get(model)
    if known is not None and known.gated and on_colab():
        _take_secret()
    needed = known.gigabytes(dtype_for(model)) if known else _gigabytes(model)
    free = free_memory(torch.device(where))
    if free is None:
        return f"Here: {name}. {model} needs {needed:.1f} GB and some room to work."
    enough = "enough" if free > 1.3e9 * needed else "too little: take a larger GPU, a smaller model, or torch.bfloat16"
    return f"Here: {name}, {free / 1e9:.1f} GB free. {model} needs {needed:.1f} GB and some room to work: {enough}."


def _gigabytes(model: str) -> float:
    """What a folder's or the Hub's files take, whatever they are loaded as; a GGUF file as it is dequantised."""
    checkpoint = find_checkpoint(model)
    if checkpoint.gguf is not None:
        return checkpoint.gguf.n_params * dtype_for(model).itemsize / 1e9
    files = set(checkpoint.files.values())
    return sum(path.stat().st_size for path in files) / 1e9


def _take_secret() -> None:
    """Colab's secret of the token's name, if the notebook may read it. Without it the download says what is missing."""
    from google.colab import userdata

    try:
        os.environ.setdefault(TOKEN, userdata.get(TOKEN))
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return


def dtype_for(model: str) -> torch.dtype:
    """``bfloat16`` for a known model of more than 20 GB in float32, else ``float32``."""
    known = known_models().get(model)
    return torch.bfloat16 if known is not None and known.gigabytes() > 20 else torch.float32


class Tables:
    """A model's tables by the name of their experiment: ``tables["links"]``.

    Those that are stored are read. A model of which none is stored goes through the experiment here, unless ``live`` is
    False. A table that cannot be had is empty, and its ``attrs`` say why, which the page shows in its place.
    """

    def __init__(self, model: str, seed: int = 0, *, live: bool = True) -> None:
        self.model, self.live = model, live
        self.context = Context(
            model, seed, bool(os.environ.get(QUICK_VARIABLE)), device(), dtype_for(model), finished=self._finished
        )
        self._made: dict[str, pd.DataFrame] = {}

    @cached_property
    def done(self) -> Mapping[str, Finished]:
        """What is stored."""
        return finished(self.model)

    @property
    def name(self) -> str:
        """What a sentence calls the model."""
        return NAMES.get(self.model, self.model)

    @property
    def shown(self) -> str:
        """What a figure of this model must be called."""
        shows = next(iter(self.done.values())).about["shows"] if self.done else self.context.shows
        return shows.replace(self.model, self.name, 1)

    def again(self, name: str) -> pd.DataFrame:
        """An experiment run here on one prompt in ten, whatever is stored; what was found before is read."""
        loaded = (self.context.bridge, self.context.tokenizer)
        c = replace(self.context, quick=True, loaded=loaded, _kept={})
        try:
            return _experiment(name).table(c)
        except NotApplicable as error:
            return _empty(name, f"{self.model}: {error}")

    def _finished(self, name: str) -> pd.DataFrame | None:
        """What an experiment reads of another: stored or, where every experiment would run it anew, made here once."""
        if name not in FIRST or self.done or not self.live:
            return self._stored(name)
        if MISSING in (table := self[name]).attrs:
            raise NotApplicable(table.attrs[MISSING].removeprefix(f"{self.model}: "))
        return table

    def _stored(self, name: str) -> pd.DataFrame | None:
        result = self.done.get(name)
        if result is not None and result.reason:
            raise NotApplicable(result.reason)
        return None if result is None else result.table

    def __getitem__(self, name: str) -> pd.DataFrame:
        """One table. Raises KeyError for an experiment that is not in the catalogue."""
        if name not in self._made:
            self._made[name] = self._table(name)
        return self._made[name]

    def _table(self, name: str) -> pd.DataFrame:
        try:
            if (found := self._stored(name)) is not None:
                return found
            if self.live and not self.done:
                return _experiment(name).table(self.context)
            why = f"Not there yet: `python -m talking_heads_utils reproduce --model {self.model}` makes this table."
        except NotApplicable as error:
            why = f"{self.model}: {error}"
        return _empty(name, why)


def _experiment(name: str) -> Experiment:
    return {e.name: e for e in EXPERIMENTS}[name]


def _empty(name: str, why: str) -> pd.DataFrame:
    row = _experiment(name).row
    if row is None:
        raise KeyError(f"{name} has no declared columns.")
    empty = frame([], row)
    empty.attrs[MISSING] = why
    return empty


def by_model(experiment: str, *models: Tables) -> dict[str, pd.DataFrame]:
    """One table of several models, by name; of those that have it."""
    return {tables.name: tables[experiment] for tables in models if len(tables[experiment])}


def named_tokens(prompts: PromptSet, bridge: TransformerBridge) -> Markdown:
    """The tokens of the first prompt in their order, as Markdown, those with a named position bold and named."""
    names = {int(at[0]): name for name, at in prompts.positions.items()}
    words = [bridge.tokenizer.decode([int(token)]).strip() for token in prompts.tokens[0][prompts.mask[0]]]
    said = [f"**{word}** ({names[i]})" if i in names else word for i, word in enumerate(words)]
    return Markdown(" · ".join(said))


def next_tokens(bridge: TransformerBridge, prompts: PromptSet, k: int = 5) -> pd.DataFrame:
    """The k likeliest tokens after the first prompt: columns ``token, probability``."""
    likeliest = answer_logits(bridge, prompts)[0].float().softmax(-1).topk(k)
    words = [visible(bridge.tokenizer.decode([int(token)])) for token in likeliest.indices]
    return pd.DataFrame({"token": words, "probability": likeliest.values.tolist()})


def visible(token: str) -> str:
    """A token as a table shows it: one of blanks alone by signs for them."""
    return token if token.strip() else token.replace("\n", "⏎").replace(" ", "␣")


def attention_by_token(bridge: TransformerBridge, prompts: PromptSet, heads: Sequence[Head]) -> pd.DataFrame:
    """Where heads look from the last token of the first prompt: a row per token, a column per head."""
    run = record(bridge, prompts, sorted({head.layer for head in heads}) or [bridge.cfg.n_layers - 1])
    tokens = [f"{i} {bridge.tokenizer.decode([int(token)]).strip()}" for i, token in enumerate(prompts.tokens[0])]
    by_head = {str(head): run.readers[head.layer].pattern[0, head.head].tolist() for head in heads}
    return pd.DataFrame({"token": tokens} | by_head)
