"""Whether DeepSpeed is there, and how it runs without a GPU."""

import importlib.util
import os

import torch

from divot_lightning.errors import UserError


def require_deepspeed() -> None:
    """Refuse if DeepSpeed is not installed; keep it off CUDA if there is no GPU.

    Raises:
        UserError: It is not installed; the message has the command.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "strategy divot_zero*: DeepSpeed is not installed\n"
            "in a checkout of divot-lightning: pip install '.[deepspeed]'; or take another strategy such as ddp"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def prepare_deepspeed_for_cpu() -> None:
    """Make DeepSpeed compute on the CPU, without a communication kernel that only inference needs."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    # It would be compiled at the start of every first run, for up to a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
