import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.io.printing import printable


@given(st.text())
def test_nothing_that_a_terminal_acts_on_is_left_and_no_other_character_changes(text):
    shown = printable(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    shown.encode("utf-8")
    if all(character.isprintable() for character in text):
        assert shown == text


def test_escapes_say_what_was_there():
    assert printable("a\x1b[31m\u202egpj.mp4\n\udce9") == "a\\x1b[31m\\u202egpj.mp4\\n\\udce9"
