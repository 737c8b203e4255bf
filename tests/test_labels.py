import pytest

from talking_heads_utils.errors import LabelError
from talking_heads_utils.labels import Component, Head
from talking_heads_utils.roles import IOI_LINKS, gpt2_small_roles, role_of


def test_names_are_read_and_written_alike():
    assert str(Head.parse("L8H10")) == "L8H10" and Head.parse("L8H10") == Head(8, 10)
    assert str(Component.parse("L8H10.1")) == "L8H10.1" and Component.parse("L8H10.1").of_head == Head(8, 10)


@pytest.mark.parametrize("text", ["8.10", "L8H10.1", "L8", "h8l1", "L-1H0", ""])
def test_a_bad_head_is_one_clear_error(text):
    with pytest.raises(LabelError, match="Write layer and head as in 'L8H10'"):
        Head.parse(text)


@pytest.mark.parametrize("text", ["L8H10", "8.10.1", "L8H10.", "L8H10.x"])
def test_a_bad_component_is_one_clear_error(text):
    with pytest.raises(LabelError, match="as in 'L8H10.1'"):
        Component.parse(text)


def test_published_roles_do_not_overlap_and_links_name_them():
    roles = gpt2_small_roles()
    heads = [head for group in roles.values() for head in group]
    assert len(heads) == len(set(heads)) == 26
    assert role_of(Head(8, 10), roles) == "S-inhibition" and role_of(Head(0, 0), roles) is None
    assert all(writer in roles and reader in roles and kind in "QKV" for writer, reader, kind in IOI_LINKS)
