"""Panels for a kernel: the reader types prompts, and a figure is made anew from them. The static page has none.

A panel computes when it is made and when its button is pressed. A prompt that cannot be asked gets one sentence.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ipywidgets as widgets
import pandas as pd
import torch
from IPython.display import clear_output, display

from talking_heads_utils.errors import TalkingHeadsError, TaskError
from talking_heads_utils.experiments.inhibition.slider import text_rows
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.figures.heads import by_position
from talking_heads_utils.figures.inhibition import slider_figure
from talking_heads_utils.figures.page import building_book
from talking_heads_utils.labels import Head
from talking_heads_utils.patching import patch
from talking_heads_utils.prompts.encoding import tokenized
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.prompts.texts import from_texts

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.experiments.context import Context

LONGEST = 64  # tokens of a prompt that is answered while one waits
_LABEL = dict(description_width="130px")


class View(NamedTuple):
    """What a panel shows: the rows, their figure, and a sentence about them."""

    table: pd.DataFrame
    figure: go.Figure
    says: str


class Panel(widgets.VBox):
    """Fields, a button, a line of text and a figure. fields: name -> widget; compute is called with their values, and
    what it raises of :class:`TalkingHeadsError` is the line of text. table: the rows of the last figure, or None."""

    def __init__(self, fields: Mapping[str, widgets.Widget], compute: Callable[..., View]) -> None:
        self.fields, self.compute = dict(fields), compute
        self.table: pd.DataFrame | None = None
        self.button = widgets.Button(description="Run", button_style="primary")
        self.message, self.output = widgets.HTML(), widgets.Output()
        self.button.on_click(lambda _: self.run())
        super().__init__([*self.fields.values(), self.button, self.message, self.output])
        self.run()

    def run(self) -> None:
        """Make the figure of what stands in the fields."""
        self.table, figure, self.button.disabled = None, None, True
        try:
            self.table, figure, says = self.compute(**{name: field.value for name, field in self.fields.items()})
        except TalkingHeadsError as error:
            says = str(error)
        finally:
            self.button.disabled = False
        self.message.value = html.escape(says)
        with self.output:
            clear_output(wait=figure is not None)
            if figure is not None:
                display(figure)


def slider(c: Context, table: pd.DataFrame, text: str, answer: str, other: str) -> Panel | None:
    """Chapter 1's slider figure for a prompt that is typed. answer, other: the two names in it. table: of
    :class:`~talking_heads_utils.experiments.inhibition.slider.SliderRow`, whose component and settings are taken. None
    in the static page, and for a model without such a table."""
    if building_book() or not len(table):
        return None

    def compute(text: str, answer: str, other: str) -> View:
        text, names = text.strip(), [answer.strip(), other.strip()]
        _check_names(text, names, c.tokenizer)
        rows = frame(text_rows(c, table, text, *names))
        plain = rows["plain"].iloc[0]
        says = f"By itself this prompt stands at {plain:+.1f} on the scale of the slider."
        return View(rows, slider_figure(rows, start=round(plain, 1)), says)

    return Panel(_fields(text=("prompt", text), answer=("answer", answer), other=("other name", other)), compute)


def patch_grid(bridge: TransformerBridge, clean: str, corrupted: str, right: str, wrong: str) -> Panel | None:
    """A grid of heads and tokens for two prompts that are typed: what becomes of the corrupted prompt's logit
    difference, right less wrong answer, when one head's output at one token comes from the clean run. The first view
    has the last third of the layers. None in the static page."""
    if building_book():
        return None
    n = bridge.cfg.n_layers

    def compute(clean: str, corrupted: str, right: str, wrong: str, layers: tuple[int, int]) -> View:
        given = right.strip(), wrong.strip()
        pair = _pair([clean.strip(), corrupted.strip()], *given, bridge.tokenizer)
        found = patch(bridge, pair[0], pair[1], sites="z", layers=range(layers[0], layers[1] + 1))
        tokens = _words(pair, bridge.tokenizer)
        return View(found, by_position(found, tokens), _ends(found, tokens, *given))

    fields: dict[str, Any] = _fields(
        clean=("clean prompt", clean), corrupted=("corrupted prompt", corrupted), right=("right answer", right),
        wrong=("wrong answer", wrong),
    )  # fmt: skip
    fields["layers"] = widgets.IntRangeSlider(
        value=(n - max(1, n // 3), n - 1), min=0, max=n - 1, description="layers", style=_LABEL
    )
    return Panel(fields, compute)


def _fields(**given: tuple[str, str]) -> dict[str, widgets.Widget]:
    """Text fields by name: what stands before each, and in it."""
    width = {name: "100%" if " " in value else "260px" for name, (_, value) in given.items()}
    return {name: widgets.Text(value=value, description=label, style=_LABEL, layout=dict(width=width[name]))
            for name, (label, value) in given.items()}  # fmt: skip


# --- what a prompt must be ---


def _check_length(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    n = len(tokenized([text], tokenizer)[0].ids) if text else 0
    if not n:
        raise TaskError("Type a prompt that ends just before its answer.")
    if n > LONGEST:
        raise TaskError(f"This prompt has {n} tokens; type one of at most {LONGEST}.")
    return n


def _answer_token(text: str, word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token that a word is behind a space. Raises :class:`TaskError` for several."""
    if not word:
        raise TaskError("Type both words that the model is to choose between.")
    tokens = tokenized([f"{text} {word}"], tokenizer)[0]
    at = tokens.covering((len(text) + 1, len(text) + 1 + len(word)))
    if len(at) != 1:
        raise TaskError(f"{word!r} is {len(at)} tokens to this model: take a word that is a single token.")
    return tokens.ids[at[0]]


