"""Muon under ZeRO takes the steps of one process, and its checkpoints are those of one process."""

from pathlib import Path

import torch
from tiny_run import TinyStage, step_folder, train
from torch import Tensor

from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig
from divot_lightning.testing import run_distributed

STRATEGIES = ("divot_zero1", "divot_zero2", "divot_zero3", "divot_zero2_offload_torch", "divot_zero3_offload_torch")
STOP, END = 3, 6


def _run(root: Path, strategy: str = "auto", resume: Path | None = None) -> dict[str, Tensor]:
    """Train to the end, with clipping that changes every step, and return the trained weights."""
    parameters: dict[str, Tensor] = train(
        root,
        END,
        strategy=strategy,
        devices=1 if strategy == "auto" else 2,
        resume=resume,
        stage=TinyStage(optimizer="muon"),
        settings=CheckpointConfig(every_steps=STOP, keep_all=True),
        gradient_clip_val=0.1,
    )["parameters"][END]
    return parameters


def _under_zero(rank: int, root: Path) -> dict[str, list[dict[str, Tensor]]]:
    """Train under each strategy: straight, from the middle, and from a checkpoint of one process."""
    found = {}
    for name in STRATEGIES:
        straight = _run(root / name, name)
        again = _run(root / f"{name}_again", name, step_folder(root / name, STOP))
        found[name] = [straight, again, _run(root / f"{name}_from_one", name, step_folder(root / "one", STOP))]
    return found


def test_steps_and_checkpoints_are_those_of_one_process(tmp_path: Path) -> None:
    alone = _run(tmp_path / "one")
    ranks = run_distributed(_under_zero, 2, tmp_path, timeout=240)
    for name in STRATEGIES:
        for straight, again, from_one in (rank[name] for rank in ranks):
            torch.testing.assert_close(again, straight, rtol=0, atol=0, msg=name.__add__)
            for weights in (straight, from_one):
                torch.testing.assert_close(weights, alone, rtol=1e-5, atol=1e-6, msg=name.__add__)
        from_zero = _run(tmp_path / f"{name}_to_one", resume=step_folder(tmp_path / name, STOP))
        torch.testing.assert_close(from_zero, alone, rtol=1e-5, atol=1e-6, msg=name.__add__)
