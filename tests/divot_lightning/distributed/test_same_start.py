"""Ranks that would start differently."""

from pathlib import Path

import pytest

from divot_lightning.distributed.same_start import Start, check_same_start
from divot_lightning.errors import UserError


def test_a_rank_that_sees_another_checkpoint_or_other_settings_is_named() -> None:
    here = Start.of(Path("checkpoints/step_00000200"), "seed: 0")
    check_same_start([here, here])
    with pytest.raises(UserError, match="rank 2 starts from checkpoint step_00000100, rank 0 from step_00000200"):
        check_same_start([here, here, Start.of(Path("checkpoints/step_00000100"), "seed: 0")])
    with pytest.raises(UserError, match="rank 1 starts from settings"):
        check_same_start([here, Start.of(Path("checkpoints/step_00000200"), "seed: 1")])
    with pytest.raises(UserError, match="rank 1 starts from checkpoint nothing"):
        check_same_start([here, Start.of(None, "seed: 0")])