def _check_names(text: str, names: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    _check_length(text, tokenizer)
    if names[0] == names[1]:
        raise TaskError("The answer and the other name must be two different names.")
    tokens = tokenized([text], tokenizer)[0]
    for name in names:
        token = _answer_token(text, name, tokenizer)
        if (at := text.find(name)) < 0:
            raise TaskError(f"{name!r} is not in the prompt: both names must be mentioned there.")
        if [tokens.ids[i] for i in tokens.covering((at, at + len(name)))] != [token]:
            raise TaskError(f"Where the prompt first has {name!r}, it must stand as a word of its own behind a space.")


def _pair(texts: list[str], right: str, wrong: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[PromptSet]:
    clean, corrupted = (_check_length(text, tokenizer) for text in texts)
    if clean != corrupted:
        raise TaskError(
            f"The clean prompt has {clean} tokens and the corrupted one {corrupted}: both must have the same number, "
            "so that every token has its counterpart."
        )
    if texts[0] == texts[1]:
        raise TaskError("The two prompts are the same: change a word in one of them.")
    if right == wrong:
        raise TaskError("The right and the wrong answer must be two different words.")
    for word in (right, wrong):
        _answer_token(texts[0], word, tokenizer)
    return [from_texts([text], [f" {right}"], [f" {wrong}"], tokenizer) for text in texts]


# --- what is said of the grid ---


def _words(pair: Sequence[PromptSet], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each position holds, in both prompts where they differ."""
    both = torch.stack([prompts.tokens[0] for prompts in pair], 1).tolist()
    return [" / ".join(dict.fromkeys(tokenizer.decode([token]).strip() for token in tokens)) for tokens in both]


def _ends(found: pd.DataFrame, tokens: list[str], right: str, wrong: str) -> str:
    top = found.loc[found["change"].abs().idxmax()]
    head, at = Head(top["layer"], top["head"]), int(top["position"])
    return (
        f"Logit of {right} less that of {wrong}: {found.attrs['clean']:+.1f} after the clean prompt, "
        f"{found.attrs['corrupted']:+.1f} after the corrupted one. The largest change is by "
        f"{head}, {top['change']:+.1f} at token {at} ({tokens[at]})."
    )
