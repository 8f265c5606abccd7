import logging
from itertools import islice

import lightning
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from safetensors.torch import save

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.shards.writing import ShardFolder
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text

ALL = [f"s{s}n{n}" for s in range(2) for n in range(3)]


def train_batches(data, count):
    data.setup("fit")
    return list(islice(iter(data.train_dataloader()), count))


def test_tokenizer_batches(video_shards):
    (batch,) = train_batches(VideoTextData(str(video_shards()), batch_size=6), 1)
    assert set(batch) == {"key", "video", "sample_index", "counted", "position"}
    assert (batch["sample_index"].tolist(), batch["counted"], batch["position"]) == (list(range(6)), 6, 1)
    assert batch["video"].shape == (6, 16, 3, 32, 32)
    assert batch["video"].dtype == torch.uint8
    assert sorted(batch["key"]) == ALL


def test_language_batches(video_shards):
    data = VideoTextData(
        str(video_shards()), batch_size=6, tasks={"caption": 1.0}, clip=ClipConfig(height=16, width=24)
    )
    (batch,) = train_batches(data, 1)
    assert batch["video"].shape == (6, 16, 3, 16, 24)
    assert batch["segments"] == [[Clips(1, "read"), Text(f"caption {key}", True)] for key in batch["key"]]


def test_language_batches_from_cached_features(tmp_path):
    folder = ShardFolder(tmp_path, kind="features", settings={"tokenizer_sha256": "x"})
    tokens = {f"k{number}": torch.full((3, 4), float(number)) for number in range(4)}
    folder.write(0, [(k, {"features.safetensors": save({"tokens": t}), "txt": k.encode()}) for k, t in tokens.items()])
    folder.finish()
    (batch,) = train_batches(VideoTextData(str(tmp_path), batch_size=4, tasks={"generate": 1.0}), 1)
    assert {"key", "segments", "features"} < set(batch)
    assert torch.equal(batch["features"], torch.stack([tokens[key] for key in batch["key"]]))
    with pytest.raises(UserError, match="cached features"):
        train_batches(VideoTextData(str(tmp_path), batch_size=4), 1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_validation_is_in_order_with_any_number_of_workers(video_shards, workers):
    folder = str(video_shards(shards=2, samples=3, extra=[("zbad.mp4", b"rubbish")]))
    data = VideoTextData(None, folder, batch_size=2, num_workers=workers, max_skipped_fraction=1.0)
    data.setup("validate")
    for _ in range(2):
        assert [batch["key"] for batch in data.val_dataloader()] == [
            ["s0n0", "s0n1"],
            ["s0n2"],
            ["s1n0", "s1n1"],
            ["s1n2"],
        ]
    data.teardown()


def test_a_task_may_differ_in_validation(video_shards):
    folder = str(video_shards())
    data = VideoTextData(folder, folder, batch_size=6, tasks={"generate": 1}, validation_tasks={"question": 1})
    data.setup("fit")
    (batch,) = list(data.val_dataloader())
    assert [segments[-1].text for segments in batch["segments"]] == batch["key"]
    assert next(iter(data.train_dataloader()))["segments"][0][-1] == Clips(1, "generate")


def test_instruction_template(video_shards):
    data = VideoTextData(str(video_shards()), batch_size=1, tasks={"caption": 1.0}, template="instruction")
    assert train_batches(data, 1)[0]["segments"][0][0] == Text("[INST] ", False)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "no training shards"),
        ([], r"data\.train is an empty list"),
        ("nowhere/a.tar", r"nowhere/a\.tar"),
        ("nowhere/*.tar", "no shard matches"),
        ("pipe:cat a.tar", "allow_pipe"),
    ],
)
def test_what_cannot_be_read_is_named_before_training(train, message):
    with pytest.raises(UserError, match=message) as caught:
        VideoTextData(train).setup("fit")
    assert len(str(caught.value).splitlines()) <= 5


