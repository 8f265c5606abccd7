"""Every number of a built-in part or config has a limit, and a value beyond it is refused by name when it is set."""

import inspect
import math
from functools import partial

import pytest
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.loading.skipped_samples import Budget
from divot_datamodules.preparation.inspection import inspect_source
from divot_datamodules.preparation.packing import PackConfig
from divot_datamodules.toy.shards import ToyDataConfig
from divot_datamodules.toy.story_shards import ToyStoryConfig
from divot_datamodules.video_text import VideoTextData
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig
from divot_lightning.errors import UserError
from divot_lightning.inference.feature_encoding import EncodeConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.registries.kinds import DENOISERS, HEADS, OPTIMIZERS, VISION_ENCODERS

VISION = {"frozen": False, "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
SIZES = {
    **{"temporal_width": 32, "temporal_layers": 1, "temporal_heads": 2, "pool_size": 4, "spatiotemporal_width": 32},
    **{"spatiotemporal_layers": 1, "spatiotemporal_heads": 2, "num_tokens": 4, "resampler_layers": 1},
    **{"resampler_heads": 2, "resampler_head_dim": 8, "token_dim": 8},
}


def installed(registry):
    return [part for part in registry.installed() if part.distribution == "divot-lightning"]


def tokenizer(**sizes):
    return VideoTokenizer(TokenizerConfig(vision=partial(VISION_ENCODERS.load("clip"), **VISION), **sizes))


def denoiser(**sizes):
    return DENOISERS.load("video_dit")(3, 4, (4, 4), 2, 8, **sizes)


MAKERS = {
    "vision": (VISION_ENCODERS.load("clip"), VISION),
    "tokenizer": (tokenizer, SIZES),
    "denoiser": (denoiser, {"patch_frames": 2, "patch_size": 1, "width": 32, "layers": 1, "heads": 2}),
    **{f"head {part.name}": (partial(HEADS.load(part.name), 16, 8), {}) for part in installed(HEADS)},
    **{f"optimizer {part.name}": (OPTIMIZERS.load(part.name), {}) for part in installed(OPTIMIZERS)},
    "sampling": (SamplingConfig, {}),
    "clip": (ClipConfig, {}),
    "budget": (Budget, {}),
    "checkpoint": (CheckpointConfig, {"every_steps": 1}),
    "toy": (ToyDataConfig, {}),
    "stories": (ToyStoryConfig, {}),
    "pack": (PackConfig, {"clip_seconds": 2.0}),
    "encode": (EncodeConfig, {}),
    "data": (VideoTextData, {}),
    "decoder": (SampleDecoder, {}),
    "inspection": (partial(inspect_source, None), {}),
}
ANY = {"time_mean", "crf", "streams", "shuffle_buffer", "batch_size", "train_fraction"}
"""Settings that may be negative, and those of the data that are checked with the data themselves."""


def numbers(make, given):
    """Yield each setting whose value is a number, with a value that is none of its own."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    for name, value in {**defaults, **given}.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ANY:
            yield name, -1 if isinstance(value, int) else math.nan


CASES = [(owner, name, value) for owner, (make, given) in MAKERS.items() for name, value in numbers(make, given)]


@pytest.mark.parametrize(("owner", "name", "value"), CASES)
def test_a_number_beyond_its_limit_is_refused_by_name(owner, name, value):
    make, given = MAKERS[owner]
    with torch.device("meta"), pytest.raises(UserError, match=str(value)) as refused:
        make(**{**given, name: value})
    assert len(str(refused.value).splitlines()) <= 5


@pytest.mark.parametrize("owner", [owner for owner in MAKERS if owner != "inspection"])
def test_the_usual_numbers_are_taken(owner):
    make, given = MAKERS[owner]
    with torch.device("meta"):
        assert make(**given) is not None
