"""Every stage with all of its weights in bfloat16, in one process, without a strategy that casts for it."""

import pytest
import torch

from divot_lightning.errors import UserError
from tests.divot_lightning.training.test_stages_under_zero import fit, settings

__all__ = ["settings"]


@pytest.mark.parametrize("name", ["captioning", "pretraining", "tuning"])
def test_a_stage_trains_and_validates_in_bfloat16_with_losses_near_those_of_float32(name, settings):
    expected, found = (fit(name, settings, "auto", precision=precision) for precision in ("32-true", "bf16-true"))
    assert [key for key, _ in found["train"]] == [key for key, _ in expected["train"]]
    first = len(expected["train"]) // 2
    for (key, value), (_, wanted) in zip(found["train"][:first], expected["train"][:first], strict=True):
        assert value == pytest.approx(wanted, rel=0.1), key
    assert all(torch.tensor(value).isfinite() for _, value in found["train"])
    assert found["validation"].keys() == expected["validation"].keys() != set()


@pytest.mark.parametrize("name", ["tokenizer", "refinement", "adaptation"])
def test_a_stage_with_a_detokenizer_is_refused_by_name_and_told_what_to_do(name, settings):
    with pytest.raises(UserError, match=r"precision is bf16-true.*de-tokenizer(.|\n)*bf16-mixed(.|\n)*divot_zero1"):
        fit(name, settings, "auto", precision="bf16-true")
