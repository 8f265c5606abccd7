"""The encoder keeps the contract, and trains in a recipe that only gives its name."""

import json
from pathlib import Path

import pytest
import torch
from divot_vision_convnet import ConvNet

from divot_lightning import VideoTokenizer, find_component, load_component
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.testing import VisionEncoderConformance
from divot_lightning.testing.toy_shards import make_toy_shards


class TestConvNet(VisionEncoderConformance):
    """The contract of a vision encoder."""

    def make_encoder(self, frozen: bool) -> VisionEncoder:
        """Build a small encoder."""
        return ConvNet(frozen=frozen, image_size=16, width=16)


def test_a_patch_reaches_one_neighbour_per_block() -> None:
    """With one block, a patch changes the features of the patches around it and of no others."""
    torch.manual_seed(0)
    encoder = ConvNet(width=8, layers=1)
    for block in encoder.blocks:
        block.norm = torch.nn.Identity()
    frames = torch.rand(1, 1, 3, 32, 32)
    changed = frames.clone()
    changed[..., 8:12, 20:24] = 0  # row 2, column 5
    moved = (encoder(frames) - encoder(changed)).abs().amax(-1).view(8, 8) > 0
    assert moved.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (4, 5, 6)]


def test_size_that_is_no_multiple_is_refused_with_both_numbers() -> None:
    """The message contains the numbers."""
    with pytest.raises(UserError, match="image_size=30 is no multiple of patch_size=4"):
        ConvNet(image_size=30)


@pytest.mark.slow
def test_a_recipe_that_names_it_trains_and_the_tokenizer_is_loaded(tmp_path: Path) -> None:
    """`divot fit` with the toy recipe and the short name alone; the component records class and settings."""
    data = make_toy_shards(tmp_path / "data", train=8, validation=4, held_out=4)
    words = ["fit", "--config", "toy/tokenizer_pretraining", "--run", str(tmp_path / "run")]
    words += ["--model.tokenizer.vision", "convnet", "--model.tokenizer.vision.width", "16"]
    words += ["--data.train", str(data / "train"), "--data.validation", str(data / "validation")]
    words += ["--data.batch_size", "2", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    assert main(words) == 0
    folder = find_component(tmp_path / "run", "tokenizer")
    vision = json.loads((folder / "config.json").read_text())["config"]["vision"]
    assert vision["class_path"] == "divot_vision_convnet.encoder.ConvNet"
    assert vision["init_args"] == {"frozen": False, "image_size": 32, "patch_size": 4, "width": 16, "layers": 1}
    tokenizer = load_component(folder, VideoTokenizer)
    assert tokenizer(torch.rand(1, 16, 3, 32, 32) * 2 - 1).shape == (1, 16, 32)
