"""Chapter 4 as Llama 3 will go through it: a tiny random llama in shards and bfloat16, whose tokenizer keeps numbers
whole or splits them."""

from pathlib import Path

import pytest
import rehearsals
import torch

from talking_heads_utils.errors import NotApplicable
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.icl import tasks
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.prompts.lists import HELD_OUT

FUNCTIONS = ["y = 2x + 3", "y = x + 3"]


@pytest.mark.parametrize("digits", [False, True])
def test_a_llama_is_asked_for_numbers_and_words_or_for_words_alone(digits, gpt2_source, tmp_path, monkeypatch):
    if not Path(gpt2_source).is_dir():
        pytest.skip("GPT-2's tokenizer is in no folder; set TALKING_HEADS_GPT2")
    folder = rehearsals.tiny("llama", tmp_path / "llama", Path(gpt2_source), digits=digits)
    assert len(list(folder.glob("*.safetensors"))) > 1
    c = Context(str(folder), quick=True, dtype=torch.bfloat16)
    assert c.bridge.cfg.dtype == torch.bfloat16
    names = [task.name for task in tasks.candidates(c)]
    assert [name for name in names if name in FUNCTIONS] == ([] if digits else FUNCTIONS) and "next_number" in names
    few = [task for task in tasks.candidates(c) if task.name in (*FUNCTIONS, "french", "next_number", "plural")]
    monkeypatch.setattr(tasks, "candidates", lambda c: few)
    names, table = [task.name for task in few], frame(tasks.run_tasks(c))
    assert list(dict.fromkeys(table["task"])) == names and table["low"].notna().all()
    c.finished = {"tasks": table}.get
    with pytest.raises(NotApplicable, match=f"of {len(names)} tasks"):
        tasks.tasks(c)
    monkeypatch.setattr(tasks, "low_end", lambda name, measured: len(name))
    asked = tasks.tasks(c)
    assert len(asked) == len(few) and (digits or [task.name for task in asked[:2]] == FUNCTIONS)
    assert len(tasks.run_shown(c)) == 3 * 4 * 5
    first = asked[0].ask(c, 8, HELD_OUT)
    assert (first.numbers is None) == digits
    if not digits:
        assert first.numbers.values[torch.searchsorted(first.numbers.values, first.a_x)].tolist() == first.a_x.tolist()
        texts = [c.tokenizer.decode([token]) for token in first.right]
        assert [int(text) for text in texts] == [2 * q.x + 3 for q in first.questions]
