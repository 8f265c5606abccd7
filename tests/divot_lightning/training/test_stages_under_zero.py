"""Every stage under ZeRO with real processes: the same losses, gradients and components as in one process."""

from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from torch import distributed
from torch.utils.data import DataLoader

from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.testing import run_distributed
from divot_lightning.training.export import ComponentExport
from divot_optimizers.muon import MuonOptimizer
from tests.divot_lightning.training.tiny_stages import Settings, make_stage, with_sequences

STAGES = ("tokenizer", "captioning", "refinement", "pretraining", "tuning", "adaptation")
KINDS = {"pretraining": "llm", "tuning": "llm", "captioning": "captions"}
STEPS = 2


def sample(number, kind):
    """A sample: its segments, and its clips. Text lengths and the number of clips differ."""
    generator = torch.Generator().manual_seed(number)
    caption = Text(("a red circle moves left", "blue square", "what ?")[number % 3], True)
    options = [[Clips(1, "read"), caption], [caption], [Text("right ?", False), Clips(1, "generate")]]
    segments = {"llm": options[number % 5 % 3], "captions": options[0], "clips": options[2]}[kind]
    clips = sum(part.count for part in segments if isinstance(part, Clips))
    video = torch.randint(0, 256, (clips, 16, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return {"segments": segments, "video": video, "sample_index": number, "key": f"sample{number}"}


def batch_of(samples):
    video = torch.cat([each["video"] for each in samples])
    batch = {name: [each[name] for each in samples] for name in ("segments", "key")}
    batch |= {"sample_index": torch.tensor([each["sample_index"] for each in samples]), "counted": len(samples)}
    return {**batch, "video": video} if len(video) else batch


def batches_of(rank, world, kind, sizes=(7, 1, 6, 5)):
    """This rank's part of the batches; every global batch is the same for any number of ranks.

    Batches without clips, with nothing to generate and with nothing at all for some rank are among them.
    """
    batches, first = [], 0
    for size in sizes:
        mine = [sample(number, kind) for number in range(first, first + size)][rank::world]
        dummy = {**batch_of([sample(0, kind)]), "counted": 0}
        batches.append(batch_of(mine) if mine else dummy)
        first += size
        batches[-1]["position"] = len(batches)
    return batches


def fit(name, settings, strategy, run=None, **options):
    """Train a stage; return the losses and gradient norms of its steps, then those of a validation."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    kind = KINDS.get(name, "clips")
    seed_everything(5, verbose=False)
    stage, seen = make_stage(name, settings), []
    log = stage.log
    stage.log = lambda key, value, **rest: (seen.append((key, float(value))), log(key, value, **rest))[1]
    train, validate = (
        DataLoader([with_sequences(stage, batch) for batch in part], batch_size=None)
        for part in (batches_of(rank, world, kind), batches_of(rank, world, kind, sizes=(5, 1)))
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **{"max_steps": STEPS, "accelerator": "cpu", "enable_checkpointing": False, **quiet, **options},
        devices=1 if strategy == "auto" else world,
        strategy=strategy,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        val_check_interval=options.get("accumulate_grad_batches", 1) * STEPS,
        callbacks=[ComponentExport(run)] if run else [],
        default_root_dir=settings.folder,
    )
    trainer.fit(stage, train, validate)
    averaged = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("validation")}
    return {"train": [row for row in seen if row[0].startswith("train")], "validation": averaged}


def zero(stage, **changes):
    # Nothing is small enough to stay whole, so that stage 3 shards all of a tiny model.
    return DivotDeepSpeedStrategy(stage=stage, persistence_elements=0, bucket_elements=10_000, **changes)


def fit_all(rank, settings, cases, folder):
    """What each process does: one case after the other."""
    results = {}
    for name, number, accumulate in cases:
        run = folder / f"zero{number}" / name
        options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
        results[name, number, accumulate] = fit(name, settings, zero(number), run, **options)
    return results


@pytest.fixture
def settings(tmp_path, pretraining_run, tokenizer_config, detokenizer_config, make_config):
    torch.manual_seed(2)
    lora = LoRAConfig(rank=2, alpha=2, dropout=0.0)
    video_llm = VideoLLM(make_config(lora=lora), GMMHead)
    for parameter in video_llm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_component(video_llm, tmp_path / "llm_run" / "video_llm")
    record_components(tmp_path / "llm_run", {"tokenizer": pretraining_run / "tokenizer"})
    return Settings(tmp_path, tokenizer_config, detokenizer_config, make_config(gradient_checkpointing=True))


def assert_same(actual, expected, label):
    assert [key for key, _ in actual["train"]] == [key for key, _ in expected["train"]], label
    for (key, value), (_, wanted) in zip(actual["train"], expected["train"], strict=True):
        assert value == pytest.approx(wanted, rel=1e-5, abs=1e-6), (label, key)
    assert actual["validation"] == pytest.approx(expected["validation"], rel=1e-5, abs=1e-6), label


def assert_same_components(actual, expected, label):
    files = sorted(file.relative_to(expected) for file in expected.rglob("*") if file.is_file())
    assert sorted(file.relative_to(actual) for file in actual.rglob("*") if file.is_file()) == files
    for file in files:
        if file.suffix == ".safetensors":
            stored, wanted = load_file(actual / file), load_file(expected / file)
            assert stored.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=2e-5, msg=f"{label} {name}")
        elif file.name == "config.json":
            assert (actual / file).read_text() == (expected / file).read_text(), label


ACCUMULATED = {("tokenizer", 1), ("pretraining", 2), ("refinement", 3)}
WITH_TWO = [(name, stage, 1 + ((name, stage) in ACCUMULATED)) for stage in (1, 2, 3) for name in STAGES]
WITH_THREE = [("refinement", 1, 1), ("tuning", 2, 1), ("pretraining", 3, 1)]
MUON = MuonOptimizer(lr=3e-3, matrix_lr=3e-3, warmup_steps=2, iteration_dtype="float32")
WITH_MUON = [("refinement", 2, 1), ("tokenizer", 3, 1)]


@pytest.mark.parametrize(("world", "cases"), [(2, WITH_TWO), (3, WITH_THREE)], ids=["two", "three"])
def test_every_stage_trains_under_zero_as_in_one_process(settings, world, cases, tmp_path):
    check_zero(settings, world, cases, tmp_path)


def test_muon_takes_the_same_steps_under_zero_as_in_one_process(settings, tmp_path):
    check_zero(replace(settings, optimizer=MUON), 2, WITH_MUON, tmp_path)


def check_zero(settings, world, cases, tmp_path):
    every = run_distributed(fit_all, world, settings, cases, tmp_path, timeout=600)
    assert all(ranks == every[0] for ranks in every)
    alone = {}
    for (name, number, accumulate), result in every[0].items():
        run = tmp_path / f"alone{accumulate}" / name
        if run not in alone:
            alone[run] = fit(name, settings, "auto", run, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        label = (name, number, accumulate, world)
        assert_same(result, alone[run], label)
        assert_same_components(tmp_path / f"zero{number}" / name, run, label)
