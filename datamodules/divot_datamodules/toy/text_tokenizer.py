"""The text tokenizer of the toy world: one token per word. It is made here, so that nothing is downloaded."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from divot_datamodules.tasks.built_in import CAPTION_PROMPTS, IMAGE_PROMPTS, VIDEO_PROMPTS
from divot_datamodules.toy.world import DIRECTIONS, VALUES, Scene, caption, questions
from divot_lightning.parts.tasks import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"


def toy_texts() -> list[str]:
    """Return texts that contain every word of the toy world's captions, questions, answers and instructions."""
    scenes = [
        Scene(colour, shape, direction, speed, 0.0, 0.0)
        for colour in VALUES["colour"]
        for shape in VALUES["shape"]
        for direction in DIRECTIONS
        for speed in VALUES["speed"]
    ]
    texts = [caption(scene) for scene in scenes]
    texts += [text for scene in scenes for turn in questions(scene) for text in (turn["question"], turn["answer"])]
    phrases = [*CAPTION_PROMPTS, *VIDEO_PROMPTS, *IMAGE_PROMPTS, TEMPLATES["instruction"]]
    return texts + [phrase.replace("{}", "") for phrase in phrases]


def word_level_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Build a tokenizer with one token per word; words are separated by whitespace.

    Args:
        texts: Their words, sorted, are the vocabulary; any other word becomes `<unk>`.

    Returns:
        A tokenizer that adds no special tokens by itself and knows pad, begin, end and the tokens that mark clips.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES

    words = sorted({word for text in texts for word in text.split()})
    special = [PAD, UNKNOWN, BEGIN, END, *SPECIAL_TOKEN_NAMES]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKEN_NAMES),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def toy_text_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer of the toy world's texts."""
    return word_level_tokenizer(toy_texts())
