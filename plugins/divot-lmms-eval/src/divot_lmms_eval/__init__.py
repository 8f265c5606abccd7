"""The model `divot` of lmms-eval: answers and scores answers with a trained run of divot-lightning."""

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval's entry-point group `lmms_eval.models` asks for: the name and the class of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="divot", simple_class_path="divot_lmms_eval.model.DivotModel")
