"""Checkpoints under DDP and ZeRO 1, 2 and 3 with real processes: exact at the same number of them, elastic at another.

Few groups of processes are started, since that takes longer than what they do; each does many runs.
"""

import resource
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors import safe_open
from tiny_run import PositionedData, TinyStage, register, step_folder, train, whole_parameters

from divot_lightning.checkpoint.folder_reading import CheckpointReader
from divot_lightning.checkpoint.folders import complete_checkpoints
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig, StepCheckpoint
from divot_lightning.checkpoint.weight_average import WeightAverage
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.testing import run_distributed

WORLDS = (1, 2, 3)
STRATEGIES = ("ddp", "divot_zero1", "divot_zero2", "divot_zero3")
OFFLOADED = ("divot_zero2_offload_torch", "divot_zero3_offload_torch")
STOP, END = 3, 6

Layout = tuple[str, int]
Case = tuple[Layout, Layout]

MINUTES = 8.0
"""Limit of a group of processes; where nothing else runs it takes about a third of a minute."""

ELASTIC: list[Case] = [
    *(((name, before), (name, after)) for name, before, after in product(STRATEGIES[1:], WORLDS, WORLDS)),
    (("ddp", 1), ("ddp", 2)),
    (("ddp", 3), ("ddp", 1)),
    (("divot_zero3", 3), ("ddp", 1)),
    (("ddp", 1), ("divot_zero3", 2)),
    (("divot_zero1", 2), ("divot_zero3", 3)),
    (("divot_zero3", 2), ("divot_zero1", 3)),
    (("divot_zero3", 3), ("divot_zero2", 2)),
    (("ddp", 2), ("divot_zero2", 1)),
]

KINDS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
}

EXACT: dict[int, list[tuple[str, str]]] = {
    2: [("ddp", "dropout"), *product(STRATEGIES[1:], KINDS), *product(OFFLOADED, ("clipping", "bf16-mixed"))],
    # Not DDP: after its first backward pass it sorts its buckets anew, and three ranks then sum in another order.
    3: [(name, "dropout") for name in STRATEGIES[1:]],
}


def _folder(root: str, layout: Layout, kind: str = "elastic") -> Path:
    return Path(root) / f"{kind}_{layout[0]}_{layout[1]}"


def _run(root: Path, layout: Layout, steps: int, resume: Path | None = None, dropout: float = 0.0, **rest: Any) -> Any:
    done = train(
        root,
        steps,
        strategy=layout[0],
        devices=layout[1],
        resume=resume,
        stage=TinyStage(dropout=dropout),
        callbacks=[WeightAverage(decay=0.5)],
        settings=CheckpointConfig(every_steps=STOP, keep_all=True),
        **rest,
    )
    return {
        "losses": done["losses"],
        "parameters": done["parameters"][steps],
        "seen": done["stage"].net.seen.clone(),
        "averages": _averages(root),
    }


