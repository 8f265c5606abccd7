from functools import partial

import pytest
import torch

from divot_backbones.vision.trained import TrainedVision
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.testing.vision_encoder_conformance import VisionEncoderConformance
from tests.divot_lightning.models.tokenizer.test_video_tokenizer import clip, tiny


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(tiny())
    save_component(tokenizer, tmp_path / "run" / "tokenizer")
    return tokenizer


@pytest.mark.parametrize("frozen", [True, False])
def test_it_encodes_as_the_tokenizer_of_the_run_does(tokenizer, tmp_path, frozen):
    encoder = TrainedVision(run=str(tmp_path / "run"), frozen=frozen)
    video = clip()
    assert torch.equal(encoder(video), tokenizer.vision(video))
    assert {value.requires_grad for value in encoder.parameters()} == {not frozen}
    assert encoder(video).requires_grad is not frozen


def test_a_tokenizer_with_it_is_stored_and_built_again_without_the_run(tokenizer, tmp_path):
    vision = partial(TrainedVision, run=str(tmp_path / "run"))
    second, video = VideoTokenizer(tiny(vision=vision)), clip()
    save_component(second, tmp_path / "second")
    (tmp_path / "run").rename(tmp_path / "gone")
    loaded = load_component(tmp_path / "second", VideoTokenizer)
    assert torch.equal(loaded(video), second(video))


def test_it_needs_a_run():
    with pytest.raises(UserError, match="run is None and encoder is None; give run alone"):
        TrainedVision()


class TestConformance(VisionEncoderConformance):
    def make_encoder(self, frozen):
        sizes = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}
        return TrainedVision(
            frozen=frozen, encoder={"class_path": "divot_backbones.vision.clip.ClipVision", "init_args": sizes}
        )
