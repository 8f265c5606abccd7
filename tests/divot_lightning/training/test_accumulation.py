"""Gradients of accumulated batches are those of one large batch: for every stage, in one process and in two."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import seed_everything
from torch import distributed, nn
from torch.utils.data import DataLoader

from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.testing import run_distributed
from divot_lightning.training.accumulation import STEP_COUNTS, StepWindows, check_validation
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage
from divot_optimizers.adamw import AdamWOptimizer
from tests.divot_lightning.training.tiny_stages import Settings, make_stage, with_sequences

STAGES = ("tokenizer", "captioning", "refinement", "pretraining", "tuning", "adaptation")
WORDS = ("a red circle moves left", "blue square", "what ?", "a red circle right blue square moves left ?")

# Sizes of the batches of two steps, and which process takes which samples of each batch.
PARTS = [[1, 3, 2], [2, 1, 1]]


def sample(number, name):
    """A sample; texts have unequal lengths, and some have no clip, some none to generate, some no word to learn."""
    caption = Text(WORDS[number % 4], True)
    kinds = [[Clips(1, "read"), caption], [caption], [Text("right ?", False), Clips(1 + number % 2, "generate")]]
    drawn = [Text("right ?", False), Clips(1, "generate")]
    segments = {"captioning": kinds[0], "pretraining": kinds[number % 3], "tuning": kinds[number % 3]}.get(name, drawn)
    clips = sum(part.count for part in segments if isinstance(part, Clips))
    video = torch.randint(
        0, 256, (clips, 16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
    )
    return {"segments": segments, "video": video, "sample_index": number, "key": f"sample{number}"}


def batch_of(numbers, name):
    """A batch of samples; without any a dummy batch, of which nothing counts."""
    samples = [sample(number, name) for number in numbers or [0]]
    batch = {key: [each[key] for each in samples] for key in ("segments", "key")}
    batch |= {"sample_index": torch.tensor([each["sample_index"] for each in samples]), "counted": len(numbers)}
    video = torch.cat([each["video"] for each in samples])
    return {**batch, "video": video} if len(video) else batch


def batches_of(name, rank, world, *, accumulated):
    batches, first = [], 0
    for sizes in PARTS:
        for size in sizes if accumulated else [sum(sizes)]:
            # Unevenly: of three samples the first process gets one, the second two.
            numbers = range(first, first + size)
            mine = [number for number in numbers if world == 1 or (number % 3 > 0) == rank]
            batches.append(batch_of(mine, name))
            first += size
    return batches


def fit(name, settings, rank=0, world=1, *, accumulated):
    """Train two steps; return the gradients and losses of each."""
    seed_everything(5, verbose=False)
    stage, steps, logged = make_stage(name, settings), [], []
    measure = stage.on_before_optimizer_step

    def keep(optimizer):
        steps.append({key: value.grad.clone() for key, value in stage.named_parameters() if value.grad is not None})
        measure(optimizer)

    stage.on_before_optimizer_step = keep
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **quiet,
        accelerator="cpu",
        max_steps=2,
        accumulate_grad_batches=len(PARTS[0]) if accumulated else 1,
        devices=world,
        strategy="auto" if world == 1 else "ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
        enable_checkpointing=False,
        default_root_dir=settings.folder,
    )
    stage.on_train_batch_end = lambda *args: logged.append(
        {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
    )
    batches = [with_sequences(stage, batch) for batch in batches_of(name, rank, world, accumulated=accumulated)]
    trainer.fit(stage, DataLoader(batches, batch_size=None))
    return steps, logged[len(PARTS[0]) - 1 :: len(PARTS[0])] if accumulated else logged


def fit_on_rank(rank, settings):
    world = distributed.get_world_size()
    return {name: fit(name, settings, rank, world, accumulated=True) for name in ("pretraining", "tokenizer")}


def assert_same_gradients(actual, expected, label):
    assert len(actual) == len(expected) == len(PARTS)
    for step, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.keys() == wanted.keys(), label
        one, other = (torch.cat([value.flatten() for value in each.values()]).double() for each in (got, wanted))
        assert float((one - other).norm() / other.norm()) <= 1e-5, (label, step)
        assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(1.0, abs=1e-9), (label, step)


@pytest.fixture
def settings(tmp_path, pretraining_run, tokenizer_config, detokenizer_config, make_config):
    torch.manual_seed(2)
    video_llm = VideoLLM(make_config(lora=LoRAConfig(rank=2, alpha=2, dropout=0.0)), GMMHead)
    for parameter in video_llm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_component(video_llm, tmp_path / "llm_run" / "video_llm")
    record_components(tmp_path / "llm_run", {"tokenizer": pretraining_run / "tokenizer"})
    return Settings(tmp_path, tokenizer_config, detokenizer_config, make_config())


@pytest.mark.parametrize("name", STAGES)
def test_accumulated_batches_have_the_gradient_and_the_loss_of_one_large_batch(name, settings):
    gradients, losses = fit(name, settings, accumulated=True)
    wanted, wanted_losses = fit(name, settings, accumulated=False)
    assert_same_gradients(gradients, wanted, name)
    for got, expected in zip(losses, wanted_losses, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_two_processes_that_accumulate_unlike_batches_have_the_gradient_of_one_large_batch(settings):
    every = run_distributed(fit_on_rank, 2, settings, timeout=600)
    for name in ("pretraining", "tokenizer"):
        wanted, wanted_losses = fit(name, settings, accumulated=False)
        for results in every:
            gradients, losses = results[name]
            assert_same_gradients(gradients, wanted, name)
            for got, expected in zip(losses, wanted_losses, strict=True):
                assert got == pytest.approx(expected, rel=1e-5)


class Plain(Stage):
    """A stage as a stranger writes it."""

    def __init__(self):
        super().__init__(AdamWOptimizer())

    def build(self):
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch["video"]).square().mean()
        return self.training_loss({"loss": LossPart(loss, len(batch["video"]))}, batch)


class Miscounting(Plain):
    def loss_counts(self, batch):
        return {"loss": 1}


class Lonely(Miscounting):
    def on_fit_start(self):
        pass


@pytest.mark.parametrize(
    ("stage_class", "says"),
    [(Plain, "Plain has no loss_counts"), (Miscounting, "loss_counts says"), (Lonely, "was not loaded together")],
)
def test_a_stage_that_would_weigh_accumulated_batches_wrongly_is_refused(stage_class, says, tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **quiet,
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=2,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    batches = [{"video": torch.ones(2, 2)}] * 4
    with pytest.raises(UserError, match=says):
        trainer.fit(stage_class(), DataLoader(batches, batch_size=None))


def test_a_validation_within_a_step_is_refused():
    for interval, epoch in ((None, 7), (6, float("inf")), (float("inf"), float("inf")), (7, 7), (6, 7)):
        check_validation(interval, epoch, 3)
    with pytest.raises(UserError, match="val_check_interval is 7 batches"):
        check_validation(7, 100, 3)


def test_each_batch_knows_its_step_also_where_an_epoch_ends_within_one():
    batches = [{"words": count} for count in (5, 0, 2, 4, 1)]
    seen = [batch[STEP_COUNTS] for batch in StepWindows(batches, 2, lambda batch: {"text": batch["words"]})]
    assert [step.index for step in seen] == [0, 1, 0, 1, 0]
    assert [step.own["text"] for step in seen] == [5, 0, 2, 4, 1]
    assert [step.total["text"] for step in seen] == [5, 5, 6, 6, 1]
