"""Predict the bytes that a process needs for a stage, by strategy and precision; arithmetic only.

The rules for DeepSpeed follow the code of its optimizers (version 0.19). A process has all parameters in the precision
of training; a float32 master copy and optimizer states of its partition; and gradients of all parameters under stage 1,
of its partition under stages 2 and 3.
"""

from dataclasses import dataclass

FLOAT32_BYTES = 4
HALF_BYTES = 2


@dataclass(frozen=True)
class ProcessLayout:
    """How a stage is spread over processes.

    Attributes:
        world_size: Number of processes.
        zero_stage: ZeRO stage, 0 without DeepSpeed.
        precision: Lightning's name: `32-true`, `bf16-mixed`, `bf16-true` ...
        offload_optimizer: Master copy and states are in the host's memory.
        offload_parameters: Sharded parameters are in the host's memory too.
        bucket_elements: Gradients sent at a time by DeepSpeed, in elements.
        per_node: Number of processes of one machine.
        device: Kind of device, "cpu" or "cuda", which decides what autocast computes in half precision.
    """

    world_size: int = 1
    zero_stage: int = 0
    precision: str = "32-true"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket_elements: int = 50_000_000
    per_node: int = 1
    device: str = "cpu"

    @property
    def parameter_bytes(self) -> int:
        """Bytes of a parameter; DeepSpeed has half-precision parameters under `-mixed` too."""
        half = self.precision.startswith(("bf16", "16")) and (self.zero_stage > 0 or self.precision.endswith("true"))
        return HALF_BYTES if half else FLOAT32_BYTES


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one process on its device, and in the host's memory where offload puts them there.

    Attributes:
        weights: Parameters, trained and frozen.
        gradients: Of the trained parameters, with communication buckets.
        optimizer: Master copy, states and a moving average.
        host: Bytes that offload moved to the host's memory.
    """

    weights: int
    gradients: int
    optimizer: int
    host: int = 0

    @property
    def device(self) -> int:
        """Bytes on the device in all."""
        return self.weights + self.gradients + self.optimizer


def rank_memory(trained: int, frozen: int, states: int, layout: ProcessLayout, *, averaged: bool = False) -> RankMemory:
    """Predict the memory of one process.

    Args:
        trained: Elements of parameters that are trained.
        frozen: Elements of those that are not.
        states: Elements of the optimizer's states; AdamW has two per trained element.
        layout: The layout.
        averaged: Whether a moving average of the trained parameters is kept.

    Example:
        >>> rank_memory(1000, 0, 2000, ProcessLayout()).device == 4 * (1000 + 1000 + 2000)
        True
        >>> rank_memory(1000, 0, 2000, ProcessLayout(2, zero_stage=3, precision="bf16-mixed"))
        RankMemory(weights=1000, gradients=3000, optimizer=6000, host=0)
    """
    size, world = layout.parameter_bytes, layout.world_size
    if layout.zero_stage == 0:
        buckets = trained * size if world > 1 else 0  # DDP's buckets, a second copy of the gradients
        average = trained * FLOAT32_BYTES if averaged else 0
        return RankMemory((trained + frozen) * size, trained * size + buckets, states * size + average)
    partition = -(-trained // world)
    average = partition * FLOAT32_BYTES if averaged else 0
    weights = (trained + frozen) * size // (world if layout.zero_stage == 3 else 1)
    bucket = min(layout.bucket_elements, trained) * size if layout.zero_stage > 1 else 0
    gradients = (trained if layout.zero_stage == 1 else partition) * size + (0 if world == 1 else bucket)
    optimizer = partition * FLOAT32_BYTES + -(-states // world) * FLOAT32_BYTES
    host = (optimizer if layout.offload_optimizer else 0) + (weights if layout.offload_parameters else 0)
    return RankMemory(
        weights=0 if layout.offload_parameters else weights,
        gradients=gradients,
        optimizer=(0 if layout.offload_optimizer else optimizer) + average,
        host=host,
    )


def checkpoint_bytes(
    trained: int, stored: int, buffers: int, states: int, layout: ProcessLayout, *, averaged: bool = False
) -> int:
    """Predict the size of a checkpoint folder without its small parts: names, settings, random states.

    Args:
        trained: Elements of parameters that are trained.
        stored: Elements of frozen parameters that are loaded from no folder, so that the checkpoint must hold them.
        buffers: Bytes of persistent buffers.
        states: Elements of the optimizer's states.
        layout: The layout; under DeepSpeed the float32 master copy is stored.
        averaged: Whether a moving average of the trained parameters is kept.
    """
    size = FLOAT32_BYTES if layout.zero_stage else layout.parameter_bytes
    average = trained * FLOAT32_BYTES if averaged else 0
    return (trained + states) * size + average + stored * layout.parameter_bytes + buffers
