import json
from itertools import islice

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from safetensors.torch import save

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.preparation.feature_checks import check_features
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.writing import ShardFolder
from divot_datamodules.video_text import VideoTextData
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import weights_sha256
from divot_lightning.errors import UserError

CLIP = {"height": 32, "width": 32, "frames": 16, "fps": 8.0, "short_videos": "refuse"}


class Tiny(torch.nn.Linear):
    """Stands for a tokenizer: the checks look at its files only."""

    def __init__(self, value):
        super().__init__(1, 1)
        torch.nn.init.constant_(self.weight, value)
        self.config = ClipConfig()


@pytest.fixture
def tokenizers(tmp_path):
    """Two runs with different tokenizers."""
    for number in (0, 1):
        save_component(Tiny(float(number)), tmp_path / f"run{number}" / "tokenizer")
    return tmp_path / "run0", tmp_path / "run1"


@pytest.fixture
def features(tokenizers, tmp_path):
    """Feature shards of the first run's tokenizer."""
    sha256 = weights_sha256(tokenizers[0] / "tokenizer")
    settings = {"tokenizer_sha256": sha256, "clip": CLIP, "max_clips": 3}
    folder = ShardFolder(tmp_path / "features", kind="features", settings=settings)
    data = save({"tokens": torch.zeros(3, 4)}, {"tokenizer_sha256": sha256})
    members = {"features.safetensors": data, "json": b'{"caption": "x"}'}
    folder.write(0, [(f"k{number}", members) for number in range(4)])
    folder.finish()
    return tmp_path / "features"


@pytest.mark.parametrize("remote", [False, True])
def test_features_of_another_tokenizer_are_refused_wherever_they_lie(remote, tokenizers, features):
    shards = [f"file://{shard}" if remote else shard for shard in expand_shards(features)]
    assert check_features(shards, tokenizers[0]) == weights_sha256(tokenizers[0] / "tokenizer")
    with pytest.raises(UserError, match=r"features come from another tokenizer") as caught:
        check_features(shards, tokenizers[1])
    assert len(str(caught.value).splitlines()) <= 5


def test_a_tokenizer_that_is_trained_again_is_another_one(tokenizers, features):
    check_features(expand_shards(features), tokenizers[0])
    save_component(Tiny(7.0), tokenizers[0] / "tokenizer")
    with pytest.raises(UserError, match="another tokenizer"):
        check_features(expand_shards(features), tokenizers[0])


@pytest.mark.parametrize(
    ("clip", "max_clips", "message"),
    [
        (ClipConfig(height=64), 3, "height is 32, not 64"),
        (ClipConfig(fps=4.0), 3, "fps is 8.0, not 4.0"),
        (ClipConfig(frames=8), 3, "frames is 16, not 8"),
        (ClipConfig(short_videos="squeeze"), 3, "short_videos is 'refuse', not 'squeeze'"),
        (ClipConfig(), 20, "max_clips is 3, not 20"),
    ],
)
def test_features_of_other_clips_are_refused(clip, max_clips, message, tokenizers, features):
    with pytest.raises(UserError, match=message) as caught:
        check_features(expand_shards(features), tokenizers[0], clip, max_clips)
    assert len(str(caught.value).splitlines()) <= 5


def test_how_many_frames_are_decoded_makes_no_other_clips(tokenizers, features):
    check_features(expand_shards(features), tokenizers[0], ClipConfig(sparse_frames=5, max_pixels=10**6), 3)


def test_shards_of_videos_pass(tokenizers, video_shards):
    check_features(expand_shards(video_shards()), tokenizers[0], ClipConfig(), 1)


def test_shards_whose_index_cannot_be_read_pass_and_their_files_are_checked(tokenizers, features):
    (features / "index.json").unlink()
    shards = [f"file://{shard}" for shard in expand_shards(features)]
    check_features(shards, tokenizers[1])
    data = VideoTextData(str(features), tasks={"caption": 1.0}, tokenizer=str(tokenizers[1]), batch_size=2)
    data.setup("fit")
    with pytest.raises(UserError, match=r"foreign_features"):
        list(islice(data.train_dataloader(), 10))


def test_the_stages_own_tokenizer_is_the_one_that_counts(tokenizers, features, tmp_path):
    data = VideoTextData(str(features), tasks={"caption": 1.0}, max_clips=3)
    stage = BoringModel()
    stage.tokenizer_folder = tokenizers[1] / "tokenizer"
    trainer = Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False)
    with pytest.raises(UserError, match="another tokenizer"):
        trainer.fit(stage, datamodule=data)


def test_an_index_of_another_kind_says_nothing(tokenizers, features):
    index = json.loads((features / "index.json").read_text())
    (features / "index.json").write_text(json.dumps({**index, "kind": "video"}))
    check_features(expand_shards(features), tokenizers[1])
