"""One step of SGD on a head, alone and sharded by DeepSpeed ZeRO, to compare the two.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from divot_lightning.parts.heads import GenerationHead


def plain_update(head: GenerationHead, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the update of each parameter by one step of SGD with learning rate 1 on the mean loss of the ranks."""
    losses = [_rank_loss(head, rank, *batch) for rank, batch in enumerate(batches)]
    torch.stack(losses).mean().backward()
    return {name: torch.zeros_like(p) if p.grad is None else -p.grad for name, p in head.named_parameters()}


def _rank_loss(head: nn.Module, rank: int, hidden_BQD: Tensor, target_BQC: Tensor) -> Tensor:
    """Return the loss, with noise that depends on the rank."""
    torch.manual_seed(rank)
    return head(hidden_BQD, target_BQC)


def updates_under_zero(
    rank: int, head: GenerationHead, batches: list[tuple[Tensor, Tensor]], stages: tuple[int, ...]
) -> dict[int, dict[str, Tensor]]:
    """Take one step under each ZeRO stage, and return the update of each parameter by stage."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for a minute and serves inference only
    return {stage: _update_under_zero(deepspeed, rank, copy.deepcopy(head), batches[rank], stage) for stage in stages}


def _update_under_zero(
    deepspeed: Any, rank: int, head: GenerationHead, batch: tuple[Tensor, Tensor], stage: int
) -> dict[str, Tensor]:
    before = copy.deepcopy(head.state_dict())
    engine, *_ = deepspeed.initialize(
        model=head,
        optimizer=torch.optim.SGD(head.parameters(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    engine.backward(_rank_loss(engine, rank, *batch))
    engine.step()
    with deepspeed.zero.GatheredParameters(list(head.parameters())):
        return {name: p.detach() - before[name] for name, p in head.named_parameters()}
