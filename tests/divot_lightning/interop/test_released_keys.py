"""The released model code's recorded outputs (tests/data, random weights at a small size), from the released names."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from divot_backbones.vision.clip import ClipVision
from divot_lightning.errors import UserError
from divot_lightning.interop.released_keys import (
    CONDITION_RESAMPLER,
    INPUT_PROJECTOR,
    OUTPUT_PROJECTOR,
    TOKENIZER,
    KeyTable,
    from_released,
    to_released,
)
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.tokenizer.video_tokenizer import TokenizerConfig, VideoTokenizer
from divot_lightning.models.video_llm.projectors import mlp_projector

DATA = Path(__file__).parents[2] / "data"
RECORDED = {
    TOKENIZER.part: ("tokenizer_state", ""),
    CONDITION_RESAMPLER.part: ("detokenizer_state", "image_proj_model."),
    INPUT_PROJECTOR.part: ("projectors", "input_resampler."),
    OUTPUT_PROJECTOR.part: ("projectors", "output_resampler."),
}


def load(name):
    return {key: value.float() for key, value in load_file(DATA / f"{name}.safetensors").items()}


def recorded_weights(table):
    name, prefix = RECORDED[table.part]
    return {key: value for key, value in load(name).items() if key.startswith(prefix)}


def tokenizer():
    return VideoTokenizer(
        TokenizerConfig(
            vision=functools.partial(ClipVision, image_size=24, patch_size=4, width=48, layers=1, heads=4),
            temporal_width=48,
            temporal_layers=2,
            temporal_heads=12,
            pool_size=3,
            spatiotemporal_width=64,
            spatiotemporal_layers=2,
            spatiotemporal_heads=8,
            num_tokens=8,
            resampler_layers=2,
            token_dim=16,
        )
    )


def condition_resampler():
    return PerceiverResampler(dim=64, depth=2, num_queries=90, embedding_dim=16, output_dim=48)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_tokenizer_behind_its_vit_gives_the_recorded_tokens():
    model = tokenizer()
    left = model.load_state_dict(from_released(recorded_weights(TOKENIZER), TOKENIZER), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("vision.") for name in left.missing_keys)
    recorded = load("tokenizer_io")
    tokens = model.encode_patches(recorded["vit_last_hidden_state"][:, :, 1:])
    torch.testing.assert_close(tokens, recorded["tokens"], atol=1e-5, rtol=0)


def test_condition_resampler_gives_the_recorded_condition():
    model = condition_resampler()
    model.load_state_dict(from_released(recorded_weights(CONDITION_RESAMPLER), CONDITION_RESAMPLER))
    recorded = load("detokenizer_io")
    torch.testing.assert_close(model(recorded["tokens"]), recorded["condition"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("table", "sizes", "given", "expected"),
    [
        (INPUT_PROJECTOR, (16, 32, 32), "features", "llm_inputs"),
        (OUTPUT_PROJECTOR, (32, 132, 132), "hidden", "gmm_params"),
    ],
)
def test_projectors_give_the_recorded_outputs(table, sizes, given, expected):
    model = mlp_projector(*sizes)
    model.load_state_dict(from_released(recorded_weights(table), table))
    recorded = load("projectors")
    torch.testing.assert_close(model(recorded[given]), recorded[expected], atol=1e-5, rtol=0)


@pytest.mark.parametrize("table", [TOKENIZER, CONDITION_RESAMPLER, INPUT_PROJECTOR, OUTPUT_PROJECTOR])
def test_tables_read_in_both_directions(table):
    released = recorded_weights(table)
    there_and_back = to_released(from_released(released, table), table)
    assert there_and_back.keys() == released.keys()
    assert all(there_and_back[name] is released[name] for name in released)


@pytest.mark.parametrize("table", [TOKENIZER, CONDITION_RESAMPLER, INPUT_PROJECTOR, OUTPUT_PROJECTOR])
def test_each_pattern_of_a_table_is_used(table):
    released = recorded_weights(table)
    for pattern, ours in table.ours_by_released.items():
        assert from_released_or_none(released, KeyTable(table.part, {pattern: ours})), pattern


def from_released_or_none(released, table):
    """The names that a table of one pattern takes, one by one: the others are errors."""
    taken = []
    for name, value in released.items():
        try:
            taken += from_released({name: value}, table)
        except UserError:
            continue
    return taken


def test_each_part_ignores_only_its_named_neighbours():
    released = {"vit_model.model.visual.proj": 1, "norm.weight": 2}
    assert from_released(released, TOKENIZER) == {"pooled_norm.weight": 2}
    both_projectors = {"input_resampler.proj.0.bias": 3, "output_resampler.proj.0.bias": 4}
    assert from_released(both_projectors, OUTPUT_PROJECTOR) == {"hidden.bias": 4}


def test_placeholders_stand_for_one_part_of_a_name():
    with pytest.raises(UserError, match=r"norm\.extra\.weight"):
        from_released({"norm.extra.weight": 1}, TOKENIZER)


def test_unknown_released_names_are_an_error_that_shows_them():
    released = {"norm.weight": 1, "nrom.weight": 2}
    with pytest.raises(UserError, match=r"released tokenizer: 1 of 2 names.*'nrom\.weight'"):
        from_released(released, TOKENIZER)


def test_names_of_ours_without_a_released_one_are_an_error():
    with pytest.raises(UserError, match=r"'vision\.model\.x'"):
        to_released({"vision.model.x": 1}, TOKENIZER)
