"""Word-level tokenizers: of the small models, of the planted one, and of anything else that knows few words."""

from __future__ import annotations

from collections.abc import Iterable
from string import Formatter
from typing import TYPE_CHECKING

from talking_heads_utils.files import data_dir
from talking_heads_utils.prompts.prefix import add_prefix
from talking_heads_utils.prompts.words import load_templates

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

UNKNOWN, BOS = "<unk>", "<bos>"
N_POSITIONS = 128  # context of the small models of lists and of the planted one


def level_tokenizer(
    words: Iterable[str], split: PreTokenizer, n_positions: int, normalizer: Normalizer | None = None
) -> PreTrainedTokenizerFast:
    """One token per word, behind :data:`UNKNOWN` and :data:`BOS`, which it puts in front of a text.

    split: cuts a text into words, after the normalizer.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([UNKNOWN, BOS, *words]))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    model.pre_tokenizer = split
    if normalizer is not None:
        model.normalizer = normalizer
    special = dict(unk_token=UNKNOWN, bos_token=BOS, eos_token=BOS, pad_token=BOS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=n_positions, **special)
    add_prefix(tokenizer, BOS)
    return tokenizer


def word_tokenizer(
    n_names: int = 30, n_places: int = 15, n_objects: int = 64, n_positions: int = N_POSITIONS
) -> PreTrainedTokenizerFast:
    """The words of the IOI and Laundry List templates, and the first names, places and objects of ``data/prompts``."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.Whitespace()
    words: list[str] = []
    for task, key in (("ioi", "templates"), ("laundry", "wordings")):
        for template in load_templates(task)[key].values():
            text = " , ".join(literal for literal, *_ in Formatter().parse(template))
            words += [word for word, _ in split.pre_tokenize_str(text)]
    for kind, n in (("names", n_names), ("places", n_places), ("objects", n_objects)):
        words += (data_dir() / "prompts" / f"{kind}.txt").read_text(encoding="utf-8").split()[:n]
    return level_tokenizer(words, split, n_positions)
