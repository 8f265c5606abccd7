"""Random states go into a file and come back."""

import io
import random
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from divot_lightning.checkpoint.rng_state import RandomStates, fresh_state, random_state, set_random_state


def _draws() -> tuple[float, float, float, float]:
    return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))


def test_states_that_went_through_a_file_give_the_same_numbers() -> None:
    random.gauss(0, 1)
    np.random.randn()
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    expected = [_draws() for _ in range(3)]
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert [_draws() for _ in range(3)] == expected


def test_fresh_states_differ_by_seed_step_and_rank_and_leave_the_generators_alone() -> None:
    kept = random_state()
    drawn = set()
    for seed, step, rank in ((1, 5, 0), (1, 5, 1), (1, 6, 0), (2, 5, 0), (1, 5, 0)):
        set_random_state(fresh_state(seed, step, rank))
        drawn.add(_draws())
    assert len(drawn) == 4
    set_random_state(kept)
    expected = _draws()
    set_random_state(kept)
    fresh_state(1, 2, 3)
    assert _draws() == expected


def test_a_resume_with_another_number_of_processes_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0)
    checkpoint = {"random_states": [random_state()] * 2, "global_step": 3}
    RandomStates().on_load_checkpoint(trainer, pl.LightningModule(), checkpoint)
    assert "2 processes before, 1 now: random states (dropout) start anew" in capsys.readouterr().err
