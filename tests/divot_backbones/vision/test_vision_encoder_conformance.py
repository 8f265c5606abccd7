from divot_backbones.vision.clip import ClipVision
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.testing import VisionEncoderConformance
from tests.divot_backbones.vision.tiny_models import TINY


class TestClip(VisionEncoderConformance):
    def make_encoder(self, frozen: bool) -> VisionEncoder:
        return ClipVision(frozen=frozen, image_size=16, patch_size=4, width=16, layers=2, heads=2)


class OfTransformers(VisionEncoderConformance):
    model_type = ""
    image_size: int | None = None

    def make_encoder(self, frozen: bool) -> VisionEncoder:
        config = {"model_type": self.model_type, **TINY[self.model_type]}
        return TransformersVision(config=config, frozen=frozen, image_size=self.image_size)


class TestDINOv2(OfTransformers):
    model_type = "dinov2"


class TestDINOv2WithRegisters(OfTransformers):
    model_type = "dinov2_with_registers"


class TestDINOv3(OfTransformers):
    model_type = "dinov3_vit"


class TestSigLIP(OfTransformers):
    model_type = "siglip_vision_model"


class TestSigLIPAtAnotherSize(OfTransformers):
    model_type, image_size = "siglip_vision_model", 24


class TestSigLIP2NaFlex(OfTransformers):
    model_type = "siglip2_vision_model"


class TestViT(OfTransformers):
    model_type = "vit"


class TestVJEPA2(OfTransformers):
    model_type = "vjepa2"


class TestVJEPA2AtAnotherSize(OfTransformers):
    model_type, image_size = "vjepa2", 24
