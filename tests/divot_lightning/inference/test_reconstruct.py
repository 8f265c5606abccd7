"""Clips are read from files and shards, go through both models and come out as videos."""

import json
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.video import probe
from divot_datamodules.decoding.video_writing import enlarged, side_by_side, write_video
from divot_datamodules.toy.oracle import read_clip
from divot_datamodules.toy.world import ToyWorld
from divot_lightning import DivotPipeline
from divot_lightning.checkpoint.components import save_component
from divot_lightning.cli.reconstruct import main
from divot_lightning.errors import UserError
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.inference.reconstruct import read_clips, reconstruct_files
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.broken_shards import moving_clip, write_members
from tests.helpers.faults import limited_file_size
from tests.helpers.tiny_models import tiny_detokenizer, tiny_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    detokenizer = tiny_detokenizer(guidance=2.0)
    for value in detokenizer.denoiser.parameters():  # it starts as zero, which no token would change
        torch.nn.init.normal_(value, std=0.5)
    save_component(tiny_tokenizer(), folder / "tokenizer")
    save_component(detokenizer, folder / "detokenizer")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_toy_shards(tmp_path_factory.mktemp("toy"), train=4, validation=1, held_out=1)


CLIP = ClipConfig(height=32, width=32)


def test_shards_and_files_give_the_rendered_pixels(tmp_path, shards):
    world = ToyWorld()
    video = world.render(world.sample("train", np.random.default_rng(0)))
    write_video(tmp_path / "mine.mp4", video, 8, crf=0)
    clips = list(read_clips([str(tmp_path / "mine.mp4"), str(shards / "held_out")], CLIP))
    assert [key for key, _ in clips] == ["mine", "held_out-000000"]
    assert np.abs(clips[0][1].astype(int) - video).max() <= 4
    assert read_clip(world, clips[1][1]).valid


@pytest.mark.parametrize("name", ["missing.mp4", "broken.mp4"])
def test_unreadable_files_are_named(tmp_path, name):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=name):
        list(read_clips([str(tmp_path / name)], CLIP))


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no \.tar"):
        list(read_clips([str(tmp_path)], CLIP))


def test_missing_and_truncated_shards_are_named(tmp_path, shards):
    with pytest.raises(UserError, match=r"nowhere/x\.tar"):
        list(read_clips([str(tmp_path / "nowhere" / "x.tar")], CLIP))
    whole = next((shards / "train").glob("*.tar")).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    with pytest.raises(UserError, match=r"cut\.tar"):
        list(read_clips([str(tmp_path / "cut.tar")], CLIP))


