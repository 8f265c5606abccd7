"""Check the contract of a vision encoder, by a test class to subclass.

Shape letters: B clips, F frames, T steps in time, P patches per step, C channels, H W pixels.
"""

import copy
import json
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.errors import UserError
from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.preflight.shapes import without_weights


class VisionEncoderConformance(ABC):
    """Test a vision encoder against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyEncoder(VisionEncoderConformance):
            def make_encoder(self, frozen):
                return MyEncoder(frozen=frozen, width=16)

    Make the encoder small, since every test builds its own.

    Attributes:
        rounding_tolerance: Largest mean difference between features in bfloat16 and in float32, as a fraction of the
            mean size of the features.
    """

    rounding_tolerance: ClassVar[float] = 0.1

    @abstractmethod
    def make_encoder(self, frozen: bool) -> VisionEncoder:
        """Build the encoder under test.

        Args:
            frozen: Its setting `frozen`.

        Returns:
            The encoder, on the CPU, in float32.
        """

    def test_patches_have_the_stated_shape(self) -> None:
        """(B, F / frame_stride, rows x columns, patch_dim), finite, for any number of clips and whole steps."""
        encoder = self._encoder()
        rows, columns = encoder.grid
        for num_clips, num_steps in ((1, 1), (3, 2), (2, 3)):
            patches_BTPC = encoder(self._frames(encoder, num_clips, num_steps))
            expected = (num_clips, num_steps, rows * columns, encoder.patch_dim)
            assert patches_BTPC.shape == expected, f"patches are {tuple(patches_BTPC.shape)}; must be {expected}"
            assert patches_BTPC.is_floating_point(), f"patches are {patches_BTPC.dtype}"
            assert patches_BTPC.isfinite().all(), "patches are not finite"

    def test_frames_of_any_size_are_taken(self) -> None:
        """The encoder resizes: a frame of one colour has the same features in every size."""
        encoder = self._encoder()
        size = encoder.image_size
        grey = self._frames(encoder, 1, 1)[..., :1, :1]
        expected = encoder(grey.expand(*grey.shape[:-2], size, size))
        for height, width in ((2 * size, 2 * size), (size, 2 * size + 1), (size // 2 + 1, size - 1)):
            patches_BTPC = encoder(grey.expand(*grey.shape[:-2], height, width))
            assert patches_BTPC.shape == expected.shape, f"frames of {height} x {width} give {patches_BTPC.shape}"
            assert_close(patches_BTPC, expected, atol=1e-3, rtol=1e-3)

    def test_patches_lie_row_by_row(self) -> None:
        """Changing the pixels of one patch changes most the features at its place."""
        encoder = self._encoder()
        rows, columns = encoder.grid
        frames_BF3HW = self._frames(encoder, 1, 1)
        height, width = encoder.image_size // rows, encoder.image_size // columns
        row, column = rows // 3, columns - 1
        changed = frames_BF3HW.clone()
        changed[..., row * height : (row + 1) * height, column * width : (column + 1) * width] *= -1
        moved_P = (encoder(changed) - encoder(frames_BF3HW)).square().sum(dim=-1)[0, 0]
        assert moved_P.argmax() == row * columns + column, (
            f"row {row}, column {column} was changed, and the features of patch {moved_P.argmax()} moved most"
        )

    def test_steps_follow_the_frames_in_time(self) -> None:
        """Changing the frames of one step changes most the features of that step."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 1, 3)
        changed = frames_BF3HW.clone()
        changed[:, encoder.frame_stride : 2 * encoder.frame_stride] *= -1
        moved_T = (encoder(changed) - encoder(frames_BF3HW)).square().sum(dim=(-2, -1))[0]
        assert moved_T.argmax() == 1, f"the frames of step 1 were changed, and step {moved_T.argmax()} moved most"

    def test_clips_do_not_see_each_other(self) -> None:
        """A clip has the same features alone and beside others."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 3, 2)
        assert_close(encoder(frames_BF3HW)[1:2], encoder(frames_BF3HW[1:2]), atol=1e-4, rtol=1e-4)

    def test_the_same_frames_have_the_same_features(self) -> None:
        """In eval mode nothing is random."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 2, 1)
        assert torch.equal(encoder(frames_BF3HW), encoder(frames_BF3HW)), "the encoder is random in eval mode"

    def test_frames_that_fill_no_whole_step_are_refused(self) -> None:
        """One frame too many is an error that names the numbers."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 1, 2)[:, 1:]
        try:
            encoder(frames_BF3HW)
        except UserError:
            assert encoder.frame_stride > 1
        else:
            assert encoder.frame_stride == 1, "frames that fill no whole step are taken"

    def test_frozen_encoder_is_not_trained(self) -> None:
        """It stays in eval mode, and neither weights nor features have a gradient."""
        encoder = self._encoder(frozen=True).train()
        assert encoder.frozen, "the setting `frozen` did not reach VisionEncoder.__init__"
        assert not any(module.training for module in encoder.modules()), "a frozen encoder is in training mode"
        names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        assert not names, f"frozen weights want gradients: {names}; call `describe` last in __init__"
        assert not encoder(self._frames(encoder, 1, 1)).requires_grad, "features of a frozen encoder carry a gradient"

    def test_every_weight_of_a_trained_encoder_gets_a_gradient(self) -> None:
        """A weight without one fails under DDP; remove what patch features do not use."""
        encoder = self._encoder(frozen=False).train()
        assert encoder.training, "a trained encoder does not follow train()"
        patches_BTPC = encoder(self._frames(encoder, 2, 2))
        patches_BTPC.backward(torch.randn(patches_BTPC.shape, generator=_generator(3)))
        for name, parameter in encoder.named_parameters():
            assert parameter.requires_grad, f"{name} is not trained, although the encoder is not frozen"
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"

    def test_autocast_changes_features_by_rounding_only(self) -> None:
        """Features under bfloat16 autocast are near those in float32."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 2, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = encoder(frames_BF3HW)
        self._assert_near(rounded, encoder(frames_BF3HW))

    def test_weights_in_bfloat16_change_features_by_rounding_only(self) -> None:
        """A `bf16-true` recipe stores weights and frames in bfloat16."""
        encoder = self._encoder()
        frames_BF3HW = self._frames(encoder, 2, 1)
        expected = encoder(frames_BF3HW)
        self._assert_near(encoder.bfloat16()(frames_BF3HW.bfloat16()), expected)

    def test_settings_rebuild_the_encoder(self) -> None:
        """`init_args` survive JSON; with the saved weights they give the same features."""
        encoder = self._encoder()
        twin = type(encoder)(**json.loads(json.dumps(encoder.init_args)))
        assert twin.init_args == encoder.init_args, "the rebuilt encoder has other settings"
        assert twin.source is None, "init_args lead to the source again; a component folder has to do without it"
        for name in ("patch_dim", "grid", "image_size", "frame_stride", "frozen"):
            assert getattr(twin, name) == getattr(encoder, name), f"the rebuilt encoder has another {name}"
        twin.load_state_dict(encoder.state_dict())
        frames_BF3HW = self._frames(encoder, 2, 1)
        assert torch.equal(twin.eval()(frames_BF3HW), encoder(frames_BF3HW)), "the rebuilt encoder has other features"

    def test_copies_keep_their_settings(self) -> None:
        """A deep copy, as weight averaging makes it, keeps its settings."""
        encoder = self._encoder()
        assert copy.deepcopy(encoder).init_args == encoder.init_args

    def test_shapes_are_known_without_memory(self) -> None:
        """`divot preflight` runs the encoder on the meta device; building it there computes its number of steps."""
        with torch.device("meta"):
            encoder = self.make_encoder(False)
        assert all(parameter.is_meta for parameter in encoder.parameters()), "weights were made outside of the device"
        with without_weights():
            encoder = self.make_encoder(False).to("meta")
        rows, columns = encoder.grid
        frames_BF3HW = torch.empty(2, encoder.frame_stride, 3, 2 * rows, 3 * columns, device="meta")
        assert encoder(frames_BF3HW).shape == (2, 1, rows * columns, encoder.patch_dim)

    def _encoder(self, frozen: bool = False) -> VisionEncoder:
        torch.manual_seed(0)
        return self.make_encoder(frozen).eval()

    def _frames(self, encoder: VisionEncoder, num_clips: int, num_steps: int) -> Tensor:
        """Return random frames in the size that the encoder reads."""
        size = encoder.image_size
        shape = (num_clips, num_steps * encoder.frame_stride, 3, size, size)
        return torch.rand(shape, generator=_generator(1)) * 2 - 1

    def _assert_near(self, rounded: Tensor, expected: Tensor) -> None:
        assert rounded.isfinite().all(), "features in bfloat16 are not finite"
        difference = (rounded.float() - expected).abs().mean() / expected.abs().mean()
        assert difference < self.rounding_tolerance, f"bfloat16 changes features by {difference:.3f} of their size"


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
