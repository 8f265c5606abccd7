"""CLIP similarity between clips and their captions, the CLIPSIM of text-to-video papers.

Shape letters: B batch, F frames, N images, H height, W width, E width of CLIP's common space.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from divot_lightning.errors import UserError
from divot_lightning.evaluation.protocol import folder_sha256
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import ItemMetric

FRAMES_AT_A_TIME = 256


class ClipTextSimilarity:
    """Cosine between a caption and each frame of its clip, averaged over the frames.

    Frames are prepared by transformers' own image processor of the folder (Pillow: short side resized, middle cut out,
    normalised), so that the number does not depend on which image libraries are installed. Numbers in papers are
    from different models, which cannot be compared: ViT-B/16 or B/32 in most, ViT-G/14 in Divot's ablations.

    Args:
        folder: A transformers folder of a CLIP model with its tokenizer and image processor.
        device: Where the model runs.

    Raises:
        UserError: The folder cannot be loaded.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        try:
            self.model = CLIPModel.from_pretrained(str(folder), local_files_only=True).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            self.processor: Any = CLIPImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{str(folder)!r} cannot be loaded as a CLIP model ({type(error).__name__}): it needs config.json,\n"
                "model.safetensors, the tokenizer's files and preprocessor_config.json, as transformers writes them.\n"
                "To get one: hf download openai/clip-vit-base-patch16 --local-dir FOLDER"
            ) from error

    @torch.no_grad()
    def __call__(self, video_BFCHW: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the similarity of each clip and its caption.

        Args:
            video_BFCHW: uint8 in [0, 255].
            captions: One per clip; cut off at the model's longest text.

        Returns:
            (B,) float64 in [-1, 1].
        """
        text_BE = functional.normalize(self._texts(captions).double(), dim=-1)
        parts = video_BFCHW.flatten(0, 1).split(FRAMES_AT_A_TIME)
        image_NE = functional.normalize(torch.cat([self._images(part) for part in parts]).double(), dim=-1)
        image_BFE = image_NE.unflatten(0, video_BFCHW.shape[:2])
        return (image_BFE * text_BE[:, None]).sum(dim=-1).mean(dim=1).cpu()

    def _texts(self, captions: Sequence[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, mask = words["input_ids"].to(self.model.device), words["attention_mask"].to(self.model.device)
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def _images(self, images_NCHW: Tensor) -> Tensor:
        pixels = self.processor(images=list(images_NCHW.cpu().numpy()), return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output


class ClipSimilarity(ItemMetric):
    """Mean CLIP similarity over clips.

    Args:
        folder: Of the model, see `ClipTextSimilarity`.
        device: Where it runs.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    scores: ClassVar[tuple[str, ...]] = ("clip_similarity",)

    def __init__(self, folder: str, device: str = "cpu") -> None:
        super().__init__()
        self.similarity = ClipTextSimilarity(folder, device)
        self.source = {"name": Path(folder).name, "sha256": folder_sha256(folder)}

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return the similarity of a clip and its prompt."""
        assert prediction.clip is not None
        return {"clip_similarity": self.similarity(prediction.clip[None], [str(item.facts["prompt"])]).item()}

    def describe(self) -> dict[str, Any]:
        """Return name and hash of the model."""
        return {"clip_model": self.source}