def _averages(root: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(step_folder(root, END), Ranks())
    return {name: reader.get("ema", name) for name in reader.names("ema")}


def write_checkpoints(root: str, world: int) -> dict[Layout, Any]:
    """Train straight through, with a checkpoint in the middle."""
    return {(name, world): _run(_folder(root, (name, world)), (name, world), END) for name in STRATEGIES}


def read_checkpoints(root: str, world: int, befores: tuple[int, ...]) -> dict[Case, Any]:
    """Continue with `world` processes from checkpoints of `befores` processes."""
    found = {}
    for before, after in ELASTIC:
        if after[1] == world and before[1] in befores:
            folder = step_folder(_folder(root, before), STOP)
            found[before, after] = _run(Path(root) / "resumed" / f"{before}{after}", after, END, folder)
    return found


def resume_exactly(root: str, world: int, cases: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Run straight through and from the middle, with what makes resuming hard."""
    found = {}
    for name, kind in cases:
        settings = {**KINDS[kind], "dropout": 0.3}
        folder = _folder(root, (name, world), kind)
        straight = _run(folder, (name, world), END, **settings)
        found[name, kind] = straight, _run(folder, (name, world), END, step_folder(folder, STOP), **settings)
    return found


class FullDisk(Callback):
    """The disk of rank 1 is full at the end of step 3."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        full = trainer.global_step == 3 and trainer.global_rank == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (400 if full else hard, hard))


def fill_one_disk(root: str) -> list[str]:
    """Continue while one rank cannot write."""
    settings = CheckpointConfig(every_steps=1, keep_all=True, on_full_disk="continue")
    run = Path(root) / "full"
    train(run, 5, strategy="divot_zero2", devices=2, settings=settings, callbacks=[FullDisk()])
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def refuse_other_base(root: str) -> dict[str, str]:
    """Try to resume with another frozen module; return the message of each strategy."""
    said = {}
    for name in STRATEGIES:
        stage = TinyStage(base_seed=5)
        try:
            train(Path(root) / "other", 5, strategy=name, devices=2, stage=stage, resume=_stopped(root, name))
        except UserError as error:
            said[name] = f"{len(stage.losses)} steps: {error}"
    return said


def measure(root: str) -> dict[str, list[float]]:
    """Validate a checkpoint of one strategy under all of them, with trained and with averaged weights."""
    found: dict[str, list[float]] = {}
    for name, callbacks in product(STRATEGIES, ([], [WeightAverage()])):
        register()
        loading = StepCheckpoint(Path(root) / "none", CheckpointConfig(), _stopped(root, "divot_zero3"))
        settings = {"logger": False, "enable_progress_bar": False, "callbacks": [*callbacks, loading]}
        trainer = Trainer(accelerator="cpu", devices=2, strategy=name, **settings)
        trainer.validate(TinyStage(), PositionedData(), verbose=False)
        found.setdefault(name, []).append(float(trainer.callback_metrics["validation/loss"]))
    return found


def restore_frozen(root: str) -> dict[str, dict[str, torch.Tensor]]:
    """Resume one checkpoint under all strategies; return all parameters before the first step."""
    found = {}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            found[name] = whole_parameters(pl_module)

    for name in STRATEGIES:
        folder = _stopped(root, "divot_zero1")
        train(Path(root) / "look", 4, strategy=name, devices=2, resume=folder, callbacks=[Look()])
    return found


def _stopped(root: str, name: str) -> Path:
    return step_folder(_folder(root, (name, 2)), STOP)


def one(rank: int, root: str, again: bool) -> Any:
    return read_checkpoints(root, 1, (2, 3)) if again else (write_checkpoints(root, 1), read_checkpoints(root, 1, (1,)))


def two(rank: int, root: str) -> Any:
    written, read = write_checkpoints(root, 2), read_checkpoints(root, 2, (1, 2))
    extra = {
        "disk": fill_one_disk(root),
        "base": refuse_other_base(root),
        "measured": measure(root),
        "restored": restore_frozen(root),
    }
    return written, read, extra


def three(rank: int, root: str) -> Any:
    return write_checkpoints(root, 3), read_checkpoints(root, 3, (1, 2, 3)), resume_exactly(root, 3, EXACT[3])


def two_again(rank: int, root: str) -> Any:
    return read_checkpoints(root, 2, (3,)), resume_exactly(root, 2, EXACT[2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All runs, by what they are for; what a case gave is a list over ranks."""
    root = str(tmp_path_factory.mktemp("runs"))
    first = run_distributed(one, 1, root, False, timeout=60 * MINUTES)
    second = run_distributed(two, 2, root, timeout=60 * MINUTES)
    third = run_distributed(three, 3, root, timeout=60 * MINUTES)
    fourth = run_distributed(two_again, 2, root, timeout=60 * MINUTES)
    fifth = run_distributed(one, 1, root, True, timeout=60 * MINUTES)
    straight = [*_by_case([r[0] for r in first]), *_by_case([r[0] for r in second]), *_by_case([r[0] for r in third])]
    resumed = [
        *_by_case([r[1] for r in first]),
        *_by_case([r[1] for r in second]),
        *_by_case([r[1] for r in third]),
        *_by_case([r[0] for r in fourth]),
        *_by_case(fifth),
    ]
    return {
        "root": root,
        "straight": dict(straight),
        "resumed": dict(resumed),
        "exact": {3: dict(_by_case([r[2] for r in third])), 2: dict(_by_case([r[1] for r in fourth]))},
        "extra": [r[2] for r in second],
    }


def _by_case(ranks: list[dict[Any, Any]]) -> list[tuple[Any, list[Any]]]:
    return [(case, [rank[case] for rank in ranks]) for case in ranks[0]]


def _steps(ranks: list[Any]) -> dict[int, tuple[float, float, list[int]]]:
    """By step: the loss over all ranks, the rate, and the keys of all ranks."""
    rows = zip(*(rank["losses"] for rank in ranks), strict=True)
    return {
        row[0][0]: (sum(r[1] for r in row) / len(row), row[0][2], sorted(key for r in row for key in r[3]))
        for row in rows
    }


@pytest.mark.parametrize("case", ELASTIC, ids=lambda case: f"{case[0][0]}x{case[0][1]}-{case[1][0]}x{case[1][1]}")
def test_a_run_resumes_with_other_processes_as_if_it_never_stopped(runs: dict[str, Any], case: Case) -> None:
    reference = runs["straight"]["ddp", 1]
    expected = {step: row for step, row in _steps(reference).items() if step >= STOP}
    found = _steps(runs["resumed"][case])
    assert found.keys() == expected.keys()
    for step, (loss, rate, keys) in expected.items():
        assert found[step][0] == pytest.approx(loss, rel=1e-6, abs=1e-6)
        assert found[step][1:] == (rate, keys)
    for name, value in reference[0]["parameters"].items():
        torch.testing.assert_close(runs["resumed"][case][0]["parameters"][name], value, rtol=1e-6, atol=1e-6)
    assert torch.equal(runs["resumed"][case][-1]["seen"], reference[0]["seen"])


@pytest.mark.parametrize("layout", [(name, world) for name in STRATEGIES[1:] for world in WORLDS])
def test_averages_stay_the_same_with_other_processes(runs: dict[str, Any], layout: Layout) -> None:
    expected = _averages(_folder(runs["root"], ("ddp", 1)))
    for before, after in ELASTIC:
        if after == layout:
            found = _averages(Path(runs["root"]) / "resumed" / f"{before}{after}")
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("world", "name", "kind"), [(world, *case) for world, cases in EXACT.items() for case in cases]
)
def test_at_the_same_number_of_processes_a_resumed_run_is_equal_bit_for_bit(
    runs: dict[str, Any], world: int, name: str, kind: str
) -> None:
    for straight, resumed in runs["exact"][world][name, kind]:
        assert resumed["losses"] == [row for row in straight["losses"] if row[0] >= STOP]
        for key, value in straight["parameters"].items():
            assert torch.equal(resumed["parameters"][key], value), key
        assert resumed["averages"].keys() == straight["averages"].keys() != set()
        for key, value in straight["averages"].items():
            assert torch.equal(resumed["averages"][key], value), key
        assert torch.equal(resumed["seen"], straight["seen"])


def test_dropout_differs_between_ranks(runs: dict[str, Any]) -> None:
    ranks = [straight["losses"] for straight, _ in runs["exact"][2]["divot_zero2", "dropout"]]
    assert ranks[0] != ranks[1]


@pytest.mark.parametrize("name", STRATEGIES[1:])
def test_every_rank_writes_a_part(runs: dict[str, Any], name: str) -> None:
    folder = step_folder(_folder(runs["root"], (name, 3)), STOP)
    for group in ("weights", "optimizer", "ema"):
        sizes, names = [], []
        for file in sorted(folder.glob(f"{group}-*.safetensors")):
            with safe_open(file, "pt") as stored:
                names += list(stored.keys())
                sizes.append(sum(stored.get_tensor(key).nbytes for key in stored.keys()))  # noqa: SIM118
        assert len(sizes) == 3
        assert len(names) == len(set(names))


def _payload(folder: Path, group: str) -> int:
    """Return the bytes of all tensors in the files of a group."""
    total = 0
    for file in folder.glob(f"{group}-*.safetensors"):
        with safe_open(file, "pt") as stored:
            total += sum(stored.get_tensor(key).nbytes for key in stored.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize(("name", "world"), list(product(STRATEGIES, WORLDS)))
def test_a_checkpoint_of_many_processes_is_no_larger_than_of_one(runs: dict[str, Any], name: str, world: int) -> None:
    """What is said of one process (test_checkpoint.py) holds for all: only headers and random states grow."""
    folder, alone = (step_folder(_folder(runs["root"], layout), STOP) for layout in ((name, world), ("ddp", 1)))
    for group in ("weights", "optimizer", "ema"):
        assert _payload(folder, group) == _payload(alone, group) > 0
    size, of_one = (sum(file.stat().st_size for file in each.iterdir()) for each in (folder, alone))
    assert size - of_one < world * 50_000


def test_checkpoints_of_all_layouts_hold_the_same(runs: dict[str, Any]) -> None:
    readers = {
        layout: CheckpointReader(step_folder(_folder(runs["root"], layout), STOP), Ranks())
        for layout in product(STRATEGIES, WORLDS)
    }
    first = readers["ddp", 1]
    for reader in readers.values():
        for group in ("weights", "optimizer", "ema"):
            assert reader.names(group) == first.names(group)
            for name in first.names(group):
                found, expected = reader.get(group, name), first.get(group, name)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert (reader.folder / "provenance.json").read_bytes() == (first.folder / "provenance.json").read_bytes()


def test_a_full_disk_of_one_rank_leaves_out_that_checkpoint_on_all(runs: dict[str, Any]) -> None:
    for extra in runs["extra"]:
        assert extra["disk"] == [f"step_{step:08d}" for step in (1, 2, 4, 5)]
    assert len(complete_checkpoints(Path(runs["root"]) / "full")) == 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_another_base_model_stops_all_ranks_before_the_first_step(runs: dict[str, Any], name: str) -> None:
    for extra in runs["extra"]:
        assert extra["base"][name].startswith("0 steps: net.base holds other frozen weights")


def test_trained_and_averaged_weights_measure_the_same_under_all_strategies(runs: dict[str, Any]) -> None:
    measured = runs["extra"][0]["measured"]
    trained, averaged = measured["ddp"]
    assert abs(trained - averaged) > 1e-4
    for name in STRATEGIES:
        assert measured[name] == pytest.approx([trained, averaged], rel=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_frozen_ones_too_is_restored(runs: dict[str, Any], name: str) -> None:
    reader = CheckpointReader(_stopped(runs["root"], "divot_zero1"), Ranks())
    for extra in runs["extra"]:
        for key, value in extra["restored"][name].items():
            if not key.startswith("net.base"):
                assert torch.equal(value, reader.get("weights", key)), key
