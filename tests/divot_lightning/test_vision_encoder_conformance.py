"""Each test of the conformance class fails for an encoder that breaks its rule, and for that reason."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.testing import VisionEncoderConformance


class Colours(VisionEncoder):
    """An encoder that keeps every rule."""

    def __init__(self, frozen: bool = False, width: int = 6) -> None:
        super().__init__(frozen)
        self.layer = nn.Linear(3, width)
        self.describe(patch_dim=width, grid=(4, 5), image_size=20)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        colours = adaptive_avg_pool2d(frames_BF3HW.flatten(0, 1), self.grid).flatten(2).transpose(1, 2)
        return self.layer(colours).unflatten(0, frames_BF3HW.shape[:2])


class Pairs(Colours):
    """Keeps every rule too: the mean of every two frames."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.describe(patch_dim=6, grid=(4, 5), image_size=20, frame_stride=2)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return super().encode(frames_BF3HW).unflatten(1, (-1, 2)).mean(dim=2)


class WithAClassToken(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return nn.functional.pad(super().encode(frames_BF3HW), (0, 0, 1, 0))


class BrighterWhenWider(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return super().encode(frames_BF3HW) * (frames_BF3HW.shape[-1] / 20)


class ColumnByColumn(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return super().encode(frames_BF3HW).unflatten(2, self.grid).transpose(2, 3).flatten(2, 3)


class BackwardsInTime(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return super().encode(frames_BF3HW).roll(1, dims=1)


class WithBatchStatistics(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        patches_BTPC = super().encode(frames_BF3HW)
        return patches_BTPC - patches_BTPC.mean(dim=0)


class Random(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return super().encode(frames_BF3HW + 0.01 * torch.randn_like(frames_BF3HW))


class RoundsFramesUp(Pairs):
    def forward(self, frames_BF3HW: Tensor) -> Tensor:
        return self.encode(torch.cat([frames_BF3HW, frames_BF3HW[:, : frames_BF3HW.shape[1] % 2]], dim=1))


class FreezesTooEarly(Colours):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.late = nn.Linear(6, 6)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        return self.late(super().encode(frames_BF3HW))


class WithAnUnusedWeight(Colours):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.pooler = nn.Linear(3, 3)
        self.describe(patch_dim=6, grid=(4, 5), image_size=20)


class RoundsCoarsely(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        patches_BTPC = super().encode(frames_BF3HW)
        return patches_BTPC.round() if patches_BTPC.dtype == torch.bfloat16 else patches_BTPC


class StillLeadsToItsSource(Colours):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.source = "models/colours"


class AsksForValues(Colours):
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        assert float(frames_BF3HW.abs().max()) <= 1.0
        return super().encode(frames_BF3HW)


BROKEN = {
    "test_patches_have_the_stated_shape": (WithAClassToken, r"patches are \(1, 1, 21, 6\); must be \(1, 1, 20, 6\)"),
    "test_frames_of_any_size_are_taken": (BrighterWhenWider, "not close"),
    "test_patches_lie_row_by_row": (ColumnByColumn, "row 1, column 4 was changed, and the features of patch 17"),
    "test_steps_follow_the_frames_in_time": (BackwardsInTime, "step 1 were changed, and step 2 moved most"),
    "test_clips_do_not_see_each_other": (WithBatchStatistics, "not close"),
    "test_the_same_frames_have_the_same_features": (Random, "random in eval mode"),
    "test_frames_that_fill_no_whole_step_are_refused": (RoundsFramesUp, "fill no whole step are taken"),
    "test_frozen_encoder_is_not_trained": (FreezesTooEarly, "late.weight.*call `describe` last"),
    "test_every_weight_of_a_trained_encoder_gets_a_gradient": (WithAnUnusedWeight, "pooler.weight gets no gradient"),
    "test_autocast_changes_features_by_rounding_only": (RoundsCoarsely, "bfloat16 changes features by"),
    "test_weights_in_bfloat16_change_features_by_rounding_only": (RoundsCoarsely, "bfloat16 changes features by"),
    "test_settings_rebuild_the_encoder": (StillLeadsToItsSource, "init_args lead to the source again"),
    "test_shapes_are_known_without_memory": (AsksForValues, "meta"),
}


def conformance(encoder_class: type[VisionEncoder]) -> VisionEncoderConformance:
    """The conformance tests of an encoder, not collected but called here."""

    class Tested(VisionEncoderConformance):
        def make_encoder(self, frozen: bool) -> VisionEncoder:
            return encoder_class(frozen=frozen)

    return Tested()


@pytest.mark.parametrize("test", BROKEN)
def test_an_encoder_that_breaks_the_rule_fails_for_that_reason(test):
    encoder_class, reason = BROKEN[test]
    with pytest.raises(Exception, match=f"(?s){reason}"):
        getattr(conformance(encoder_class), test)()


@pytest.mark.parametrize("test", [name for name in dir(VisionEncoderConformance) if name.startswith("test_")])
@pytest.mark.parametrize("encoder_class", [Colours, Pairs])
def test_an_encoder_that_keeps_the_rules_passes(encoder_class, test):
    getattr(conformance(encoder_class), test)()
