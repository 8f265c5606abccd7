"""A text tokenizer that is missing or damaged in any way is told in a few lines."""

import pytest

from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_lightning.errors import UserError
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]", lambda text: '{"model": {"type": "X"}}'],
    ids=["cut", "empty", "list", "other"],
)
def test_a_damaged_text_tokenizer_is_named(tmp_path, file, damage):
    toy_text_tokenizer().save_pretrained(tmp_path)
    text = (tmp_path / file).read_text()
    load_text_tokenizer(tmp_path)
    (tmp_path / file).write_text(damage(text))
    try:
        load_text_tokenizer(tmp_path)
    except UserError as error:
        assert f"{str(tmp_path)!r} cannot be loaded as a transformers tokenizer" in str(error)
        assert len(str(error).splitlines()) <= 5
    else:
        assert file == "tokenizer_config.json", "without the vocabulary there is nothing to load"


def test_a_missing_text_tokenizer_is_named(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="cannot be loaded as a transformers tokenizer"):
            load_text_tokenizer(folder)
