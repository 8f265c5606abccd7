"""A text tokenizer that is missing or damaged in any way is told in a few lines."""

import pytest

from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_lightning.errors import UserError
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer


@pytest.mark.parametrize("damaged", ["cut", "", "[]", '{"model": {"type": "X"}}'])
def test_a_damaged_text_tokenizer_is_named(tmp_path, damaged):
    toy_text_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:2000] if damaged == "cut" else damaged)
    with pytest.raises(UserError) as refused:
        load_text_tokenizer(tmp_path)
    assert f"{str(tmp_path)!r} cannot be loaded as a transformers tokenizer" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 5


def test_a_missing_text_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere' is no folder here, and no downloaded hub name"):
        load_text_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be loaded as a transformers tokenizer"):
        load_text_tokenizer(tmp_path)
