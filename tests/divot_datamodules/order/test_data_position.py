"""A run that is stopped and continues sees the same samples in the same order, under Lightning's own loops."""

import shutil
from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.order.data_position import SourceFacts, TrainPosition
from divot_datamodules.order.order_plan import OrderPlan
from divot_datamodules.order.source_order import SourceOrder
from divot_datamodules.shards import content as shard_content
from divot_datamodules.shards.index_files import write_index
from divot_datamodules.shards.source_settings import SourceConfig, facts_of
from divot_datamodules.shards.sources import open_source
from divot_datamodules.shards.tar_source import TarSource
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from tests.helpers.broken_shards import write_members

STEPS = 8


class Watcher(lightning.LightningModule):
    """Notes the keys of each step."""

    def __init__(self, asks_for_steps=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = []
        self.asks_for_steps = asks_for_steps

    def training_step(self, batch, index):
        self.steps.append(batch["key"])
        return self.weight * batch["video"].float().mean()

    def configure_optimizers(self):
        if self.asks_for_steps:  # makes Lightning fetch the first batch
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LateRestore(SingleDeviceStrategy):
    """Restores a checkpoint after the optimizers were made, as DeepSpeed does."""

    restore_checkpoint_after_setup = True


def run(folder, shards, *, steps, workers=0, resume=None, exact=False, late=False, **trainer_settings):
    """Train to `steps` with a checkpoint after each step; return the keys of each step."""
    model = Watcher(asks_for_steps=late)
    # 13 samples: 4 steps in an exact epoch, the last of them with one sample
    data = VideoTextData(
        str(shards), batch_size=4, num_workers=workers, epoch="exact" if exact else "endless", shuffle_buffer=5
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False)
        ],
        default_root_dir=folder,
        accelerator="cpu",
        strategy=LateRestore("cpu") if late else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": -1} | trainer_settings),
    )
    checkpoint = folder / f"step={resume}.ckpt" if resume else None
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return model.steps


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A folder for what the first test that needs it makes; and the keys of steps, by whether epochs are exact."""
    return tmp_path_factory.mktemp("made_once"), {}


@pytest.fixture
def shards(video_shards, made_once):
    folder = made_once[0] / "shards"
    if not folder.exists():
        shutil.copytree(video_shards(shards=1, samples=13), folder)
    return folder


@pytest.fixture
def uninterrupted(tmp_path, shards, made_once):
    """Return the keys of each step of a run that nothing stopped, and put its checkpoints into `tmp_path / "whole"`."""

    def make(exact):
        folder, steps = made_once
        if exact not in steps:
            steps[exact] = run(folder / str(exact), shards, steps=STEPS, exact=exact)
        shutil.copytree(folder / str(exact), tmp_path / "whole")
        return steps[exact]

    return make


@pytest.mark.parametrize("exact", [False, True])
def test_every_stop_is_resumed_in_the_order_of_the_uninterrupted_run(tmp_path, shards, uninterrupted, exact):
    whole = uninterrupted(exact)
    assert [len(keys) for keys in whole] == ([4, 4, 4, 1] * 2 if exact else [4] * 8)
    for stop in range(1, STEPS):
        workers = (0, 1, 2, 4)[stop % 4]
        rest = run(tmp_path / "whole", shards, steps=STEPS, exact=exact, resume=stop, workers=workers)
        assert rest == whole[stop:], f"stopped after step {stop}, then {workers} workers"


@pytest.mark.parametrize("exact", [False, True])
def test_two_stops_in_one_epoch(tmp_path, shards, uninterrupted, exact):
    parts = [run(tmp_path / "parts", shards, steps=1, exact=exact, workers=2)]
    for begin, end in ((1, 3), (3, 4), (4, STEPS)):
        parts.append(run(tmp_path / "parts", shards, steps=end, exact=exact, resume=begin))
    assert [keys for part in parts for keys in part] == uninterrupted(exact)


def noted(method, path, key_of):
    """Let a method note in a file which sample it had, in whichever process."""

    def wrapper(*arguments):
        with path.open("a") as file:
            file.write(f"{key_of(*arguments)}\n")
        return method(*arguments)

    return wrapper


@pytest.mark.parametrize(("stop", "workers"), [(1, 2), (2, 0), (3, 4)])
def test_what_was_used_before_a_stop_is_neither_read_nor_decoded_again(
    tmp_path, shards, uninterrupted, monkeypatch, stop, workers
):
    epoch = uninterrupted(exact=True)[:4]
    read, decoded = tmp_path / "read", tmp_path / "decoded"
    monkeypatch.setattr(TarSource, "read", noted(TarSource.read, read, lambda self, *index: self.key(*index)))
    monkeypatch.setattr(
        SampleDecoder, "__call__", noted(SampleDecoder.__call__, decoded, lambda self, raw, rng: raw.key)
    )
    rest = run(tmp_path / "whole", shards, steps=4, exact=True, resume=stop, workers=workers)
    assert rest == epoch[stop:]
    for path in (read, decoded):
        assert sorted(path.read_text().split()) == sorted(key for keys in rest for key in keys)


@pytest.mark.parametrize("exact", [False, True])
def test_a_position_that_is_restored_after_lightning_fetched_a_batch_is_kept(tmp_path, shards, uninterrupted, exact):
    steps, settings = uninterrupted(exact), {"late": True, "max_epochs": 9}
    assert run(tmp_path / "whole", shards, steps=STEPS, exact=exact, resume=2, **settings) == steps[2:]


def test_an_endless_order_continues_over_lightnings_epochs(tmp_path, shards, uninterrupted):
    assert run(tmp_path / "epochs", shards, steps=STEPS, limit_train_batches=3) == uninterrupted(exact=False)


def test_accumulated_batches_are_used_one_by_one(tmp_path, shards, uninterrupted):
    run(tmp_path / "two", shards, steps=2, accumulate_grad_batches=2)
    rest = run(tmp_path / "two", shards, steps=STEPS // 2, resume=2, accumulate_grad_batches=2)
    assert rest == uninterrupted(exact=False)[4:]


@pytest.mark.parametrize("remade", ["other videos", "all but one", "the same", "copied"])
def test_a_shard_that_was_replaced_under_its_name_is_noticed(tmp_path, remade):
    def clip(number, made):
        return b"media" * 800 + bytes([number, made]) * 500 + b"tail" * 800

    def members(made):
        return [(f"k{n:02}.mp4", clip(n, made if remade == "other videos" or n else 0)) for n in range(64)]

    folder = tmp_path / "shards"
    folder.mkdir()
    path = write_members(folder / "0.tar", members(0))
    write_index(path)

    def opened(index_folder):
        return facts_of(SourceConfig(str(folder)), open_source(folder, index_folder=tmp_path / index_folder))

    before = position(sources=[opened("a")])
    state = before.state_dict()
    if remade in ("other videos", "all but one"):
        write_members(path, members(1))
        changed = position(sources=[opened("a")])
        assert changed.sources[0].fingerprint == before.sources[0].fingerprint
        with pytest.raises(UserError, match=r"shards: other content than in the checkpoint, under the same names"):
            changed.load_state_dict(state)
        return
    if remade == "the same":
        write_members(path, members(0))
    for index_folder in ("a", "b"):  # with and without what was kept of the former look
        position(sources=[opened(index_folder)]).load_state_dict(state)


def test_a_shard_that_did_not_change_is_not_read_again_for_its_content(tmp_path, shards, monkeypatch):
    first = open_source(shards, index_folder=tmp_path / "index").content
    monkeypatch.setattr(shard_content, "content_hash", lambda *arguments: pytest.fail("read again"))
    assert open_source(shards, index_folder=tmp_path / "index").content == first != ""


def test_checkpoints_from_before_content_was_compared_are_still_taken():
    state = position().state_dict()
    del state["sources"][0]["content"]
    position(sources=[replace(facts(), content="c")]).load_state_dict(state)


def facts(name="a", samples=20, fingerprint="f"):
    return SourceFacts(name, 2, samples, fingerprint)


SOURCES = (facts(),)


def position(*, sources=SOURCES, batch_size=4, exact=False, seed=0, streams=64):
    orders = tuple(SourceOrder((one.samples,), seed=seed, streams=streams) for one in sources)
    return TrainPosition(OrderPlan(orders, (batch_size,), exact=exact), sources)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sources": [facts("b.tar", 21, "g")]}, r"b\.tar: 21 samples in 2 shards; in the checkpoint a: 20 in 2"),
        (
            {"sources": [facts(fingerprint="g")]},
            "a: 20 samples as in the checkpoint, but of other names, sizes or keys",
        ),
        ({"sources": [facts(), facts("b")]}, "2 sources, in the checkpoint 1"),
        ({"seed": 3}, "seed of source 0 is 3, in the checkpoint 0"),
        ({"streams": 7}, "streams of source 0 is 7, in the checkpoint 64"),
        ({"exact": True}, "exact is True, in the checkpoint False"),
    ],
)
def test_what_changes_the_order_is_refused_and_named(changed, message):
    with pytest.raises(UserError, match=message) as caught:
        position(**changed).load_state_dict(position().state_dict())
    assert len(str(caught.value).splitlines()) <= 5


def test_data_that_moved_are_the_same_data():
    moved = position(sources=[replace(facts(), name="elsewhere")])
    before = position()
    before.used(3)
    moved.load_state_dict(before.state_dict())
    assert moved.step == 3


def test_a_batch_size_cannot_change_within_exact_epochs():
    with pytest.raises(UserError, match=r"batch_size is 5, in the checkpoint it was 4"):
        position(exact=True, batch_size=5).load_state_dict(position(exact=True).state_dict())


def test_batch_sizes_may_change_again_and_again():
    taken, state = [], None
    for batch_size, steps in ((4, 3), (10, 2), (2, 1), (4, 5)):
        now = position(batch_size=batch_size)
        if state is not None:
            now.load_state_dict(state)
        for step in range(now.step, now.step + steps):
            taken += [index.number for index in now.plan.batch(step)]
            now.used(step + 1)
        state = now.state_dict()
    assert taken == list(range(4 * 3 + 10 * 2 + 2 + 4 * 5))
