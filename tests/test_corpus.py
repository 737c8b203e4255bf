"""Running text: where it comes from, and which words and lists its tokens are of."""

import re

import datasets
import pytest

from talking_heads_utils.errors import DownloadError, TaskError
from talking_heads_utils.experiments import corpus
from talking_heads_utils.prompts.toy import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def test_words_and_lists_of_a_text(tokenizer):
    text = "The hat, the tall coat and socks or a hat. Foo(one, two) was there, then."
    words = [text[slice(*span)] for span in corpus.content_words(text)]
    assert words == ["hat", "tall", "coat", "socks", "hat", "Foo"]
    text = "Here, take a hat, the tall coat, and socks today. Then x, y or z"
    assert [text[slice(*span)] for span in corpus.lists_in(text)] == [text[:48], text[50:]]
    assert not list(corpus.lists_in("If so, then no. A, (b), c."))
    found = corpus.corpus_of(["hat , coat , sock . Hat", "hat is clean"], tokenizer, n_pos=10)
    assert found.tokens[0, 0] == tokenizer.bos_token_id and found.section[0].tolist() == [-1, *[0] * 7, 1, 1]
    assert found.word[0, 1] == found.word[0, 7] == found.word[0, 8] >= 0 and found.word[0, 2] == -1
    assert found.mention[0, 1] != found.mention[0, 7] and found.in_list[0].tolist() == [-1, *[0] * 5, *[-1] * 4]


def test_the_language_reference_is_running_text_of_any_python():
    texts = corpus.running_text(corpus.PYDOC)
    assert texts == corpus.pydoc_texts() and len(texts) > 60 and min(map(len, texts)) > 20
    whole = "\n".join(texts)
    rules = re.findall(r"^[*=~^-]{3,}$|^ *\+[-=+]+\+$|^ *\|.*\|$", whole, re.M)
    assert len(whole) > 300_000 and not rules, "no line under a title, no row of a table"
    assert "a dictionary" in whole and corpus.texts_sum(corpus.PYDOC).startswith("pydoc_data.topics, sha256 ")


def test_markup_is_dropped_and_code_stays():
    text = (
        "A Title\n*******\n\nOne *s* and **two words:**\nwith f(*args, **kwargs) [3].\n\n   if x:\n       y = a * b\n"
    )
    table = "\n+---+---+\n| a | b |\n+===+===+\n"
    plain = "A Title\nOne s and two words: with f(*args, **kwargs).\n   if x:\n       y = a * b"
    assert corpus._plain(text + table).rstrip() == plain


def test_open_web_text_is_streamed_at_its_revision_and_a_missing_network_told_at_once(monkeypatch):
    with pytest.raises(DownloadError, match="the Hub does not answer.*--texts pydoc, or --texts FILE"):
        corpus.running_text(corpus.OPEN_WEB_TEXT_NAME)
    asked = {}

    def load_dataset(name, **how):
        asked.update(how, name=name)
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr(corpus, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert corpus.running_text(corpus.OPEN_WEB_TEXT_NAME, 2) == ["a", "b"]
    assert asked["streaming"] and asked["revision"] in corpus.texts_sum(corpus.OPEN_WEB_TEXT_NAME)
    assert asked["name"] == corpus.OPEN_WEB_TEXT and asked["download_config"].max_retries == 0


def test_bad_requests_are_one_clear_error_each(tokenizer, tmp_path):
    with pytest.raises(TaskError, match="no token of this model"):
        corpus.corpus_of(["zzz qqq"], tokenizer)
    with pytest.raises(TaskError, match="Take more text"):
        corpus.corpus_of(["I need hat"], tokenizer)
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(TaskError, match="is empty"):
        corpus.read_texts(tmp_path / "empty.txt")
    with pytest.raises(TaskError, match="cannot be read as text"):
        corpus.read_texts(tmp_path / "none.txt")
    (tmp_path / "some.txt").write_text("one\n\ntwo")
    assert corpus.running_text(tmp_path / "some.txt") == ["one", "two"]
    assert corpus.running_text(tmp_path / "some.txt", 1) == ["one"]
