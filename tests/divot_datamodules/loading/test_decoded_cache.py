import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.decoded_cache import DecodedCache


def test_the_cache_keeps_to_its_memory_and_to_samples_without_a_choice():
    cache = DecodedCache(max_bytes=250)
    sample_ids = [("train", 0, 0, number) for number in range(4)]
    for number, sample_id in enumerate(sample_ids):
        media = torch.zeros(1, 100, dtype=torch.uint8)
        cache.add(sample_id, Sample(f"k{number}", {}, video=media, is_deterministic=number != 1))
    assert [cache.get(sample_id) is not None for sample_id in sample_ids] == [True, False, True, False]


def test_what_is_kept_does_not_change_with_what_it_was_made_from():
    cache, media = DecodedCache(1000), torch.zeros(1, 100, dtype=torch.uint8)
    cache.add(("train", 0, 0, 0), Sample("k", {}, video=media))
    media.fill_(1)
    assert cache.get(("train", 0, 0, 0)).video.sum() == 0


def test_a_picture_is_kept_once():
    cache = DecodedCache(100)
    cache.add(("train", 0, 0, 0), Sample("k", {}, video=torch.ones(1, 1, 100, dtype=torch.uint8).expand(1, 16, 100)))
    assert cache.get(("train", 0, 0, 0)).video.shape == (1, 16, 100)
