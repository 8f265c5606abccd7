"""State of optimizers and learning-rate schedules in checkpoints: their progress, not their settings.

Rates, decay and the form of the schedule are the recipe's and the command line's, so that they may be changed at a
resume; moments, step counters and the position in the schedule are the checkpoint's.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.errors import UserError

_SAME_STATES = {
    **dict.fromkeys(("DeepSpeedCPUAdam", "FusedAdam", "Adam"), "AdamW"),
    **dict.fromkeys(("Float32Muon", "PartitionedMuon"), "Muon"),
}


class OptimizerEntry(NamedTuple):
    """The optimizer of one parameter.

    Attributes:
        optimizer: Its family; those of one family keep the same states.
        states: The states that it keeps, such as `exp_avg`.
    """

    optimizer: str
    states: dict[str, TensorSpec]


def leaf_optimizers(optimizers: Iterable[Any]) -> list[Optimizer]:
    """Return the optimizers that keep states: a joint optimizer has `parts`.

    Args:
        optimizers: Optimizers, perhaps wrapped by Lightning.
    """
    plain = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
    return [part for optimizer in plain for part in getattr(optimizer, "parts", [optimizer])]


def family(optimizer: Optimizer) -> str:
    """Return the optimizer whose states these are.

    >>> import torch
    >>> family(torch.optim.Adam([torch.zeros(1, requires_grad=True)]))
    'AdamW'
    """
    name = type(optimizer).__name__
    return _SAME_STATES.get(name, name)


def check_families(stored: dict[str, str], live: dict[str, str]) -> None:
    """Refuse states of one optimizer for another one.

    Args:
        stored: Family by parameter in the checkpoint.
        live: Family by parameter in this run.

    Raises:
        UserError: A parameter has another optimizer than before, or only one of the two has one.
    """
    for name in sorted({*stored, *live}):
        then = stored.get(name, "no")
        # Earlier versions stored the name of the optimizer's class.
        if _SAME_STATES.get(then, then) != live.get(name, "no"):
            raise UserError(
                f"the checkpoint has {then} states for {name}, "
                f"but this run trains it with {live.get(name, 'no optimizer')}\n"
                "continue with the optimizer it was trained with (such as --model.optimizer), or start a new run"
            )


def restore_schedulers(configs: Sequence[LRSchedulerConfig], states: Sequence[dict[str, Any]]) -> None:
    """Restore the position of schedules.

    For a schedule that is a function of the step (all of ours) the rates follow from the settings of this run. Any
    other schedule computes its rates from those of the step before; these are restored.

    Args:
        configs: The schedules of this run.
        states: Their stored states.

    Raises:
        UserError: There are more or fewer schedules than before.
    """
    if len(configs) != len(states):
        raise UserError(
            f"the checkpoint has {len(states)} learning-rate schedules, this run has {len(configs)}\n"
            "continue with as many as before, or start a new run"
        )
    for config, state in zip(configs, states, strict=True):
        scheduler = config.scheduler
        if isinstance(scheduler, LambdaLR):
            scheduler.last_epoch, scheduler._step_count = state["last_epoch"], state["_step_count"]
            at_step = [function(scheduler.last_epoch) for function in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(scheduler.base_lrs, at_step, strict=True)]
        else:
            scheduler.load_state_dict(state)
            rates = state.get("_last_lr", [])
        for group, rate in zip(getattr(scheduler.optimizer, "param_groups", []), rates, strict=False):
            group["lr"] = rate
        scheduler._last_lr = list(rates)
