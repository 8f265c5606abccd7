from transformers import AutoTokenizer

from divot_datamodules.tasks.built_in import CAPTION_PROMPTS, IMAGE_PROMPTS, VIDEO_PROMPTS
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer, toy_texts, word_level_tokenizer
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES
from divot_lightning.parts.sequences.tokens import SpecialTokens
from divot_lightning.parts.tasks import TEMPLATES


def test_every_text_of_the_toy_world_is_known_and_comes_back():
    tokenizer = toy_text_tokenizer()
    for text in toy_texts()[::7]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())


def test_instructions_are_known():
    tokenizer = toy_text_tokenizer()
    for phrase in (*VIDEO_PROMPTS, *IMAGE_PROMPTS, *CAPTION_PROMPTS):
        ids = tokenizer(TEMPLATES["instruction"].format(phrase.replace("{}", "a red circle")))["input_ids"]
        assert tokenizer.unk_token_id not in ids


def test_special_tokens_are_single_and_distinct():
    tokenizer = toy_text_tokenizer()
    special = SpecialTokens.from_tokenizer(tokenizer)
    ids = [special.begin, special.end, tokenizer.pad_token_id, tokenizer.unk_token_id, *special.clip_markers]
    assert len(set(ids)) == len(ids) == 4 + len(SPECIAL_TOKEN_NAMES)


def test_no_special_token_is_added_by_default():
    tokenizer = word_level_tokenizer(["red circle"])
    assert tokenizer.convert_ids_to_tokens(tokenizer("circle red blue")["input_ids"]) == ["circle", "red", "<unk>"]


def test_the_folder_opens_as_a_transformers_tokenizer(tmp_path):
    toy_text_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "a red circle moves slowly up"
    assert tokenizer(text)["input_ids"] == toy_text_tokenizer()(text)["input_ids"]
    assert tokenizer.eos_token == "</s>"
