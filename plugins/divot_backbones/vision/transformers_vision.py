"""SigLIP, SigLIP 2, DINOv2, DINOv3, V-JEPA 2 and ViT, as transformers has them, behind one class.

Letters: B clips, F frames, T steps in time, P patches per step, C channels, H W pixels.
"""

from math import isqrt
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from divot_backbones.vision.families import FAMILIES, WHOLE_MODELS, Family
from divot_backbones.vision.loading import drop_unused, gather_borrowed, load_vision_model, local_files, not_found
from divot_backbones.vision.pixels import normalize, resize
from divot_lightning.errors import UserError, first_line
from divot_lightning.parts.vision_encoders import VisionEncoder

NOT_STORED = {"architectures", "dtype", "id2label", "label2id", "transformers_version", "_name_or_path"}
"""Keys of a config that say where weights came from or what a classifier's classes are, not what the network is."""


class TransformersVision(VisionEncoder):
    """Encodes frames with a vision model of transformers: SigLIP, SigLIP 2, DINOv2, DINOv3, V-JEPA 2 or ViT.

    The features are the model's last hidden state, after its final LayerNorm if it has one, without class token and
    registers. What patch features do not use (pooling, mask token, V-JEPA's predictor) is removed, so every remaining
    weight gets a gradient. V-JEPA 2 sees a whole clip; all others see each frame by itself.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        frozen: bool = True,
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        """Load or build the model; give either `pretrained` or `config`.

        Args:
            pretrained: Folder or hub name of a model; of one with a text part the vision part is loaded. A name is
                looked up in the hub's local cache.
            revision: Branch, tag or commit of a model of the hub.
            config: `model_type` and other keys of a transformers config, for random weights.
            frozen: Whether the model is not trained and stays in eval mode.
            image_size: Height and width, in pixels, that frames are resized to, a multiple of the patch size; None is
                the model's own. Models with position embeddings resize them.
            mean: Mean of the channels in [0, 1], which is subtracted; None is the model's own.
            std: Standard deviation of the channels; None is the model's own.
        """
        super().__init__(frozen)
        if (pretrained is None) == (config is None):
            raise UserError(
                f"vision: pretrained={pretrained!r} and config={config!r}; give exactly one of them: "
                "a folder or a hub name, or the config of a model with random weights"
            )
        settings = _read_config(pretrained, revision) if pretrained is not None else _new_config(config or {})
        self.family = family = FAMILIES[settings.model_type]
        self.model = _build(family, settings, pretrained, revision, image_size)
        drop_unused(self.model, family.unused)
        self.source = pretrained
        size = image_size or _own_size(family, settings)
        own_mean, own_std = _normalisation(family, pretrained, revision)
        self.mean, self.std = mean or own_mean, std or own_std
        self.init_args = {
            "config": _stored(settings),
            "frozen": frozen,
            "image_size": size,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        side = _num_patches(size, settings.patch_size)
        self.describe(
            patch_dim=settings.hidden_size,
            grid=(side, side),
            image_size=size,
            frame_stride=getattr(settings, "tubelet_size", 1),
        )

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        """Return the patch features, (B, T, P, C); see `VisionEncoder.encode`."""
        images_N3HW = resize(frames_BF3HW.flatten(0, 1), self.image_size)
        pixels_BF3HW = normalize(images_N3HW, self.mean, self.std).unflatten(0, frames_BF3HW.shape[:2])
        gather_borrowed(self.model, self.family.borrowed)
        tokens_BTLC = self.family.run(self.model, pixels_BF3HW)
        return tokens_BTLC[:, :, self.family.num_prefix_tokens(self.model.config) :]


def _read_config(pretrained: str, revision: str | None) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(pretrained, **local_files(revision), trust_remote_code=False)
    except OSError as error:
        raise not_found(pretrained) from error
    except ValueError as error:
        raise UserError(f"vision.pretrained: {pretrained!r}: {first_line(error)}") from error
    if config.model_type in WHOLE_MODELS:
        config = config.vision_config
    _require_family(config.model_type, f" of {pretrained!r}")
    return config


def _new_config(given: dict[str, Any]) -> PreTrainedConfig:
    model_type = given.get("model_type")
    _require_family(model_type)
    unknown = sorted(set(given) - _known_keys(str(model_type)))
    if unknown:
        raise UserError(f"vision.config: {model_type} has no setting {', '.join(unknown)}; see transformers' docs")
    try:
        return AutoConfig.for_model(**given)
    except (TypeError, ValueError) as error:
        raise _unfitting(model_type, error) from error


def _known_keys(model_type: str) -> set[str]:
    return set(AutoConfig.for_model(model_type).to_dict())


def _stored(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what builds the model again; the configs of some folders have further keys that transformers ignores."""
    kept = _known_keys(config.model_type) - NOT_STORED
    stored = {name: value for name, value in config.to_diff_dict().items() if name in kept}
    return {**stored, "model_type": config.model_type}


def _require_family(model_type: Any, origin: str = "") -> None:
    if model_type not in FAMILIES:
        raise UserError(
            f"vision: model_type {model_type!r}{origin} is not supported; supported: {', '.join(sorted(FAMILIES))}\n"
            "for CLIP use the encoder 'clip'; for other models write an encoder: docs/parts/vision_encoders.md"
        )


def _build(
    family: Family, config: PreTrainedConfig, pretrained: str | None, revision: str | None, image_size: int | None
) -> PreTrainedModel:
    """Build the model; `config` is changed to what it is built from."""
    changes = dict(family.settings)
    if family.size_key == "crop_size" and image_size is not None:
        # V-JEPA computes positions from it; position embeddings of other models have the size of the weights.
        changes["crop_size"] = image_size
    for name, value in changes.items():
        setattr(config, name, value)
    _num_patches(image_size or _own_size(family, config), config.patch_size)
    model_class: type[PreTrainedModel] = getattr(transformers, family.model)
    if pretrained is not None:
        return load_vision_model(model_class, pretrained, revision, family.unused, config=config)
    try:
        return model_class(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unfitting(config.model_type, error) from error


def _unfitting(model_type: Any, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"vision.config: the settings of {model_type} do not fit together: {reason}")


def _own_size(family: Family, config: Any) -> int:
    """Return the height and width, in pixels, that the weights were made for."""
    if family.size_key is None:
        side = isqrt(config.num_patches)
        if side**2 != config.num_patches:
            raise UserError(f"vision.config: num_patches {config.num_patches} is no square, as positions need it")
        return side * int(config.patch_size)
    size = getattr(config, family.size_key)
    if not isinstance(size, int):
        raise UserError(f"vision.config: {family.size_key} {size} must be one number, for square images")
    return size


def _num_patches(image_size: int, patch_size: Any) -> int:
    """Return the number of patches along one side."""
    if not isinstance(patch_size, int) or patch_size < 1 or image_size < 1 or image_size % patch_size:
        raise UserError(
            f"vision: image_size {image_size} does not divide into patches of patch_size {patch_size}; "
            "choose an image_size that is a multiple of it"
        )
    return image_size // patch_size


def _normalisation(
    family: Family, pretrained: str | None, revision: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation: from the `preprocessor_config.json` of the weights, else of the family."""
    found: dict[str, Any] = {}
    if pretrained is not None:
        try:
            found, _ = ImageProcessingMixin.get_image_processor_dict(pretrained, **local_files(revision))
        except OSError:
            found = {}
    return tuple(found.get("image_mean") or family.mean), tuple(found.get("image_std") or family.std)
