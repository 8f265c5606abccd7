"""The released model code's recorded outputs (tests/data, random weights at a small size), from the released names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from divot_lightning.errors import UserError
from divot_lightning.interop.import_video_llm import AGENT_RULES
from divot_lightning.interop.released_keys import RESAMPLER_RULES, TOKENIZER, KeyTable, from_released, with_prefixes
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.projectors import RELEASED_NAMES, mlp_projector
from tests.divot_lightning.interop.test_import_tokenizer import config

DATA = Path(__file__).parents[2] / "data"
CONDITION_RESAMPLER = KeyTable("condition resampler", with_prefixes(RESAMPLER_RULES, "image_proj_model.", ""))
PROJECTORS = KeyTable("projectors", {theirs: ours for theirs, ours in AGENT_RULES.items() if "_resampler" in theirs})
RECORDED = {
    TOKENIZER.part: ("tokenizer_state", ""),
    CONDITION_RESAMPLER.part: ("detokenizer_state", "image_proj_model."),
    PROJECTORS.part: ("projectors", ("input_resampler.", "output_resampler.")),
}


def load(name):
    return {key: value.float() for key, value in load_file(DATA / f"{name}.safetensors").items()}


def recorded_weights(table):
    name, prefix = RECORDED[table.part]
    return {key: value for key, value in load(name).items() if key.startswith(prefix)}


def condition_resampler():
    return PerceiverResampler(dim=64, depth=2, num_queries=90, embedding_dim=16, output_dim=48)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_tokenizer_behind_its_vit_gives_the_recorded_tokens():
    model = VideoTokenizer(config())
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
    ("ours", "sizes", "names", "given", "expected"),
    [
        ("input_projector.", (16, 32, 32), {}, "features", "llm_inputs"),
        ("head.proj.", (32, 132, 132), {"names": RELEASED_NAMES}, "hidden", "gmm_params"),
    ],
)
def test_projectors_give_the_recorded_outputs(ours, sizes, names, given, expected):
    model, weights = mlp_projector(*sizes, **names), from_released(recorded_weights(PROJECTORS), PROJECTORS)
    model.load_state_dict({name.removeprefix(ours): value for name, value in weights.items() if name.startswith(ours)})
    recorded = load("projectors")
    torch.testing.assert_close(model(recorded[given]), recorded[expected], atol=1e-5, rtol=0)


@pytest.mark.parametrize("table", [TOKENIZER, CONDITION_RESAMPLER, PROJECTORS])
def test_no_two_released_names_become_one(table):
    released = recorded_weights(table)
    assert len(from_released(released, table)) == len(released)


@pytest.mark.parametrize("table", [TOKENIZER, CONDITION_RESAMPLER, PROJECTORS])
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


def test_a_part_ignores_only_its_named_neighbour():
    released = {"vit_model.model.visual.proj": 1, "norm.weight": 2}
    assert from_released(released, TOKENIZER) == {"pooled_norm.weight": 2}


def test_placeholders_stand_for_one_part_of_a_name():
    with pytest.raises(UserError, match=r"norm\.extra\.weight"):
        from_released({"norm.extra.weight": 1}, TOKENIZER)


def test_unknown_released_names_are_an_error_that_shows_them():
    released = {"norm.weight": 1, "nrom.weight": 2}
    with pytest.raises(UserError, match=r"released tokenizer: 1 of 2 names.*'nrom\.weight'"):
        from_released(released, TOKENIZER)
