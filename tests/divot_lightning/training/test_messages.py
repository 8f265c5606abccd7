"""What jsonargparse says about a recipe, in few lines."""

import pytest
from jsonargparse import ArgumentParser

from divot_lightning.training.messages import condense


@pytest.mark.parametrize(
    ("key", "path", "wrong", "near", "supplied"),
    [
        ("detokenizer.denoiser", "divot_backbones.denoisers.video_dit.VideoDiT", "widthh", "width", "condition_dim"),
        ("head", "divot_heads.gmm.GMMHead", "num_componentss", "num_components", "hidden_dim"),
    ],
)
def test_sizes_that_models_supply_are_not_listed_as_settings_of_a_part(key, path, wrong, near, supplied):
    message = (
        f"Parser key \"model.{key}\":\n  Problem with given class_path '{path}':\n    Option '{wrong}' is not accepted"
    )
    told = condense(message, ArgumentParser())
    assert f"'model.{key}.{wrong}' is no setting of {path.rpartition('.')[2]}. Did you mean '{near}'?" in told
    assert near in told.splitlines()[1]
    assert supplied not in told


@pytest.mark.parametrize(
    ("key", "path", "derived"),
    [
        ("detokenizer.denoiser", "divot_backbones.denoisers.video_dit.VideoDiT", "channels"),
        ("detokenizer.denoiser", "divot_backbones.denoisers.video_dit.VideoDiT", "grid"),
        ("detokenizer.denoiser", "divot_backbones.denoisers.video_dit.VideoDiT", "condition_dim"),
        ("head", "divot_heads.gmm.GMMHead", "feature_dim"),
    ],
)
def test_a_size_of_a_part_that_is_derived_is_refused_with_the_reason(key, path, derived):
    refused = f"Problem with given class_path '{path}':\n    Option '{derived}' is not accepted"
    message = f'Parser key "model.{key}":\n  {refused}'
    told = condense(message, ArgumentParser())
    assert told.splitlines()[0] == f"'model.{key}.{derived}' is derived from the other parts; leave it out."
