"""The benchmarks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.captions import read_msrvtt
from divot_lightning.evaluation.benchmarks.items import BenchmarkData
from divot_lightning.evaluation.benchmarks.multiple_choice import (
    MVBENCH_TASKS,
    read_egoschema,
    read_mvbench,
)
from divot_lightning.evaluation.benchmarks.open_ended import read_activitynet_qa, read_msvd_qa
from divot_lightning.evaluation.benchmarks.perception_test import CUT_SPLITS, UNCUT, read_perception_test
from divot_lightning.evaluation.benchmarks.toy import read_toy_clips, read_toy_questions

Task = Literal["choice", "open", "caption", "generation"]


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read, and its task.

    Attributes:
        read: Folder and split in, items out.
        task: "choice" among options, "open" answers, a "caption", or "generation" of a clip.
        splits: Its splits, the default one first.
        toy: Whether its clips are those of the toy world, which an exact oracle reads.
    """

    read: Callable[[str | Path, str], BenchmarkData]
    task: Task
    splits: tuple[str, ...]
    toy: bool = False


_QA_SPLITS = ("test", "val", "train")
_TOY_SPLITS = ("held_out", "train")
_PERCEPTION_SPLITS = ("valid", "test", "train", "sample", *(f"{split}{UNCUT}" for split in CUT_SPLITS))
_MSRVTT_SPLITS = ("test", "validate", "train")

BENCHMARKS = {
    "egoschema": Benchmark(read_egoschema, "choice", ("subset", "full")),
    "perception_test": Benchmark(read_perception_test, "choice", _PERCEPTION_SPLITS),
    "mvbench": Benchmark(read_mvbench, "choice", ("test", *MVBENCH_TASKS)),
    "msvd_qa": Benchmark(read_msvd_qa, "open", _QA_SPLITS),
    "activitynet_qa": Benchmark(read_activitynet_qa, "open", _QA_SPLITS),
    "msrvtt": Benchmark(read_msrvtt, "caption", _MSRVTT_SPLITS),
    "msrvtt-generation": Benchmark(read_msrvtt, "generation", _MSRVTT_SPLITS),
    "toy": Benchmark(read_toy_clips, "generation", _TOY_SPLITS, toy=True),
    "toy-questions": Benchmark(read_toy_questions, "open", _TOY_SPLITS, toy=True),
    "toy-captions": Benchmark(read_toy_clips, "caption", _TOY_SPLITS, toy=True),
}


def find_benchmark(name: str, split: str | None = None) -> tuple[Benchmark, str]:
    """Return a benchmark and its split, by default the first one.

    Raises:
        UserError: There is no benchmark of that name, or it has no such split.
    """
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if split is not None and split not in benchmark.splits:
        raise UserError(f"{name} has no split {split!r}; it has: {', '.join(benchmark.splits)}")
    return benchmark, split or benchmark.splits[0]
