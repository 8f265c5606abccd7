"""Each source may have a lower greatest length of its sequences than the stage."""

import pytest

from divot_datamodules.shards.source_settings import SourceConfig
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.parts.sequences.layout import SequenceLayout
from divot_lightning.parts.sequences.tokens import TokenKind
from divot_lightning.testing.toy_shards import make_toy_shards


class WithTexts(VideoTextData):
    """The data of a stage whose sequences have at most 14 tokens and clips of 3."""

    folder = ""

    @property
    def _collator(self):
        return SequenceCollator(self.folder, SequenceLayout(3, max_length=14), (3, 5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_sequences_of_each_source_have_its_own_length(tmp_path, num_workers):
    folder = make_toy_shards(tmp_path, train=4, validation=4, held_out=4)
    toy_text_tokenizer().save_pretrained(tmp_path / "words")
    WithTexts.folder = str(tmp_path / "words")
    train = [
        SourceConfig(str(folder / "train"), batch_size=2, max_length=11),
        SourceConfig(str(folder / "validation"), batch_size=2, max_length=100),
    ]
    data = WithTexts(train, tasks={"caption": 1.0}, num_workers=num_workers)
    data.setup("fit")
    longest = []
    for _, batch in zip(range(12), data.train_dataloader(), strict=False):
        longest.append(int((batch["sequences"].token_kind_BL != TokenKind.PAD).sum(dim=1).max()))
    data.teardown()
    # 8 tokens for begin and clip, then a caption of 6 words or more, which both lengths cut.
    assert set(longest) == {11, 14}


def test_a_length_below_one_is_refused():
    with pytest.raises(UserError, match="max_length 0"):
        SourceConfig("a", max_length=0)
