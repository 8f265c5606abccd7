import json

import pytest
import torch

from divot_datamodules.encoding import check_features, encode_shards
from divot_datamodules.ledger import Budget
from divot_datamodules.shard_reading import expand_shards, read_shard
from divot_datamodules.shard_writing import read_index
from divot_datamodules.video_text import VideoTextData
from divot_lightning.components import save_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer import TokenizerConfig, VideoTokenizer
from divot_lightning.models.vision_backbone import VisionConfig


def tiny_tokenizer(seed=0):
    torch.manual_seed(seed)
    vision = VisionConfig(frozen=False, image_size=16, patch_size=8, width=8, layers=1, heads=2)
    config = TokenizerConfig(
        vision=vision,
        temporal_width=8,
        temporal_layers=1,
        temporal_heads=2,
        temporal_init="random",
        pool_size=2,
        spatiotemporal_width=8,
        spatiotemporal_layers=1,
        spatiotemporal_heads=2,
        num_tokens=3,
        resampler_layers=1,
        resampler_heads=2,
        resampler_head_dim=4,
        token_dim=4,
    )
    return VideoTokenizer(config).eval()


@pytest.fixture
def run(tmp_path):
    save_component(tiny_tokenizer(), tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


def test_cached_features_are_those_of_the_tokenizer(run, video_shards, tmp_path):
    folder = video_shards()
    report = encode_shards(run, folder, tmp_path / "features", batch_size=4)
    assert (report.samples, report.shards, report.defects) == (6, 2, [])
    data = VideoTextData(None, str(tmp_path / "features"), batch_size=6, tasks={"caption": 1.0})
    videos = VideoTextData(None, str(folder), batch_size=6, tasks={"caption": 1.0})
    batches = []
    for module in (data, videos):
        module.setup("validate")
        batches.append(next(iter(module.val_dataloader())))
    cached, online = batches
    assert cached["key"] == online["key"]
    assert cached["segments"] == online["segments"]
    with torch.no_grad():
        expected = tiny_tokenizer()(to_unit_range(online["video"]))
    assert cached["features"].dtype == torch.float32
    torch.testing.assert_close(cached["features"], expected, atol=1e-5, rtol=1e-5)


def test_pictures_and_several_clips_are_encoded(run, tmp_path, write_tar, picture_file, numbered_file):
    members = [("p.jpg", picture_file()), ("tale.clip0.mp4", numbered_file()), ("tale.clip1.mp4", numbered_file())]
    write_tar(tmp_path / "in" / "0.tar", members)
    encode_shards(run, tmp_path / "in", tmp_path / "out")
    (shard,) = expand_shards(tmp_path / "out")
    first, second = read_shard(shard)
    assert json.loads(first.members["json"]) == {"kind": "image"}
    data = VideoTextData(None, shard, batch_size=2, tasks={"story": 1.0}, max_bad_fraction=1.0)
    assert second.key == "tale"
    data.setup("validate")
    decoder = data._streams["validation"].decoder
    assert [decoder(raw, None).features.shape for raw in (first, second)] == [(1, 3, 4), (2, 3, 4)]


def test_the_index_names_the_tokenizer_and_a_second_call_does_nothing(run, video_shards, tmp_path):
    folder = video_shards()
    encode_shards(run, folder, tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert index["kind"] == "features"
    assert index["settings"]["tokenizer_sha256"] == weights_sha256(run / "tokenizer")
    assert encode_shards(run, folder, tmp_path / "out").already_there


def test_features_of_another_tokenizer_are_refused(run, video_shards, tmp_path):
    encode_shards(run, video_shards(), tmp_path / "out")
    save_component(tiny_tokenizer(seed=1), tmp_path / "other" / "tokenizer")
    check_features(expand_shards(tmp_path / "out"), run)
    data = VideoTextData(str(tmp_path / "out"), tasks={"caption": 1.0}, tokenizer=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"out come from another tokenizer") as caught:
        data.setup("fit")
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(UserError, match="tokenizer_sha256"):
        encode_shards(tmp_path / "other", video_shards(), tmp_path / "out")
    VideoTextData(str(tmp_path / "out"), tasks={"caption": 1.0}, tokenizer=str(run)).setup("fit")


def test_shards_of_videos_pass_the_check(run, video_shards):
    check_features(expand_shards(video_shards()), run)


def test_an_interrupted_call_is_continued(run, video_shards, tmp_path, monkeypatch):
    from divot_datamodules import encoding

    folder, real, calls = video_shards(shards=3), encoding.encode_clips, []

    def stop_at_second(tokenizer, video):
        calls.append(len(video))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(tokenizer, video)

    monkeypatch.setattr(encoding, "encode_clips", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        encode_shards(run, folder, tmp_path / "out")
    assert encode_shards(run, folder, tmp_path / "out").samples == 9
    assert len(calls) == 4


def test_unusable_samples_are_left_out_within_the_budget(run, video_shards, tmp_path):
    folder = video_shards(extra=[("zbad.mp4", b"rubbish")])
    with pytest.raises(UserError, match="2 of 8 samples"):
        encode_shards(run, folder, tmp_path / "out")
    assert read_index(tmp_path / "out") is None
    report = encode_shards(run, folder, tmp_path / "out", budget=Budget(0.5))
    assert (report.samples, len(report.defects)) == (6, 2)


def test_features_are_not_encoded_again(run, video_shards, tmp_path):
    encode_shards(run, video_shards(), tmp_path / "out")
    with pytest.raises(UserError, match="holds features already"):
        encode_shards(run, tmp_path / "out", tmp_path / "again")


def test_a_run_without_a_tokenizer_is_named(tmp_path, video_shards):
    with pytest.raises(UserError, match="nowhere"):
        encode_shards(tmp_path / "nowhere", video_shards(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
