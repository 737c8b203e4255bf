"""Where a page has the instrument, a model in the reader's browser, and what it begins with there.

The page's own script (``book/_static/instrument/``) fills the place. A kernel has the whole package instead, so there
is nothing to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from IPython.display import HTML

from talking_heads_utils.figures.page import building_book
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.relations import ARROW, Relation
from talking_heads_utils.weights.packages import SMOLLM2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from talking_heads_utils.prompts.sets import PromptSet

MODEL = SMOLLM2.name  # what runs in the page
LIST, EXAMPLES = "list", "examples"
N_PAIRS = 12  # of a task: a question and ten examples at most


@dataclass(frozen=True)
class Spot:
    """A token that has a name at first: the one in which the nth mention of a word begins, counted from 0."""

    word: str
    nth: int
    label: str


@dataclass(frozen=True)
class Preset:
    """What an instrument begins with. answer, other: words whose logits are compared. open, reader: heads, such as
    ``L15H3``; where ``open`` is None the head with the largest direct effect is opened. builder: fields that write the
    prompt. invites: what is said before the model is there."""

    text: str
    answer: str
    other: str
    invites: str
    names: Sequence[Spot] = ()
    open: str | None = None
    reader: str | None = None
    builder: Mapping[str, Any] | None = None


def list_builder(items: Sequence[str], left: str, text: str) -> dict[str, Any]:
    """Fields for lists of one's own, whose wording is taken from a prompt that names all items, then all but one."""
    rest = [item for item in items if item != left]
    template = text.replace(", ".join(items), "{all}", 1).replace(", ".join(rest), "{rest}", 1)
    return dict(kind=LIST, items=list(items), left=left, template=template)


def examples_builder(relations: Sequence[Relation], n: int) -> dict[str, Any]:
    """Fields for a task and a number of examples. The first pair of a task is the question."""
    tasks = {relation.name: [list(pair) for pair in relation.half(HELD_OUT)[:N_PAIRS]] for relation in relations}
    return dict(kind=EXAMPLES, tasks=tasks, line=f"{{x}}{ARROW} {{y}}", n=n)


def two_words(prompts: PromptSet, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A prompt's answer and its first wrong candidate, as they are typed."""
    first = (prompts.answers[0], prompts.distractors[0, 0])
    answer, other = (tokenizer.decode([int(token)]).strip() for token in first)
    return answer, other


def head_of(component: str) -> str:
    """``L8H10.1`` -> ``L8H10``."""
    return str(Component.parse(component).of_head)


def place(name: str, model: str, preset: Callable[[], Preset]) -> HTML | None:
    """The instrument's place in a page of the book; None where a kernel runs, or for another model than the page's."""
    if not building_book() or model != MODEL:
        return None
    held = escape(json.dumps(asdict(preset()) | {"model": MODEL}, ensure_ascii=False))
    return HTML(f'<div class="instrument" id="instrument-{name}" data-preset="{held}"></div>')