def test_samples_without_a_clip_are_skipped_and_reported(run, tmp_path, capsys):
    clip = moving_clip(0)
    members = [("cut.mp4", clip[: len(clip) // 2]), ("good.mp4", clip), (f"{'long' * 75}.mp4", clip), ("k.json", b"[]")]
    write_members(tmp_path / "a.tar", members)
    (tmp_path / "b.tar").write_bytes(b"rubbish" * 999)
    (tmp_path / "text.mp4").write_text("no video")
    inputs = [str(tmp_path / name) for name in ("a.tar", "b.tar", "text.mp4")]
    assert main([str(run), *inputs, "--output", str(tmp_path / "out")]) == 0
    shown, bar = capsys.readouterr()
    assert bar.rstrip().rpartition("\r")[2].startswith("clips: 100%")  # there are fewer than --num
    assert "out: 2 clips" in shown
    assert "left out: 4 (" in shown
    for reason in ("a.tar cut (", "bad_json: ", "not_a_tar: ", "undecodable: "):
        assert reason in shown
    names = sorted(path.name for path in (tmp_path / "out").glob("*_compare.mp4"))
    assert names == ["good_compare.mp4", f"{'long' * 50}_compare.mp4"]


def test_an_output_that_cannot_be_written_is_reported(run, shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*cannot be written: there is a file where a folder is needed"):
        list(reconstruct_files(DivotPipeline.from_pretrained(run), [str(shards / "train")], tmp_path / "file", num=1))
    with pytest.raises(UserError, match=r"train-000000\.mp4.*cannot be written"), limited_file_size(500):
        list(reconstruct_files(DivotPipeline.from_pretrained(run), [str(shards / "train")], tmp_path / "full", num=1))


def test_a_shard_cut_in_a_header_gives_what_is_whole_and_is_named(tmp_path):
    members = [member for key in "abc" for member in ((f"{key}.mp4", moving_clip(0)), (f"{key}.json", b"{}"))]
    path = write_members(tmp_path / "cut.tar", members)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[: offset + 100])
    skipped = []
    assert [key for key, _ in read_clips([str(path)], CLIP, skipped.append)] == ["a", "b"]
    assert [(sample.reason, sample.shard) for sample in skipped] == [("cut_in_header", str(path))]


def test_the_media_of_a_jsonl_are_read(tmp_path):
    world = ToyWorld()
    write_video(tmp_path / "mine.mp4", world.render(world.sample("train", np.random.default_rng(0))), 8, crf=0)
    (tmp_path / "list.jsonl").write_text('{"video": "mine.mp4"}\n')
    assert [key for key, _ in read_clips([str(tmp_path / "list.jsonl")], CLIP)] == ["line1"]


def test_inputs_are_read_before_anything_is_written(run, tmp_path):
    with pytest.raises(UserError, match=r"missing\.mp4"):
        reconstruct_files(DivotPipeline.from_pretrained(run), ["missing.mp4"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batches_do_not_change_tokens(run):
    video = torch.randint(0, 256, (5, 16, 3, 32, 32), dtype=torch.uint8)
    whole, parts = LoadedRun(run), LoadedRun(run, batch_size=2)
    torch.testing.assert_close(whole.encode(video), parts.encode(video))
    assert [len(batch) for batch in parts.decode(parts.encode(video))] == [2, 2, 1]


def test_decoding_is_reproducible_and_depends_on_the_tokens(run):
    models = LoadedRun(run)
    tokens = models.encode(torch.randint(0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8))

    def decode(tokens):
        return next(models.decode(tokens, torch.Generator().manual_seed(3)))

    assert decode(tokens).dtype == torch.uint8
    assert torch.equal(decode(tokens), decode(tokens))
    assert not torch.equal(decode(tokens), decode(tokens.flip(0)))


def test_comparison_is_enlarged_by_whole_pixels():
    left, right = (np.full((2, 3, 32, 32), shade, dtype=np.uint8) for shade in (10, 200))
    both = enlarged(side_by_side(left, right))
    assert both.shape == (2, 3, 256, 8 * 66)
    assert (both[..., :256] == 10).all()
    assert (both[..., -256:] == 200).all()


def test_three_videos_are_written_for_each_clip(run, shards, tmp_path):
    done = list(reconstruct_files(DivotPipeline.from_pretrained(run), [str(shards / "train")], tmp_path / "out", num=3))
    assert [path.name for path in done] == [f"train-{number:06d}_compare.mp4" for number in range(3)]
    names = {path.name for path in (tmp_path / "out").glob("*.mp4")}
    stored = json.loads((tmp_path / "out" / "train-000001.json").read_text())
    assert (stored["key"], stored["seed"], stored["sampling"]["guidance"]) == ("train-000001", 0, 2.0)
    assert names == {f"train-{n:06d}{kind}.mp4" for n in range(3) for kind in ("", "_original", "_compare")}
    assert probe(tmp_path / "out" / "train-000000.mp4").width == 32
    assert probe(done[0]).height == 256


@pytest.mark.parametrize("suffix", ["gif", "webm"])
def test_the_command_writes_other_kinds_of_video_and_names_them(run, shards, tmp_path, capsys, suffix):
    words = [str(run), str(shards / "train"), "--output", str(tmp_path / "out"), "--num", "1", "--format", suffix]
    assert main([*words, "--jsonl", "--sampler", "dpm_solver", "--steps", "2"]) == 0
    shown = capsys.readouterr()
    row = json.loads(shown.out)
    assert f"1 clip; look at *_compare.{suffix}" in shown.err
    assert [Path(path).name for path in row.values()] == [
        f"train-000000{kind}.{suffix}" for kind in ("", "_original", "_compare")
    ]
    assert (probe(row["file"]).width, probe(row["comparison"]).height) == (32, 256)
    stored = json.loads(Path(row["file"]).with_suffix(".json").read_text())
    assert (stored["sampling"]["steps"], stored["objective"]["init_args"]["solver"]) == (2, "dpm_solver")
    with pytest.raises(UserError, match="names no kind of video"):
        main([*words[:-1], "txt"])


def test_run_without_detokenizer_is_refused(run, tmp_path):
    save_component(tiny_tokenizer(), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="no detokenizer"):
        _ = LoadedRun(tmp_path).decoded_clip


def test_clips_are_cut_and_written_at_the_runs_own_rate(run, tmp_path):
    slow = tmp_path / "slow"
    shutil.copytree(run, slow)
    (slow / "config.yaml").write_text("data: {class_path: x.Y, init_args: {clip: {height: 32, width: 32, fps: 4}}}")
    world = ToyWorld(num_frames=32)
    video = world.render(world.sample("train", np.random.default_rng(0)))
    write_video(tmp_path / "mine.mp4", video, 8, crf=0)
    models = LoadedRun(slow)
    assert (models.decoded_clip.fps, models.decoded_clip.seconds, LoadedRun(run).decoded_clip.fps) == (4.0, 4.0, 8.0)
    # 16 frames at 4 per second are every other one of all 32.
    [(_, cut)] = read_clips([str(tmp_path / "mine.mp4")], models.decoded_clip)
    assert np.abs(cut.astype(int) - video[::2]).max() <= 8
    [compared] = reconstruct_files(DivotPipeline.from_pretrained(slow), [str(tmp_path / "mine.mp4")], tmp_path / "out")
    for name in ("mine.mp4", "mine_original.mp4", compared.name):
        with av.open(str(tmp_path / "out" / name)) as container:
            assert float(container.streams.video[0].average_rate) == 4.0


def test_the_first_tokens_alone_are_decoded(run, shards, tmp_path, monkeypatch):
    inputs, models, seen, decode = [str(shards / "held_out")], LoadedRun(run), [], LoadedRun.decode

    def watched(self, tokens, *rest):
        seen.append(tokens)
        return decode(self, tokens, *rest)

    monkeypatch.setattr(LoadedRun, "decode", watched)
    assert main([str(run), *inputs, "--output", str(tmp_path / "one"), "--num-tokens", "1"]) == 0
    (original,) = (torch.from_numpy(video.copy()) for _, video in read_clips(inputs, models.decoded_clip))
    tokens = models.encode(original[None])
    tokens[:, 1:] = 0.0
    assert torch.equal(seen[0], tokens)
    assert json.loads((tmp_path / "one/held_out-000000.json").read_text())["num_tokens"] == 1
    with pytest.raises(UserError, match="num_tokens is 4; a clip has 3 tokens, so give 1 to 3"):
        list(reconstruct_files(DivotPipeline.from_pretrained(run), inputs, tmp_path / "four", num_tokens=4))


def test_the_null_clip_of_the_guidance_is_encoded_once(run):
    models, calls = LoadedRun(run), []
    models.tokenizer.register_forward_hook(lambda *_: calls.append(1))
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    first, second = (next(models.decode(tokens, torch.Generator().manual_seed(0))) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first, second)
    assert torch.equal(models.null_tokens, models.tokenizer.null_tokens(32, 32))
