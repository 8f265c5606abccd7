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


NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'divot_lightning.training.stages.llm_pretraining.LLMPretraining':
        Parser key "head":
          Type collections.abc.Callable[[int, int], X] expects a function: Parser key "num_components":
            Expected a <class 'int'>. Got value: three. Got value: Namespace(class_path='divot_heads.gmm.GMMHead')
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='head.num_components', val='three')"""

UNION = """Parser key "trainer.gradient_clip_val":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'float'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'float'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: big"""


def test_words_of_several_lists_are_named_once():
    errors = ["Literal[64, 32]", "Literal['32-true', '32']", "Literal['32', 'bf16']"]
    listed = "\n".join(f"    - Expected a typing.{each}" for each in errors)
    message = f'Parser key "trainer.precision":\n  Errors:\n{listed}\n  Given value: 3'
    told = "'trainer.precision' is '3'; it must be one of 64, 32, '32-true', '32', 'bf16'"
    assert condense(message, ArgumentParser()) == told


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (NESTED, "'model.head.num_components' is 'three'; it must be a whole number"),
        (UNION, "'trainer.gradient_clip_val' is 'big'; it must be a number"),
        (
            "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: five",
            "'trainer.max_steps' is 'five'; it must be a whole number",
        ),
        (
            'Parser key "data.clip.short_videos":\n'
            "  Expected a typing.Literal['refuse', 'squeeze']. Got value: stretch",
            "'data.clip.short_videos' is 'stretch'; it must be one of 'refuse', 'squeeze'",
        ),
    ],
)
def test_a_value_of_another_type_is_told_in_plain_words(message, told):
    assert condense(message, ArgumentParser()) == told
