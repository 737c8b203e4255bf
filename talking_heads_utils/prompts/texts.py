"""Prompts of one's own: texts, their right and wrong answers, and the words whose positions matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import east_asian_width

from talking_heads_utils.errors import TaskError
from talking_heads_utils.prompts.encoding import Span, Tokens, prompt_set, tokenized, unknown_id
from talking_heads_utils.prompts.sets import PromptSet, Recipe
from talking_heads_utils.prompts.words import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "texts"
Place = str | tuple[str, int] | Span | None
Answer = str | Sequence[str]


def from_texts(
    texts: Sequence[str],
    answers: Sequence[Answer],
    wrong: Sequence[Answer] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: Mapping[str, Sequence[Place] | Callable[[str], Place]] | None = None,
    prefix: str | None = None,
    info: Mapping[str, Sequence] | None = None,
    add_space: bool = True,
    n_ctx: int | None = None,
) -> PromptSet:
    """Prompts of your own as a prompt set.

    answers, wrong: of each prompt one string or several; ``wrong`` None where any other token is wrong. They are
    tokenized together with their text. add_space: put a space between a text that ends in a letter, a digit or one of
    ``,.;:?!)`` and an answer that begins with a letter or digit, unless both are digits, or the answer is Chinese,
    Japanese or Korean; any other space is yours to write.
    Tokens that all answers of a prompt, right and wrong, begin with are appended to it, so that ``end`` is the last
    token before they part; each then counts by its first token after that.
    positions: name -> where it is in each text: a string that occurs there once; ``(string, k)``, its k-th occurrence
    from 0 (-1: the last); ``(first, stop)``, characters; None, nowhere; or a callable that tells this of a text. The
    position is the last token that holds a character of it. ``end`` is always there.
    prefix: the text in front of every prompt; None: what the tokenizer adds itself. info: name -> one value per prompt.

    Raises :class:`TaskError`, naming the first prompt that is wrong, for lists of different length, an empty text or
    answer, a position that no token covers or that shares a token with another, an answer that is also wrong or begins
    as a wrong one does, text that the tokenizer does not know, and a prompt longer than ``n_ctx``.

    >>> from talking_heads_utils.prompts.toy import word_tokenizer
    >>> text = "When Mary and John went to the school, John gave the hat to"
    >>> positions = {"IO": ["Mary"], "S2": [("John", 1)]}
    >>> prompts = from_texts([text], ["Mary"], ["John"], word_tokenizer(), positions=positions)
    >>> {name: position.tolist() for name, position in prompts.positions.items()}
    {'IO': [2], 'S2': [10], 'end': [14]}
    """
    texts = _as_list(texts)
    candidates = _checked(texts, _as_list(answers), None if wrong is None else _as_list(wrong))
    whole = [[_joined(text, one, add_space) for one in (*of.right, *of.wrong)] for text, of in zip(texts, candidates)]
    read = iter(tokenized([text for some in whole for text in some], tokenizer))
    found = [
        _read(f"prompt {i} ({_short(text)})", text, some, of, [next(read) for _ in some], unknown_id(tokenizer))
        for i, (text, some, of) in enumerate(zip(texts, whole, candidates))
    ]
    spans = _spans(texts, positions or {})
    for name, values in (info or {}).items():
        if len(values) != len(texts):
            raise TaskError(f"info {name!r} has {len(values)} values for {len(texts)} texts.")
    recipe = Recipe(TASK, len(texts), 0, tokenizer_hash(tokenizer), prefix=prefix, drawn=False)
    return prompt_set(
        [prompt.tokens.ids for prompt in found],
        [_places(prompt, named) for prompt, named in zip(found, spans)],
        [prompt.right for prompt in found],
        [prompt.wrong for prompt in found],
        tokenizer,
        recipe,
        texts=[prompt.text for prompt in found],
        info={name: list(values) for name, values in (info or {}).items()},
        n_ctx=n_ctx,
    )


class _Candidates(NamedTuple):
    right: list[str]
    wrong: list[str]


class _Prompt(NamedTuple):
    """One prompt: how errors call it, its text as far as it is asked, and first own tokens of its answers."""

    named: str
    text: str
    tokens: Tokens
    right: list[int]
    wrong: list[int]


def _as_list(given: Sequence[Any]) -> Sequence[Any]:
    return given if isinstance(given, str) else list(given)


def _checked(texts: Sequence[str], answers: Sequence[Answer], wrong: Sequence[Answer] | None) -> list[_Candidates]:
    """Each prompt's answers as lists, none twice. Raises :class:`TaskError` where something is lacking."""
    if isinstance(texts, str) or not len(texts):
        raise TaskError("Give a list of one text or more.")
    found = []
    for name, given in (("answers", answers), ("wrong answers", wrong)):
        if given is not None and (isinstance(given, str) or len(given) != len(texts)):
            n = "one string" if isinstance(given, str) else len(given)
            raise TaskError(f"There are {len(texts)} texts, but {n} for {name}. Give one entry for each text.")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise TaskError(f"Text {i} is empty or no string: {text!r}.")
        right, bad = (_listed(i, given[i]) if given is not None else [] for given in (answers, wrong))
        if both := [answer for answer in right if answer in bad]:
            raise TaskError(f"{both[0]!r} is both an answer and a wrong answer of prompt {i} ({_short(text)}).")
        found.append(_Candidates(right, bad))
    return found


