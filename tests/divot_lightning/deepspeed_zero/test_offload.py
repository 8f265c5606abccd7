"""If DeepSpeed's CPU Adam cannot be compiled, the message has the reason and the alternatives."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from deepspeed.ops.op_builder import CPUAdamBuilder
from torch.optim import AdamW

from divot_lightning.deepspeed_zero import offload
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torch compiles the kernel; nothing is in it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return offload.build_folder(CPUAdamBuilder().name)


def _fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(CPUAdamBuilder, "load", load)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Error building extension 'cpu_adam'\nlong output"), "Error building extension 'cpu_adam'"),
        (RuntimeError("Ninja is required to load C++ extensions"), "Ninja is required to load C"),
        (RuntimeError("some words\n/usr/bin/ld: error: cannot find -lstdc"), "/usr/bin/ld: error: cannot find -lstdc"),
        (OSError(), "OSError"),
    ],
)
def test_a_kernel_that_cannot_be_compiled_is_refused_with_reason_and_alternatives(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    _fails(monkeypatch, error)
    with pytest.raises(UserError, match="cannot be compiled here") as caught:
        DivotDeepSpeedStrategy(stage=2, offload_optimizer=True).adamw()
    message = str(caught.value)
    assert f"here: {reason}" in message
    assert "divot_zero2_offload_torch" in message
    assert len(message.splitlines()) <= 5
    assert "compiling DeepSpeed's CPU Adam" in capsys.readouterr().err


def test_the_lock_of_a_compilation_that_was_killed_is_named_and_not_waited_for(folder: Path) -> None:
    lock = folder / "lock"
    lock.touch()
    offload.check_lock(folder)
    long_ago = time.time() - 2 * offload.STALE_SECONDS
    os.utime(lock, (long_ago, long_ago))
    with pytest.raises(UserError, match=f"rm {lock}"):
        offload.offloaded_adamw()


def test_without_offload_or_when_asked_for_torch_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(monkeypatch, AssertionError("is not to be compiled"))
    assert DivotDeepSpeedStrategy(stage=2).adamw() is AdamW
    assert DivotDeepSpeedStrategy(stage=3, offload_optimizer=True, torch_adam=True).adamw() is AdamW


def test_a_setting_of_offload_without_it_is_refused() -> None:
    with pytest.raises(UserError, match="torch_adam has no effect without offload_optimizer"):
        DivotDeepSpeedStrategy(stage=2, torch_adam=True)
    with pytest.raises(UserError, match="offload_parameters needs ZeRO stage 3, not 2"):
        DivotDeepSpeedStrategy(stage=2, offload_parameters=True)
