"""What experiments share is made once."""

import pytest

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.known import PLANTED


@pytest.fixture(scope="module")
def planted():
    return Context(PLANTED, quick=True)


def test_a_context_makes_what_is_shared_once(planted):
    made = []

    def study(c):
        made.append(c)
        return c.lists(4, 20)

    assert planted.bridge is planted.bridge and planted.kept(study) is planted.kept(study) is planted.lists(4, 20)
    assert planted.record(planted.lists(4, 20), [2]) is planted.record(planted.lists(4, 20), [2])
    given = Context("a name", loaded=(planted.bridge, planted.tokenizer), own=True, quick=True)
    assert given.bridge is planted.bridge and given.mover == planted.mover and given.is_own
    given.kept(study)
    given.forget()
    assert not given._kept and given.bridge is planted.bridge and made == [planted, given]
