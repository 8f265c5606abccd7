"""Blocks compiled by torch: `CompileBlocks` is a callback for any stage."""

from collections.abc import Iterator

from lightning import Callback, LightningModule, Trainer
from torch import nn

from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.errors import UserError
from divot_lightning.models.recompilation import allow_many_versions


class CompileBlocks(Callback):
    """Compiles each block of the networks by itself with `torch.compile`, which starts sooner than compiling the whole.

    Names in checkpoints stay as they are; values change by rounding. In a recipe or on the command line::

        --trainer.callbacks+=divot_lightning.training.block_compilation.CompileBlocks

    Args:
        backend: Backend of `torch.compile`; "inductor" needs a C++ compiler, and on GPUs Triton.
        mode: Mode of `torch.compile`, such as "max-autotune-no-cudagraphs"; None for its default.
        dynamic: Whether lengths vary. None lets torch find out: it compiles again when a length first changes.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None, dynamic: bool | None = None) -> None:
        self.settings = {"backend": backend, "mode": mode, "dynamic": dynamic}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile the blocks of the stage, frozen ones too.

        Raises:
            UserError: ZeRO stage 3, or the stage has no blocks.
        """
        strategy = trainer.strategy
        if isinstance(strategy, DivotDeepSpeedStrategy) and strategy.zero_stage_3:
            raise UserError(
                "CompileBlocks has no use with divot_zero3, which gathers weights between the layers of a block\n"
                "set --trainer.strategy divot_zero2, or leave the callback out"
            )
        blocks = list(repeated_blocks(pl_module))
        if not blocks:
            raise UserError(f"CompileBlocks: {type(pl_module).__name__} has no blocks; leave the callback out")
        allow_many_versions()
        for block in blocks:
            block.compile(**self.settings)


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: what stands in a `ModuleList`, or what a model of diffusers names so itself.

    >>> layer = nn.TransformerEncoderLayer(4, 1, 4)
    >>> encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    >>> len(list(repeated_blocks(nn.Sequential(nn.Linear(4, 4), encoder))))
    3
    """
    named = getattr(module, "_repeated_blocks", None)
    if named:
        yield from (each for each in module.modules() if type(each).__name__ in named)
        return
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from repeated_blocks(child)
