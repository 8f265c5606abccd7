"""A check that all ranks start from the same checkpoint with the same settings."""

from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.io.files import text_sha256


class Start(NamedTuple):
    """Checkpoint and settings that a rank starts with.

    Attributes:
        checkpoint: Name of the checkpoint folder, "nothing" for a new run.
        settings: Hash of the resolved settings.
    """

    checkpoint: str
    settings: str

    @classmethod
    def of(cls, checkpoint: Path | None, config: str) -> "Start":
        """Describe the start with a checkpoint and the text of `config.yaml`."""
        return cls(checkpoint.name if checkpoint else "nothing", text_sha256(config)[:12])


class SameStart(Callback):
    """Refuses ranks that start differently, before anything is built.

    Each rank reads the run folder itself; on another node it may see older files, or have another recipe.

    Attributes:
        start: Checkpoint and settings of this rank; set it before training.
    """

    def __init__(self) -> None:
        self.start: Start | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the starts of all ranks."""
        check_same_start(Ranks.all().gather(self.start))


def check_same_start(starts: list[Start | None]) -> None:
    """Compare the starts of ranks.

    Raises:
        UserError: Two differ; the message names the rank.
    """
    for rank, start in enumerate(starts):
        if start != starts[0]:
            assert start is not None
            assert starts[0] is not None
            what = "checkpoint" if start.checkpoint != starts[0].checkpoint else "settings"
            raise UserError(
                f"rank {rank} starts from {what} {getattr(start, what)}, rank 0 from {getattr(starts[0], what)}\n"
                "do all nodes see the same run folder and the same recipe, and was it written a moment ago?"
            )
