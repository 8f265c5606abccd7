"""Registration of our strategies with Lightning by name, so that `--trainer.strategy divot_zero2` works."""

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

STRATEGIES: dict[str, dict[str, Any]] = {
    "divot_zero1": {"stage": 1},
    "divot_zero2": {"stage": 2},
    "divot_zero3": {"stage": 3},
    "divot_zero2_offload": {"stage": 2, "offload_optimizer": True},
    "divot_zero3_offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "divot_zero2_offload_torch": {"stage": 2, "offload_optimizer": True, "torch_adam": True},
    "divot_zero3_offload_torch": {
        "stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
        "torch_adam": True,
    },
}
"""Names for the command line with their arguments; see `DivotDeepSpeedStrategy`."""


def register_strategies() -> None:
    """Register `STRATEGIES` with Lightning; may be called again. Imports no DeepSpeed."""
    from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy

    for name, settings in STRATEGIES.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(
                name, DivotDeepSpeedStrategy, description=f"DeepSpeed ZeRO {settings}", **settings
            )
