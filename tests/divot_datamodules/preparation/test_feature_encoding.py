import functools
import json
from itertools import islice

import pytest
import torch
import yaml

from divot_backbones.vision.clip import ClipVision
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.loading.skipped_samples import Budget
from divot_datamodules.shards.sources import open_source
from divot_datamodules.shards.writing import read_index
from divot_datamodules.video_text import VideoTextData
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import weights_sha256
from divot_lightning.cli.main import main as divot
from divot_lightning.errors import UserError
from divot_lightning.inference import feature_encoding as encoding
from divot_lightning.inference.feature_encoding import EncodeConfig, encode_shards
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.training.stages.video_llm_step import clip_features
from tests.divot_backbones.vision.tiny_models import TINY
from tests.helpers.faults import limited_file_size


def tiny_tokenizer(seed=0, image_size=32, model_type=None):
    """A tokenizer with a ViT, or with another vision model of transformers that reads four frames."""
    torch.manual_seed(seed)
    vision = functools.partial(
        ClipVision, frozen=False, image_size=image_size, patch_size=image_size // 2, width=8, layers=1, heads=2
    )
    if model_type is not None:
        settings = {"model_type": model_type, **TINY[model_type]}
        vision = functools.partial(TransformersVision, config=settings, image_size=image_size)
    config = TokenizerConfig(
        vision=vision,
        num_frames=5 if model_type is None else 4,
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


def first_batch(path, **settings):
    data = VideoTextData(None, str(path), batch_size=5, max_skipped_fraction=1.0, **settings)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("max_clips", [1, 3])
def test_batches_of_cached_features_equal_encoding_online_bit_for_bit(
    mixed, max_clips, run, tmp_path, write_tar, numbered_file, picture_file
):
    members = [(f"v{n}.mp4", numbered_file(count)) for n, count in enumerate((16, 40, 64))]
    members += [("p.jpg", picture_file()), ("s.clip0.mp4", numbered_file(16)), ("s.clip1.mp4", numbered_file(30))]
    members += [(f"{key}.txt", key.encode()) for key in ("v0", "v1", "v2", "p", "s")]
    write_tar(tmp_path / "in" / "0.tar", sorted(members, key=lambda member: member[0].split(".")[0]))
    settings = EncodeConfig(max_clips=max_clips, precision="bf16-mixed" if mixed else "32-true")
    encode_shards(run, tmp_path / "in", tmp_path / "out", settings, batch_size=2)
    chosen = {"tasks": {"caption": 1.0, "generate": 1.0}, "max_clips": max_clips}
    online, sparse = (
        first_batch(tmp_path / "in", clip=ClipConfig(sparse_frames=frames), **chosen) for frames in (None, 5)
    )
    cached = first_batch(tmp_path / "out", tokenizer=str(run), **chosen)
    assert cached["key"] == online["key"] == ["p", "s", "v0", "v1", "v2"]
    assert cached["segments"] == online["segments"]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for batch in (online, sparse):
            assert torch.equal(cached["features"], clip_features(batch, tiny_tokenizer()))
    assert cached["features"].dtype == torch.float32


@pytest.mark.parametrize("model_type", [None, "siglip2_vision_model", "vjepa2"])
def test_a_training_step_on_cached_features_takes_the_clips_of_the_step_on_videos(model_type, video_shards, tmp_path):
    folder = video_shards(shards=3, samples=4)
    save_component(tiny_tokenizer(model_type=model_type), tmp_path / "run" / "tokenizer")
    encode_shards(tmp_path / "run", folder, tmp_path / "out")
    batches = []
    for path in (folder, tmp_path / "out"):
        data = VideoTextData(str(path), batch_size=5, tasks={"caption": 1.0, "generate": 1.0})
        data.setup("fit")
        batches.append(list(islice(data.train_dataloader(), 4)))
    for online, cached in zip(*batches, strict=True):
        assert (cached["key"], cached["segments"]) == (online["key"], online["segments"])
        tokenizer = tiny_tokenizer(model_type=model_type)
        assert torch.equal(clip_features(cached, tokenizer), clip_features(online, tokenizer))


def test_only_the_frames_that_the_tokenizer_reads_are_decoded(run, video_shards, tmp_path, monkeypatch):
    shapes = []
    real = encoding.encode_clips
    monkeypatch.setattr(
        encoding, "encode_clips", lambda tokenizer, video: shapes.append(video.shape) or real(tokenizer, video)
    )
    encode_shards(run, video_shards(shards=1, samples=2), tmp_path / "out")
    assert shapes == [(2, 5, 3, 32, 32)]


def test_clips_are_cut_as_in_the_tokenizers_run_by_default(tmp_path, write_tar, numbered_file, capsys):
    run = tmp_path / "small"
    save_component(tiny_tokenizer(image_size=16), run / "tokenizer")
    write_tar(tmp_path / "in" / "0.tar", [("k.mp4", numbered_file(64, size=64))])
    words = ["data", "encode", "--tokenizer", str(run), "--input", str(tmp_path / "in"), "--output"]

    def clip(name, *more):
        assert divot([*words, str(tmp_path / name), *more]) == 0
        return read_index(tmp_path / name)["settings"]["clip"]

    # A component without a run's settings: what its ViT reads.
    assert clip("a") == {"height": 16, "width": 16, "frames": 16, "fps": 8.0, "short_videos": "refuse"}
    settings = {"clip": {"height": 48, "width": 64, "frames": 8, "fps": 4.0, "short_videos": "squeeze"}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": "x.Y", "init_args": settings}}))
    assert clip("b") == settings["clip"]
    assert "clips of 8 frames of 48 x 64 at 4 per second; made" in capsys.readouterr().out
    assert clip("c", "--size", "32", "--fps", "8")["height"] == clip("c", "--size", "32", "--fps", "8")["width"] == 32
    assert clip("e", "--short-videos", "refuse")["short_videos"] == "refuse"
    encode_shards(run, tmp_path / "in", tmp_path / "d")
    assert read_index(tmp_path / "d")["settings"]["clip"] == clip("b")


def test_a_sample_of_many_videos_is_skipped(run, tmp_path, write_tar, numbered_file, capsys):
    members = [(f"story.clip{number}.mp4", numbered_file()) for number in range(3)]
    write_tar(tmp_path / "in" / "0.tar", [*members, ("k.mp4", numbered_file())])
    words = [
        "data",
        "encode",
        "--tokenizer",
        str(run),
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert divot([*words, "--max-sample-clips", "2", "--max-skipped-fraction", "0.5"]) == 0
    assert "left out: 1 (too_many_clips 1)" in capsys.readouterr().out
    assert open_source(tmp_path / "out").counts == (1,)


def test_a_full_output_is_reported_and_the_call_resumes_with_room(run, video_shards, tmp_path):
    folder = video_shards(shards=1, samples=40)
    with pytest.raises(UserError, match=r"cannot be written: .*\nMake room"), limited_file_size(12_000):
        encode_shards(run, folder, tmp_path / "out")
    assert encode_shards(run, folder, tmp_path / "out").samples == 40


def test_pictures_and_several_clips_are_encoded(run, tmp_path, write_tar, picture_file, numbered_file):
    members = [("p.jpg", picture_file()), ("tale.clip0.mp4", numbered_file()), ("tale.clip1.mp4", numbered_file())]
    write_tar(tmp_path / "in" / "0.tar", members)
    encode_shards(run, tmp_path / "in", tmp_path / "out")
    source = open_source(tmp_path / "out")
    first, second = (source.read(0, index) for index in range(2))
    assert json.loads(first.members["json"]) == {"kind": "image"}
    assert second.key == "tale"
    assert [SampleDecoder()(raw, None).features.shape for raw in (first, second)] == [(1, 3, 4), (2, 3, 4)]


def test_a_jsonl_is_encoded_in_several_shards(run, tmp_path, numbered_file):
    (tmp_path / "v.mp4").write_bytes(numbered_file())
    line = json.dumps({"video": "v.mp4", "caption": "numbers"}) + "\n"
    (tmp_path / "list.jsonl").write_text(line * 5)
    settings = EncodeConfig(samples_per_shard=2)
    assert encode_shards(run, tmp_path / "list.jsonl", tmp_path / "out", settings).shards == 3
    source = open_source(tmp_path / "out")
    assert source.counts == (2, 2, 1)
    assert json.loads(source.read(2, 0).members["json"]) == {"caption": "numbers"}
    assert source.key(2, 0) == "line5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_clips": 0}, "max_clips is 0"),
        ({"max_sample_clips": 0}, "max_sample_clips is 0"),
        ({"samples_per_shard": -1}, "samples_per_shard is -1"),
        ({"precision": "16"}, "precision is '16'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        EncodeConfig(**changes)


def test_the_index_names_the_tokenizer_and_a_second_call_does_nothing(run, video_shards, tmp_path):
    folder = video_shards()
    encode_shards(run, folder, tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert index["kind"] == "features"
    assert index["settings"]["tokenizer_sha256"] == weights_sha256(run / "tokenizer")
    assert encode_shards(run, folder, tmp_path / "out").already_there


def test_features_of_videos_that_were_replaced_are_not_taken_for_theirs(run, tmp_path, write_tar, numbered_file):
    path = write_tar(tmp_path / "in" / "0.tar", [("k.mp4", numbered_file())])
    encode_shards(run, tmp_path / "in", tmp_path / "out")
    other = bytearray(path.read_bytes())
    other[other.index(b"mdat") + 40] ^= 1
    path.write_bytes(other)
    with pytest.raises(UserError, match="already contains shards of other settings: source_content"):
        encode_shards(run, tmp_path / "in", tmp_path / "out")


def test_feature_folders_of_earlier_versions_are_still_theirs(run, video_shards, tmp_path):
    encode_shards(run, video_shards(), tmp_path / "out")
    index = read_index(tmp_path / "out")
    for name in ("source_content", "max_sample_clips"):
        del index["settings"][name]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    assert encode_shards(run, tmp_path / "shards", tmp_path / "out").already_there


def test_an_interrupted_call_is_continued(run, video_shards, tmp_path, monkeypatch):
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


def test_unusable_samples_are_skipped_within_the_budget(run, video_shards, tmp_path):
    folder = video_shards(extra=[("zbad.mp4", b"rubbish")])
    with pytest.raises(UserError, match="1 of 4 samples"):
        encode_shards(run, folder, tmp_path / "out")
    assert read_index(tmp_path / "out") is None
    report = encode_shards(run, folder, tmp_path / "out", budget=Budget(0.5))
    assert (report.samples, len(report.skipped)) == (6, 2)


def test_features_are_not_encoded_again(run, video_shards, tmp_path):
    encode_shards(run, video_shards(), tmp_path / "out")
    with pytest.raises(UserError, match="holds features already"):
        encode_shards(run, tmp_path / "out", tmp_path / "again")


def test_a_run_without_a_tokenizer_is_named(tmp_path, video_shards):
    with pytest.raises(UserError, match="nowhere"):
        encode_shards(tmp_path / "nowhere", video_shards(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "told"), [({"batch_size": 0}, "batch_size is 0"), ({"device": "nope"}, "'nope'")])
def test_options_that_cannot_work_are_refused_before_anything_is_written(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        encode_shards(tmp_path, tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