def _listed(i: int, answer: Answer) -> list[str]:
    some = [answer] if isinstance(answer, str) else list(dict.fromkeys(answer))
    if not some or not all(isinstance(one, str) and one.strip() for one in some):
        raise TaskError(f"Prompt {i} needs one answer or more, none of them empty, not {answer!r}.")
    return some


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"...{text[-37:]}")


def _joined(text: str, answer: str, add_space: bool) -> str:
    """The answer after the text, with a space where two words would run into one."""
    last, first = text[-1], answer[0]
    words = (last.isalnum() or last in ",.;:?!)") and first.isalnum()
    spaced = not (last.isdigit() and first.isdigit()) and east_asian_width(first) not in "WF"
    return text + " " * (add_space and words and spaced) + answer


def _read(
    named: str, text: str, whole: Sequence[str], of: _Candidates, read: Sequence[Tokens], unknown: int | None
) -> _Prompt:
    """One prompt of its candidates' tokens. Raises :class:`TaskError` where they cannot be told apart by one token."""
    for full, tokens in zip(whole, read):
        if unknown is not None and unknown in tokens.ids:
            at = list(tokens.ids).index(unknown)
            word = full[tokens.starts[at] : tokens.ends[at]]
            raise TaskError(f"The tokenizer does not know {word!r} in {named} or its answers.")
    names, ids = [*of.right, *of.wrong], [list(tokens.ids) for tokens in read]
    for i, first in enumerate(ids):
        for j, second in enumerate(ids):
            if i != j and second[: len(first)] == first:
                raise TaskError(f"The tokens of {names[i]!r} begin those of {names[j]!r} in {named}. Leave one out.")
    before = min(tokens.first(len(text)) for tokens in read)
    n = before if len(ids) == 1 else next(k for k in range(max(map(len, ids))) if len({row[k] for row in ids}) > 1)
    if joined := [name for name, tokens in zip(names, read) if tokens.starts[n] < len(text.rstrip())]:
        raise TaskError(f"The tokenizer splits the end of {named} otherwise before {joined[0]!r} than it does alone.")
    if not n:
        raise TaskError(f"No token stands before the answer in {named}.")
    own = [row[n] for row in ids]
    right, wrong = own[: len(of.right)], own[len(of.right) :]
    for name, token in zip(of.wrong, wrong):
        if token in right:
            other = of.right[right.index(token)]
            raise TaskError(f"{other!r} and the wrong {name!r} begin with the same token in {named}, but not all do.")
    prompt = Tokens(read[0].ids[:n], read[0].starts[:n], read[0].ends[:n])
    return _Prompt(named, whole[0][: prompt.ends[-1]], prompt, list(dict.fromkeys(right)), list(dict.fromkeys(wrong)))


def _spans(texts: Sequence[str], positions: Mapping[str, Any]) -> list[dict[str, Span]]:
    """Each prompt's named spans. Raises :class:`TaskError` for a place that is not in its text."""
    found: list[dict[str, Span]] = [{} for _ in texts]
    for name, given in positions.items():
        if name == "end":
            raise TaskError("The position 'end' is always there, the last token. Give yours another name.")
        places = [given(text) for text in texts] if callable(given) else given
        if isinstance(places, str) or len(places) != len(texts):
            raise TaskError(f"Position {name!r} needs one entry for each of {len(texts)} texts, not {given!r}.")
        for i, (text, place) in enumerate(zip(texts, places)):
            if place is not None:
                found[i][name] = _span(f"Position {name!r} of prompt {i} ({_short(text)})", text, place)
    return found


def _span(named: str, text: str, place: Any) -> Span:
    """Where a place is in a text, without spaces around it."""
    match place:
        case str(string) | (str(string), int()) if string:
            at = [m.start() for m in re.finditer(f"(?={re.escape(string)})", text)]
            if isinstance(place, str) and len(at) > 1:
                raise TaskError(f"{named}: {string!r} occurs {len(at)} times. Say which: ({string!r}, 0) is the first.")
            k = 0 if isinstance(place, str) else place[1]
            if not -len(at) <= k < len(at):
                raise TaskError(f"{named}: {string!r} occurs {len(at)} times" + (f", so not at {k}." if at else "."))
            start, stop = at[k], at[k] + len(string)
        case (int(start), int(stop)) if 0 <= start < stop <= len(text):
            pass
        case _:
            raise TaskError(f"{named} is a string, (string, k) or (first, stop) within the text, not {place!r}.")
    word = text[start:stop].strip()
    first = text.index(word, start) if word else start
    return first, first + len(word) if word else stop


def _places(prompt: _Prompt, spans: Mapping[str, Span]) -> dict[str, int]:
    """Last token of each span. Raises :class:`TaskError` for one without a token and for two that share one."""
    taken: dict[int, str] = {}
    found = {}
    for name, span in spans.items():
        tokens = prompt.tokens.covering(span)
        if not tokens:
            raise TaskError(f"No token covers position {name!r} in {prompt.named}.")
        if shared := [token for token in tokens if token in taken]:
            piece = prompt.text[prompt.tokens.starts[shared[0]] : prompt.tokens.ends[shared[0]]]
            raise TaskError(f"Positions {taken[shared[0]]!r} and {name!r} share the token {piece!r} in {prompt.named}.")
        taken |= dict.fromkeys(tokens, name)
        found[name] = tokens[-1]
    return found
