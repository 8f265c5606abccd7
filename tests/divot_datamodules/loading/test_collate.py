"""Texts are tokenised and laid out in the data workers, once, exactly as the model itself would lay them out."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from divot_datamodules.loading.batch_reader import decode_function, sample_rng
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_datamodules.video_text import VideoTextData
from divot_lightning.parts.sequences.collator import SequenceCollator, lay_out
from divot_lightning.parts.sequences.layout import SequenceLayout
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer
from divot_lightning.parts.sequences.tokens import SpecialTokens
from tests.helpers.broken_shards import write_members

Q, C = 3, 4
CAPTION = "a red circle moves left and then a blue square"


@pytest.fixture
def collator(tmp_path):
    word_level_tokenizer([CAPTION]).save_pretrained(tmp_path / "text")
    return SequenceCollator(str(tmp_path / "text"), SequenceLayout(Q, packing_width=8), (Q, C))


@pytest.fixture
def data(tmp_path, collator):
    """Data of a stage that lays out texts; some captions are long, so that packing has an effect."""
    members = []
    for number in range(12):
        text = CAPTION if number % 4 == 0 else "a circle"
        features = save({"tokens": torch.full((Q, C), float(number))})
        members += [(f"k{number}.features.safetensors", features), (f"k{number}.txt", text.encode())]
    shard = write_members(tmp_path / "0.tar", members)

    def make(**settings):
        data = VideoTextData(str(shard), batch_size=6, tasks={"caption": 1.0, "generate": 1.0}, **settings)
        data.setup("fit")
        stage = SimpleNamespace(sequence_collator=lambda: collator)
        data.trainer = SimpleNamespace(world_size=1, global_rank=0, local_rank=0, lightning_module=stage)
        return data

    return make


def first_batches(data, count=4):
    batches = iter(data.train_dataloader())
    found = []
    for _ in range(count):
        found.append(next(batches))
        data.position.used(found[-1]["position"])
    data.teardown("fit")
    return found


def tensors(sequences):
    return {name: value for name, value in vars(sequences).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}, {"cache_decoded_mb": 1}], ids=str)
def test_a_batch_holds_the_sequences_of_its_segments(data, collator, settings):
    text_tokenizer, _ = load_text_tokenizer(collator.text_tokenizer)
    special = SpecialTokens.from_tokenizer(text_tokenizer)
    batches = first_batches(data(**settings))
    assert any(batch["sequences"].packed for batch in batches)
    for batch in batches:
        expected = lay_out(batch["segments"], special, text_tokenizer, collator.layout)
        assert batch["sequences"].num_clips == expected.num_clips == len(batch["features"])
        for name, value in tensors(expected).items():
            assert torch.equal(getattr(batch["sequences"], name), value), name


def test_the_worker_has_laid_out_what_the_training_process_samples(data, collator):
    data = data()
    opened = data.loaders.splits["train"].opened
    decode = decode_function({"train": opened}, data.order.seed, collator)
    for index in data.position.plan.batch(0):
        sample = decode(SimpleNamespace(sample=index, data="train"))
        (item,) = opened[0].make_items(sample, sample_rng(data.order.seed, index.number, 1))
        assert sample.sequences == [collator.sequence(item["segments"])]


def test_a_sample_that_does_not_fit_is_left_to_the_training_process(data, collator):
    data = data()
    narrow = SequenceCollator(collator.text_tokenizer, collator.layout, (Q, C + 1))
    decode = decode_function({"train": data.loaders.splits["train"].opened}, data.order.seed, narrow)
    sample = decode(SimpleNamespace(sample=data.position.plan.batch(0)[0], data="train"))
    assert sample.sequences is None


def test_a_collator_is_pickled_without_its_tokenizer(collator):
    samples = [[], []]
    before = collator.lay_out(samples)
    stored = pickle.dumps(collator)
    assert len(stored) < 1000
    again = pickle.loads(stored).lay_out(samples)
    assert all(torch.equal(getattr(again, name), value) for name, value in tensors(before).items())