def test_a_shard_that_is_no_tar_ends_a_run_before_training_unless_the_budget_allows_it(video_shards, tmp_path):
    folder = video_shards()
    (folder / "001.tar").write_bytes(b"rubbish" * 1000)
    with pytest.raises(UserError, match=r"cannot be used.*\n.*001\.tar"):
        VideoTextData(str(folder)).setup("fit")
    data = VideoTextData(str(folder), batch_size=3, max_skipped_fraction=1.0)
    assert sorted(train_batches(data, 1)[0]["key"]) == ALL[:3]
    assert [sample.shard for sample in data.skipped["train"].all()] == [str(folder / "001.tar")]


def test_a_missing_shard_counts_as_many_samples_as_the_others_hold(video_shards, tmp_path):
    folder = video_shards(shards=4, samples=3)
    (folder / "003.tar").write_bytes(b"rubbish" * 1000)
    shards = [*(str(path) for path in sorted(folder.glob("*.tar"))), str(folder / "gone.tar")]
    with pytest.raises(UserError, match=r"^6 of 15 samples .* not_a_tar 1, missing_shard 1"):
        VideoTextData(shards, max_skipped_fraction=0.39).setup("fit")
    VideoTextData(shards, max_skipped_fraction=0.4).setup("fit")


@pytest.mark.parametrize(
    ("setting", "message"), [({"num_workers": -1}, "num_workers is -1"), ({"prefetch": -3}, "prefetch is -3")]
)
def test_layouts_that_cannot_work_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        VideoTextData("x", **setting)


def test_unknown_tasks_are_refused():
    with pytest.raises(UserError, match="'captoin'"):
        VideoTextData("x", tasks={"captoin": 1.0})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_used_up_budget_ends_training_with_a_short_report(video_shards, tmp_path, workers):
    folder = video_shards(extra=[(f"z{number}.mp4", b"rubbish") for number in range(4)])
    data = VideoTextData(str(folder), batch_size=2, num_workers=workers, skipped_folder=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"^1 of \d+ samples of 'train'") as caught:
        train_batches(data, 50)
    data.teardown()
    assert len(str(caught.value).splitlines()) <= 5
    assert list((tmp_path / "run").glob("skipped-train-rank0.jsonl"))


@pytest.mark.parametrize("workers", [0, 2])
def test_within_the_budget_training_continues_and_skipped_samples_are_reported(video_shards, tmp_path, caplog, workers):
    folder = video_shards(extra=[("zbad.mp4", b"rubbish")])
    data = VideoTextData(
        str(folder), batch_size=4, num_workers=workers, max_skipped_fraction=0.9, skipped_folder=str(tmp_path / "run")
    )
    batches = train_batches(data, 8)
    assert {key for batch in batches for key in batch["key"]} == set(ALL)
    assert sum(batch["counted"] for batch in batches) == 32 - 8  # 4 passes over 8 samples, 2 of them unusable
    assert data.skipped["train"].counts() == {"undecodable": 2}
    with caplog.at_level(logging.WARNING):
        data.teardown()
    assert "skipped samples of train: undecodable 2" in caplog.text


class Watcher(lightning.LightningModule):
    """Counts what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated, self.tested = [], [], []

    def training_step(self, batch, index):
        self.trained += batch["key"]
        return self.weight * batch["video"].float().mean()

    def validation_step(self, batch, index):
        self.validated += batch["key"]

    def test_step(self, batch, index):
        self.tested += batch["key"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_validates_and_tests_on_it(video_shards, tmp_path):
    folder = str(video_shards())
    data, model = VideoTextData(folder, folder, folder, batch_size=4, shuffle_buffer=3), Watcher()
    trainer = lightning.Trainer(
        max_steps=6,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert sorted(model.trained) == sorted(ALL * 4)
    assert model.validated == ALL * 2
    assert model.tested == ALL


def test_the_command_line_reaches_nested_settings():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(VideoTextData, "data")
    words = ["--data.train=a", "--data.clip.height=64", "--data.tasks={caption: 1, generate: 2}"]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert (data.opening.clip.height, data.opening.clip.width) == (64, 32)
    assert data.items["train"][0].keywords["mixture"].weights == {"caption": 1.0, "generate": 2.0}
