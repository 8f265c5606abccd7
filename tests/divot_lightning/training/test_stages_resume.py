"""Every stage, on shards of videos, stopped after a step: what follows is the uninterrupted run, bit for bit.

Dropout and averaged weights are on. An epoch has three batches, of 4, 4 and 2 samples.
"""

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch import seed_everything
from torch import distributed

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.video_text import VideoTextData
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.folder_reading import CheckpointReader
from divot_lightning.checkpoint.rng_state import RandomStates
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig, StepCheckpoint
from divot_lightning.checkpoint.weight_average import WeightAverage
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.testing import run_distributed
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.divot_lightning.training.tiny_stages import Settings, make_stage

TASKS = {
    "tokenizer": None,
    "captioning": {"caption": 1.0},
    "refinement": None,
    "pretraining": {"caption": 2.0, "generate": 1.0},
    "tuning": {"question": 1.0, "generate": 1.0},
    "adaptation": {"generate": 1.0},
}
ACCUMULATED = {"refinement": 2, "pretraining": 2, "captioning": 2}
UNDER_ZERO = [("tokenizer", 1), ("tuning", 1), ("refinement", 2), ("captioning", 2), ("pretraining", 3)]
UNDER_ZERO += [("tuning", 3), ("adaptation", 3)]
PRECISION = {
    ("tokenizer", 1): "bf16-true",
    ("refinement", 2): "bf16-mixed",
    ("tuning", 3): "bf16-true",
    ("pretraining", 3): "bf16-mixed",
}
END = 5


class Watch(Callback):
    """Notes the step, the keys and the logged values of every batch."""

    def __init__(self, stage):
        self.rows, self.write = [], stage.log
        stage.log = self.note

    def note(self, key, value, **rest):
        if key.startswith("train"):
            self.rows[-1][2][key] = float(value)
        self.write(key, value, **rest)

    def on_train_batch_start(self, trainer, stage, batch, index):
        self.rows.append((trainer.global_step, batch["key"], {}))


def train(name, settings, run, zero=None, stop=None):
    """Train a stage into a run folder, from the checkpoint after step `stop` of the folder `straight` beside it.

    Returns:
        (step, keys, logged values) of each batch on this process.
    """
    seed_everything(5, verbose=False)
    stage = make_stage(name, settings)
    watch = Watch(stage)
    shards, clip = settings.folder / "toy", ClipConfig(height=8, width=8)
    data = VideoTextData(
        str(shards / "train"), str(shards / "validation"), batch_size=4, clip=clip, tasks=TASKS[name], epoch="exact"
    )
    resume_from = folder_of(run.parent / "straight", stop) if stop else None
    trainer = Trainer(
        max_steps=END,
        max_epochs=-1,
        accelerator="cpu",
        devices=distributed.get_world_size() if zero else 1,
        strategy=DivotDeepSpeedStrategy(stage=zero, persistence_elements=0, bucket_elements=10_000) if zero else "auto",
        accumulate_grad_batches=ACCUMULATED.get(name, 1),
        precision=PRECISION.get((name, zero), "32-true"),
        gradient_clip_val=0.5,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
        callbacks=[
            watch,
            RandomStates(),
            WeightAverage(decay=0.5),
            StepCheckpoint(run, CheckpointConfig(saved_every(name, zero, stop), keep_all=True), resume_from),
        ],
    )
    trainer.fit(stage, data)
    return watch.rows


def saved_every(name, zero, stop):
    """As often as needed: the last step is saved in any case."""
    if stop:
        return END
    return middle(name) if zero else 1


def folder_of(run, step):
    return run / f"checkpoints/step_{step:08d}"


def assert_same(rows, straight, run, stop, label):
    """The resumed run's batches are the last ones of the other, and both end with the same tensors."""
    assert rows == [row for row in straight if row[0] >= stop], label
    assert rows[-1][0] == END - 1
    found, expected = (CheckpointReader(folder_of(each, END), Ranks()) for each in (run, run.parent / "straight"))
    for group in ("weights", "optimizer", "ema"):
        assert found.names(group) == expected.names(group) != set()
        for key in expected.names(group):
            assert torch.equal(found.get(group, key), expected.get(group, key)), (label, group, key)


@pytest.fixture
def settings(tmp_path, pretraining_run, tokenizer_config, detokenizer_config, make_config):
    make_toy_shards(tmp_path / "toy", train=10, validation=4, size=16)
    language = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language |= {"intermediate_size": 16, "attention_dropout": 0.2}
    changes = {"language_model_config": language, "text_tokenizer": str(tmp_path / "toy" / "text_tokenizer")}
    torch.manual_seed(2)
    tuned = VideoLLM(make_config(**changes, lora=LoRAConfig(rank=2, alpha=2, dropout=0.3)), GMMHead)
    for parameter in tuned.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_component(tuned, tmp_path / "llm_run" / "video_llm")
    record_components(tmp_path / "llm_run", {"tokenizer": pretraining_run / "tokenizer"})
    llm = make_config(**changes, gradient_checkpointing=True)
    return Settings(tmp_path, tokenizer_config, detokenizer_config, llm)


@pytest.mark.parametrize("name", TASKS)
def test_a_stage_stopped_after_any_step_resumes_bit_for_bit(settings, name, tmp_path):
    straight = train(name, settings, tmp_path / "straight")
    assert len({str(values) for _, _, values in straight}) == len(straight), "steps can be told apart"
    for stop in range(1, END):
        run = tmp_path / f"from{stop}"
        assert_same(train(name, settings, run, stop=stop), straight, run, stop, (name, stop))


def train_all(rank, settings, cases, folder):
    """What each process does: every stage straight through, and from the step in the middle of the second epoch."""
    rows = {}
    for name, zero in cases:
        run, stop = folder / f"{name}{zero}", middle(name)
        rows[name, zero] = train(name, settings, run / "straight", zero), train(name, settings, run / "on", zero, stop)
    return rows


def middle(name):
    return 3 if name in ACCUMULATED else 4


def test_a_stage_stopped_under_zero_resumes_bit_for_bit(settings, tmp_path):
    for ranks in run_distributed(train_all, 2, settings, UNDER_ZERO, tmp_path, timeout=600):
        for (name, zero), (straight, resumed) in ranks.items():
            run = tmp_path / f"{name}{zero}" / "on"
            assert_same(resumed, straight, run, middle(name), (name, zero))
