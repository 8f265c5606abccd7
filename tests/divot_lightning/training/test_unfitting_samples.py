"""A sample that does not fit a stage never ends the run: it is skipped and listed with reason and key."""

import json

import lightning
import pytest
import torch
from safetensors.torch import save

from divot_datamodules.loading.skipped_samples import SkippedSamples
from divot_datamodules.preparation.inspection import inspect_source
from divot_datamodules.shards.sources import open_source
from divot_datamodules.tasks.mixture import TaskMixture
from divot_datamodules.video_text import VideoTextData
from divot_lightning.checkpoint.components import save_component
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.training.stages.instruction_tuning import InstructionTuning
from divot_lightning.training.stages.llm_pretraining import LLMPretraining
from divot_optimizers.adamw import AdamWOptimizer
from tests.helpers.broken_shards import write_members

MAX_LENGTH = 40
SHAPE = (3, 8)


def features(*shape):
    return save({"tokens": torch.randn(*shape)})


def text(clips=1, caption="a red circle moves left"):
    story = {"instruction": "what ?", "texts": ["blue square"] * clips}
    return json.dumps({"caption": caption, "story": story}).encode()


BAD = {
    "half_character": (features(*SHAPE), b'{"caption": "a red \\ud83d square"}', "not_utf8"),
    "other_width": (features(3, 9), text(), "feature_shape"),
    "other_tokens": (features(2, 8), text(), "feature_shape"),
    "no_clip": (features(0, *SHAPE), text(0), "bad_features"),
    "long_story": (features(7, *SHAPE), text(7), "too_long"),
    "many_clips": (features(900, *SHAPE), text(900), "too_many_clips"),
    "endless_text": (features(*SHAPE), text(caption="a red " * 2**18), "too_large"),
    "odd_questions": (features(*SHAPE), b'{"questions": 7}', "missing_caption"),
}


@pytest.fixture
def shard(tmp_path):
    torch.manual_seed(0)
    members = []
    for number in range(6):
        for key, data, said in ((f"good{number}", features(*SHAPE), text()), *_bad(number)):
            members += [(f"{key}.features.safetensors", data), (f"{key}.json", said)]
    return write_members(tmp_path / "0.tar", members)


def _bad(number):
    return [(key, data, said) for key, (data, said, _) in list(BAD.items())[2 * number : 2 * number + 2]]


MIXTURE = {"caption": 1.0, "story": 1.0}


def data(shard, folder, **settings):
    return VideoTextData(
        str(shard),
        str(shard),
        batch_size=3,
        tasks=MIXTURE,
        max_skipped_fraction=1.0,
        skipped_folder=str(folder),
        shuffle_buffer=1,
        **settings,
    )


def fit(stage, data, folder, steps, checkpoint=None):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        max_epochs=-1,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def pretraining(tokenizer_run, make_config, head):
    config = make_config(max_length=MAX_LENGTH)
    return LLMPretraining(head, str(tokenizer_run), config, AdamWOptimizer(lr=1e-3), statistics_batches=2)


def listed(folder, name):
    return {(sample.reason, sample.key) for sample in SkippedSamples(name, folder).all()}


EXPECTED = {(reason, key) for key, (_, _, reason) in BAD.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_validation_continue_without_samples_that_do_not_fit(
    shard, tokenizer_run, make_config, head, tmp_path, workers
):
    stage = pretraining(tokenizer_run, make_config, head)
    trainer = fit(stage, data(shard, tmp_path / "skipped", num_workers=workers), tmp_path, steps=6)
    assert trainer.global_step == 6
    # A story is drawn or a caption: the long one is met in validation or not, by its draw, but nothing else is.
    for name in ("train", "validation"):
        assert listed(tmp_path / "skipped", name) <= EXPECTED
        assert listed(tmp_path / "skipped", name) >= EXPECTED - {
            ("too_long", "long_story"),
            ("too_large", "endless_text"),
        }
    assert (tmp_path / "skipped" / "skipped-train-rank0.jsonl").read_text().count(str(shard)) >= 6


def test_a_resumed_run_meets_no_surprise(shard, tokenizer_run, make_config, head, tmp_path):
    trainer = fit(pretraining(tokenizer_run, make_config, head), data(shard, tmp_path / "a"), tmp_path, steps=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(
        pretraining(tokenizer_run, make_config, head),
        data(shard, tmp_path / "a"),
        tmp_path,
        steps=6,
        checkpoint=tmp_path / "half.ckpt",
    )
    assert resumed.global_step == 6
    assert listed(tmp_path / "a", "train") <= EXPECTED


def test_instruction_tuning_takes_its_own_longest_sequence(shard, tokenizer_run, make_config, head, tmp_path):
    save_component(VideoLLM(make_config(max_length=1000), head), tokenizer_run / "video_llm")
    stage = InstructionTuning(str(tokenizer_run), AdamWOptimizer(lr=1e-3), max_length=MAX_LENGTH)
    before = stage.sequence_collator().limits
    assert (before.layout.max_length, before.feature_shape, before.begins) == (MAX_LENGTH, SHAPE, True)
    stage.configure_model()
    assert stage.sequence_collator().limits == before
    assert stage.video_llm.config.max_length == MAX_LENGTH


def test_inspection_finds_all_of_it_ahead_of_training(shard, tokenizer_run, make_config, head):
    stage = pretraining(tokenizer_run, make_config, head)
    report = inspect_source(open_source(shard), tasks=TaskMixture(MIXTURE), limits=stage.sequence_collator().limits)
    assert {(sample.reason, sample.key) for sample in report.skipped} == EXPECTED
    assert {sample.shard for sample in report.skipped} == {str(shard)}
    # Without knowing the stage, what no batch could hold is found all the same.
    alone = inspect_source(open_source(shard))
    found = {"half_character", "other_width", "other_tokens", "no_clip", "many_clips"}
    assert {sample.key for sample in alone.skipped} == found
