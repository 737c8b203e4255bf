"""What experiments of a model share is made once."""

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.models import PLANTED
from talking_heads_utils.prompts.halves import halves


def test_a_context_makes_what_is_shared_once():
    planted, made = Context(PLANTED, quick=True), []

    def shared(c):
        made.append(c.model)
        return c.record(halves(c.lists(4, 80))[1], [2])

    found = planted.kept(shared)
    assert planted.bridge is planted.bridge and planted.kept(shared) is found and made == [PLANTED]
    assert planted.record(found.prompts, [2]) is found and planted.lists(4, 20) is planted.lists(4, 20)
    given = Context("a name", loaded=(planted.bridge, planted.tokenizer), own=True, quick=True)
    assert given.bridge is planted.bridge and given.mover == planted.mover and given.is_own
    given.kept(shared)
    given.forget()
    assert not given._kept and given.bridge is planted.bridge
