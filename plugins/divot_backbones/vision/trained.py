"""The vision encoder of a tokenizer that a run has trained.

Letters: B clips, F frames, T steps in time, P patches per step, C channels.
"""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from divot_lightning.checkpoint.components import load_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.part import PartSpec, spec_of
from divot_lightning.parts.registries.kinds import VISION_ENCODERS
from divot_lightning.parts.vision_encoders import VisionEncoder


class TrainedVision(VisionEncoder):
    """Takes the vision encoder, with its weights, out of the tokenizer of an earlier run.

    For a tokenizer that starts with an encoder that was trained before, frozen or not; and for REPA in the toy world,
    which has no pretrained encoder.
    """

    def __init__(self, *, run: str | None = None, frozen: bool = True, encoder: dict[str, Any] | None = None) -> None:
        """Load the encoder.

        Args:
            run: Run folder whose tokenizer has the encoder.
            frozen: Whether the encoder is not trained.
            encoder: Class and settings of the encoder, which component folders record; a recipe gives `run` instead.
        """
        super().__init__(frozen)
        if (run is None) == (encoder is None):
            raise UserError(f"trained vision encoder: run is {run!r} and encoder is {encoder!r}; give run alone")
        if run is not None:
            self.source = str(find_component(run, "tokenizer"))
            self.model = load_component(self.source, VideoTokenizer).vision
        else:
            self.model = PartSpec(**(encoder or {})).build(VISION_ENCODERS, "the stored tokenizer")
        self.init_args = {"run": None, "frozen": frozen, "encoder": asdict(spec_of(self.model))}
        self.model.frozen = frozen
        self.model.requires_grad_(not frozen)
        sizes = {name: getattr(self.model, name) for name in ("patch_dim", "grid", "image_size", "frame_stride")}
        self.describe(**sizes)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        """Return the patch features of the encoder, (B, T, P, C); see `VisionEncoder.encode`."""
        return self.model(frames_BF3HW)
