"""Where in running text a component is active, by category of the token it is active on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import DownloadError, TaskError
from talking_heads_utils.files import file_sha256
from talking_heads_utils.forward.layers import attention_layer, wide
from talking_heads_utils.labels import Component
from talking_heads_utils.prompts.encoding import unknown_id
from talking_heads_utils.prompts.ioi import draw_ioi
from talking_heads_utils.prompts.lists import draw_laundry
from talking_heads_utils.prompts.prefix import begin_ids
from talking_heads_utils.settings import SEED
from talking_heads_utils.weights.checkpoints import hub_answers

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

COMMA, REPEATED, OTHER = "comma in a list", "repeated word", "other"
CATEGORIES = (COMMA, REPEATED, OTHER)
OPEN_WEB_TEXT = "Skylion007/openwebtext"
OPEN_WEB_TEXT_REVISION = "b4325f019c648b1641a1784748667e8b74e5e064"  # in parquet: a script is no longer run
OPEN_WEB_TEXT_NAME, PYDOC = "openwebtext", "pydoc"  # in place of a file
PYDOC_TOPICS = "pydoc_data.topics"
TOP_SHARE = 0.01  # the most active positions, of which rates by category are taken
LIST_WINDOW = 6  # tokens on either side within which a second comma makes a list
_MARKUP_LINE = re.compile(r"\s*([*=~^\"-])\1{2,}\s*|\s*[+|].*[+|]\s*")  # an underline, a row of a table
_STARS = re.compile(r"\*\*?(\w(?:[^*\n]*[\w:.])?)\*\*?")
_FOOTNOTE = re.compile(r" \[\d+\]")


@dataclass(frozen=True)
class Corpus:
    """Windows of text: tokens ``[n_windows, n_pos]``, and the category of each."""

    tokens: Int[Tensor, "n_windows n_pos"]
    category: Int[Tensor, "n_windows n_pos"]


def corpus_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, n_pos: int = 64, n_windows: int | None = None
) -> Corpus:
    """Texts one after the other, cut into windows of ``n_pos`` tokens, each behind what the tokenizer puts in front.

    Raises :class:`TaskError` for texts without a token that the tokenizer knows, or shorter than one window.
    """
    unknown = unknown_id(tokenizer)
    begin, stream = begin_ids(tokenizer), list[int]()
    n_body = n_pos - len(begin)
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False)["input_ids"]
        if n_windows is not None and len(stream) >= n_windows * n_body:
            break
    if all(token == unknown for token in stream):
        raise TaskError("The corpus holds no token of this model. Take text in the model's language.")
    n = len(stream) // n_body
    if n == 0:
        raise TaskError(f"The corpus has {len(stream)} tokens; one window takes {n_body}. Take more text.")
    body = torch.tensor(stream[: n * n_body]).view(n, -1)[:n_windows]
    tokens = torch.cat([torch.tensor(begin, dtype=torch.long).expand(len(body), -1), body], 1)
    return Corpus(tokens, categories(tokens, tokenizer))


def read_texts(path: Path) -> list[str]:
    """The paragraphs of a text file. Raises :class:`TaskError` if it cannot be read or is empty."""
    try:
        texts = [part for part in Path(path).read_text(encoding="utf-8").split("\n\n") if part.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as text ({error}).") from error
    if not texts:
        raise TaskError(f"{path} is empty.")
    return texts


def categories(tokens: Int[Tensor, "n n_pos"], tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "n n_pos"]:
    """Index into :data:`CATEGORIES`: a comma with another comma near, a word that its window held before, other."""
    pieces = [piece.strip() for piece in tokenizer.batch_decode([[t] for t in tokens.unique().tolist()])]
    words, index = tokens.unique(return_inverse=True)
    is_comma = torch.tensor([piece == "," for piece in pieces])[index]
    is_word = torch.tensor([len(piece) > 2 and piece.isalpha() for piece in pieces])[index]
    near = _others(is_comma)
    same = tokens[:, :, None] == tokens[:, None]
    before = torch.ones(tokens.shape[1], tokens.shape[1]).tril(-1).bool()
    repeated = (same & before).any(-1) & is_word
    found = torch.full(tokens.shape, CATEGORIES.index(OTHER))
    found[repeated] = CATEGORIES.index(REPEATED)
    found[is_comma & near] = CATEGORIES.index(COMMA)
    return found


def _others(marked: Bool[Tensor, "n n_pos"]) -> Bool[Tensor, "n n_pos"]:
    """Whether another position within :data:`LIST_WINDOW` is marked."""
    width = 2 * LIST_WINDOW + 1
    kernel = torch.ones(1, 1, width)
    kernel[0, 0, LIST_WINDOW] = 0
    counts = torch.nn.functional.conv1d(marked.float()[:, None], kernel, padding=LIST_WINDOW)[:, 0]
    return counts > 0


@torch.no_grad()
def activity(
    bridge: TransformerBridge,
    directions: Float[Tensor, "n_layers n_heads d_head d_model"],
    corpus: Corpus,
    components: Sequence[Component],
    *,
    batch: int = 32,
) -> Float[Tensor, "k n_windows n_pos"]:
    """Size of what each component writes at every position of the corpus, value biases left out; the first position of
    a window is NaN."""
    layers = sorted({c.layer for c in components})
    at = {layer: attention_layer(bridge, layer) for layer in layers}
    names = {f"blocks.{layer}.attn.hook_z" for layer in layers}
    parts = []
    for rows in batches.blocks(len(corpus.tokens), batch, "blocks of text"):
        tokens = corpus.tokens[rows].to(bridge.cfg.device)
        _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name in names, stop_at_layer=layers[-1] + 1)
        found = []
        for c in components:
            attention = at[c.layer]
            z = wide(cache[f"blocks.{c.layer}.attn.hook_z"][:, :, c.head]) - attention.b_V[attention.kv_index[c.head]]
            found.append((z @ attention.W_O[c.head] @ directions[c.layer, c.head, c.component]).abs())
        parts.append(torch.stack(found))
    active = torch.cat(parts, 1)
    active[:, :, 0] = torch.nan
    return active


def rates(active: Float[Tensor, "k n_windows n_pos"], corpus: Corpus, components: Sequence[Component]) -> pd.DataFrame:
    """Of each component's most active positions, the share in each category, and how many times the corpus' own share
    that is. Columns: component, category, share, base, ratio, n."""
    import pandas as pd

    rows = []
    category = corpus.category[:, 1:].flatten()
    for c, values in zip(components, active):
        values = values[:, 1:].flatten().cpu()
        n = max(1, int(len(values) * TOP_SHARE))
        top = category[values.topk(n).indices]
        for i, name in enumerate(CATEGORIES):
            share, base = (top == i).double().mean().item(), (category == i).double().mean().item()
            ratio = share / base if base else float("nan")
            rows.append(dict(component=str(c), category=name, share=share, base=base, ratio=ratio, n=n))
    return pd.DataFrame(rows)


def contexts(
    active: Float[Tensor, "n_windows n_pos"], corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, n: int = 8,
    width: int = 12,
) -> pd.DataFrame:  # fmt: skip
    """The most active positions of one component, at most one per window: text before, the token, size."""
    import pandas as pd

    best, place = active.nan_to_num(nan=-1.0).max(1)
    rows = []
    for window in best.topk(min(n, len(best))).indices.tolist():
        at = int(place[window])
        before = tokenizer.decode(corpus.tokens[window, max(1, at - width) : at].tolist())
        token = tokenizer.decode([int(corpus.tokens[window, at])])
        kind = CATEGORIES[int(corpus.category[window, at])]
        rows.append({"context": "…" + before, "token": token, "category": kind, "activation": best[window].item()})
    return pd.DataFrame(rows)


OWN_TEXTS = "this book's own lists and sentences"  # what generated_texts are


def generated_texts(tokenizer: PreTrainedTokenizerBase, n: int, seed: int = SEED) -> list[str]:
    """Text for models whose words are few: lists and sentences about two people from this book's own generators."""
    lists = [p.text for k in (4, 7) for p in draw_laundry(tokenizer, k, n // 4, seed)]
    names = [p.text().text for p in draw_ioi(tokenizer, n // 4 * 2, seed)]
    order = torch.randperm(len(lists) + len(names), generator=torch.Generator().manual_seed(seed))
    texts = lists + names
    return [texts[i] + " ." for i in order.tolist()]


def running_text(source: Path | str, n_texts: int = 2000) -> list[str]:
    """The first texts of :data:`PYDOC`, of :data:`OPEN_WEB_TEXT_NAME`, or of a user's own file, a text a paragraph.

    Raises :class:`TaskError` for a file that cannot be read, and :class:`DownloadError` without a network.
    """
    if source == OPEN_WEB_TEXT_NAME:
        return open_web_text(n_texts)
    return (pydoc_texts() if source == PYDOC else read_texts(Path(source)))[:n_texts]


def texts_shown_as(source: Path | str) -> str:
    """What the texts of a source are called."""
    return {OPEN_WEB_TEXT_NAME: OPEN_WEB_TEXT, PYDOC: PYDOC_TOPICS}.get(str(source), Path(source).name)


def texts_sum(source: Path | str) -> str:
    """The texts of a source, and which: a revision, or a SHA-256 of them. pydoc's differ between Python's versions."""
    if source == OPEN_WEB_TEXT_NAME:
        return f"{OPEN_WEB_TEXT}, revision {OPEN_WEB_TEXT_REVISION}"
    if source == PYDOC:
        return f"{PYDOC_TOPICS}, sha256 {hashlib.sha256(chr(0).join(pydoc_texts()).encode()).hexdigest()}"
    return f"{Path(source).name}, sha256 {file_sha256(Path(source))}"


def pydoc_texts() -> list[str]:
    """Python's own language reference, which comes with every CPython: one text a topic, by name.

    Its markup is dropped: underlines, tables, stars around a word, numbers of footnotes, and line ends in a paragraph.
    """
    from pydoc_data.topics import topics

    return [_plain(topics[name]) for name in sorted(topics)]


def _plain(text: str) -> str:
    """Paragraphs on a line each; indented lines, which are code, stay as they are."""
    lines = [line for line in text.splitlines() if not _MARKUP_LINE.fullmatch(line)]
    text = _FOOTNOTE.sub("", _STARS.sub(r"\1", "\n".join(lines)))
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return "\n".join(part if part.startswith("   ") else " ".join(part.split()) for part in parts)


def open_web_text(n_texts: int = 2000) -> list[str]:
    """The first texts of Open Web Text at :data:`OPEN_WEB_TEXT_REVISION`; no more than those are fetched.

    Raises :class:`DownloadError` without a network, at once.
    """
    try:
        if not hub_answers():
            raise ConnectionError("the Hub does not answer")
        from datasets import DownloadConfig, load_dataset

        rows = load_dataset(
            OPEN_WEB_TEXT, revision=OPEN_WEB_TEXT_REVISION, split="train", streaming=True,
            download_config=DownloadConfig(max_retries=0),
        )  # fmt: skip
        return [row["text"] for row in rows.take(n_texts)]
    except Exception as error:  # of whatever kind: the library's own, the Hub's, the network's, the disk's
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DownloadError(
            f"Open Web Text could not be fetched ({reason}). Use {PYDOC}, which every Python has, or a text file of "
            f"your own: --texts {PYDOC}, or --texts FILE."
        ) from error
