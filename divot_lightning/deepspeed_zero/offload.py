"""AdamW that steps in the host's memory: DeepSpeed's kernel, which is compiled on its first use."""

import time
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from divot_lightning.distributed.environment import say
from divot_lightning.errors import UserError

STALE_SECONDS = 1800.0
"""A compilation takes minutes. An older lock belongs to a killed process, and DeepSpeed would wait for it for ever."""

_WAYS_OUT = (
    "train with --trainer.strategy divot_zero2_offload_torch or divot_zero3_offload_torch: torch's AdamW, slower;\n"
    "or without offload: divot_zero2, divot_zero3"
)


def offloaded_adamw() -> type[Optimizer]:
    """Return DeepSpeed's AdamW for the CPU, compiled if it has not been.

    Raises:
        UserError: It cannot be compiled here; the message has the reason and the alternatives.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    builder = CPUAdamBuilder()
    folder = build_folder(builder.name)
    check_lock(folder)
    if not (folder / f"{builder.name}.so").is_file():
        say("compiling DeepSpeed's CPU Adam for the optimizer's offload: once, some minutes\n")
    try:
        builder.load(verbose=False)
    except Exception as error:  # whatever a compiler, a linker or a loader may come up with
        raise UserError(
            f"offload needs DeepSpeed's CPU Adam, which cannot be compiled here: {_reason(error)}\n{_WAYS_OUT}"
        ) from error
    return DeepSpeedCPUAdam


def build_folder(name: str) -> Path:
    """Return the folder where torch compiles an extension."""
    from torch.utils import cpp_extension

    compiled: Any = cpp_extension
    return Path(compiled._get_build_directory(name, False))


def check_lock(folder: Path) -> None:
    """Refuse to wait for a compilation that was killed.

    Raises:
        UserError: The folder holds a lock that is too old; the message names the file.
    """
    lock = folder / "lock"
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if age > STALE_SECONDS:
        raise UserError(
            f"a compilation of DeepSpeed's CPU Adam holds {lock} for {age / 60:.0f} minutes: it was killed\n"
            f"remove that file: rm {lock}"
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "not found" in line.lower()]
    return ((telling or lines or [type(error).__name__])[0])[:200]
