"""The optimizer that a checkpoint's states belong to."""

import pytest

from divot_lightning.checkpoint.optimizer_state import check_families
from divot_lightning.errors import UserError


def test_states_under_the_name_of_an_earlier_version_are_read() -> None:
    check_families({"a": "Float32Muon", "b": "FusedAdam"}, {"a": "Muon", "b": "AdamW"})


@pytest.mark.parametrize(
    ("stored", "live", "told"),
    [
        ({"a": "Muon"}, {"a": "AdamW"}, "has Muon states for a, but this run trains it with AdamW"),
        ({}, {"a": "AdamW"}, "has no states for a, but"),
        ({"a": "Muon"}, {}, "has Muon states for a, but this run trains it with no optimizer"),
    ],
)
def test_states_of_another_optimizer_are_refused(stored: dict[str, str], live: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_families(stored, live)
