"""Reconstructions of a run are measured by one command, from folders of videos and from shards."""

import json

import numpy as np
import pytest
import torch

from divot_datamodules.decoding.clip_sampling import decode_clip
from divot_datamodules.decoding.video import decode_frames
from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.shards.sources import read_all
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig
from divot_lightning.evaluation.metrics.frechet import feature_distance
from divot_lightning.evaluation.metrics.toy_oracle import read_clips
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.runners.question_runner import item_seed
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.testing.run_distributed import run_distributed
from tests.divot_lightning.evaluation.random_lpips import alexnet_weights, random_network


def scores_of(folder):
    return {score.name.partition("/")[2]: score for score in load_scores(folder / "scores.json")}


class MeanColour(torch.nn.Module):
    """A stand-in for I3D with the same arguments."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return x.flatten(2).mean(dim=2)


@pytest.fixture
def videos(tmp_path, video_bytes):
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for name, count in (("a.mp4", 24), ("more/b.mp4", 16), ("more/c.mp4", 30)):
        (folder / name).write_bytes(video_bytes(count))
    (folder / "notes.txt").write_text("no video")
    return folder


def test_all_metrics_of_a_folder_equal_their_definitions(tiny_run, videos, tmp_path):
    torch.jit.script(MeanColour()).save(str(tmp_path / "i3d.pt"))
    torch.save(alexnet_weights(), tmp_path / "alexnet.pth")
    chosen = GenerationConfig(lpips=str(tmp_path / "alexnet.pth"), video_features=str(tmp_path / "i3d.pt"))
    out = tmp_path / "out"
    with random_network():
        evaluate(tiny_run, EvaluationConfig("reconstruction", str(videos), output=str(out), seed=4, generation=chosen))
    models, real, decoded = LoadedRun(tiny_run), [], []
    for number, name in enumerate(("a.mp4", "more/b.mp4", "more/c.mp4")):
        real.append(torch.from_numpy(decode_clip(videos / name, models.decoded_clip).video.copy()))
        noise = torch.Generator().manual_seed(item_seed(4, number))
        decoded.append(next(iter(models.decode(models.encode(real[-1][None]), noise)))[0])
    errors = [(a.double() - b.double()).square().mean().item() for a, b in zip(real, decoded, strict=True)]
    found = scores_of(out)
    assert found["psnr"].value == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    features = [torch.stack([clip.double().mean(dim=(0, 2, 3)) for clip in clips]) for clips in (real, decoded)]
    expected = feature_distance(*features, scaled=False).item()
    assert found["frechet_video_distance"].value == pytest.approx(expected, rel=1e-4)
    assert next(iter(found)) == "psnr"
    assert set(found) == {"psnr", "ssim", "lpips", "frechet_video_distance", "non_finite_features", "unreadable"}
    assert len(found["lpips"].protocol["lpips"]["sha256"]) == 64
    assert "lpips" not in found["psnr"].protocol
    assert found["psnr"].protocol["real_clips"].startswith("the middle 2 s")
    assert set(found["psnr"].model) == {"run", "tokenizer", "detokenizer", "objective"}
    assert "objective" not in found["psnr"].protocol
    with np.load(out / "generation" / "clips.npz") as kept:
        np.testing.assert_array_equal(kept["generated"], np.stack([clip.numpy() for clip in decoded]))
    assert sorted(path.name for path in (out / "generation").glob("*.mp4")) == [f"{n}_compare.mp4" for n in range(3)]


def test_published_reconstructions_are_measured_beside_those_of_the_run(tiny_run, videos, tmp_path):
    rng = np.random.default_rng(0)
    original, published = (rng.integers(0, 255, (count, 3, 48, 40), np.uint8) for count in (30, 16))
    for name, frames in (("cat_gt.gif", original), ("cat_recon.gif", published)):
        write_video(videos / name, frames, 10)
    read = [decode_frames(videos / f"cat_{name}.gif", [(i + 0.5) * span / 16 for i in range(16)]).astype(float)
            for name, span in (("gt", 3.0), ("recon", 1.6))]  # fmt: skip
    evaluate(tiny_run, EvaluationConfig("reconstruction", str(videos), output=str(tmp_path / "out")))
    found = scores_of(tmp_path / "out")
    colour = read[0].mean(axis=(0, 2, 3), keepdims=True)
    for name, clip in (("published_psnr", read[1]), ("one_colour_psnr", colour)):
        expected = 10 * np.log10(255**2 / ((clip - read[0]) ** 2).mean())
        assert found[name].value == pytest.approx(expected)
        assert found[name].count == 1
    assert found["psnr"].count == 4  # the published clip is no original
    assert "nearest in time" in found["published_psnr"].protocol["published"]


def test_the_first_tokens_alone_are_decoded_and_their_number_is_in_the_protocol(tiny_run, videos, tmp_path):
    out, models = tmp_path / "out", LoadedRun(tiny_run)
    kept = GenerationConfig(num_tokens=1)
    evaluate(tiny_run, EvaluationConfig("reconstruction", str(videos), output=str(out), seed=4, generation=kept))
    real = torch.from_numpy(decode_clip(videos / "a.mp4", models.decoded_clip).video.copy())
    tokens = models.encode(real[None])
    tokens[:, 1:] = 0.0
    expected = next(iter(models.decode(tokens, torch.Generator().manual_seed(item_seed(4, 0)))))[0]
    with np.load(out / "generation" / "clips.npz") as stored:
        np.testing.assert_array_equal(stored["generated"][0], expected.numpy())
    assert scores_of(out)["psnr"].protocol["decoding"] == {"seed": 4, "num_tokens": 1}
    too_many = EvaluationConfig(
        "reconstruction", str(videos), output=str(tmp_path / "too_many"), generation=GenerationConfig(num_tokens=99)
    )
    with pytest.raises(UserError, match="num_tokens is 99"):
        evaluate(tiny_run, too_many)


def test_a_video_that_cannot_be_read_is_left_out_and_counted(tiny_run, videos, tmp_path):
    (videos / "broken.mp4").write_bytes(b"no video")
    evaluate(tiny_run, EvaluationConfig("reconstruction", str(videos), output=str(tmp_path / "out")))
    found = scores_of(tmp_path / "out")
    assert (found["unreadable"].value, found["psnr"].count) == (0.25, 3)


def measured(rank, run, data, output):
    evaluate(run, EvaluationConfig("toy-reconstruction", data, output=output))
    return rank


def test_toy_reconstructions_have_the_oracles_scores_with_any_number_of_processes(tiny_run, toy_data, tmp_path, capsys):
    words = ["--benchmark", "toy-reconstruction", "--data", str(toy_data), "--output", str(tmp_path / "one")]
    assert main(["evaluate", str(tiny_run), *words]) == 0
    assert capsys.readouterr().out.startswith("toy-reconstruction/all\t")
    found = scores_of(tmp_path / "one")
    with np.load(tmp_path / "one" / "generation" / "clips.npz") as kept:
        readings = read_clips(torch.from_numpy(kept["generated"]))
    texts = [json.loads(raw.members["json"]) for raw in read_all(str(toy_data / "held_out"))]
    for name in ("colour", "shape", "direction", "speed"):
        right = [r.valid and getattr(r, name) == t["attributes"][name] for r, t in zip(readings, texts, strict=True)]
        assert found[name].value == sum(right) / 5
    assert found["invalid"].value == sum(not reading.valid for reading in readings) / 5
    assert {"spread", "start_error_pixels", "frechet", "psnr", "ssim", "all"} <= set(found)
    run_distributed(measured, 2, str(tiny_run), str(toy_data), str(tmp_path / "two"))
    assert (tmp_path / "one" / "scores.json").read_bytes() == (tmp_path / "two" / "scores.json").read_bytes()


def test_shards_are_reconstructed_as_the_folder_of_their_videos(tiny_run, toy_data, tmp_path):
    (tmp_path / "videos").mkdir()
    for raw in read_all(str(toy_data / "held_out")):
        (tmp_path / "videos" / f"{raw.key.replace('/', '-')}.mp4").write_bytes(raw.members["mp4"])
    for name, data in (("shards", toy_data / "held_out"), ("files", tmp_path / "videos")):
        evaluate(tiny_run, EvaluationConfig("reconstruction", str(data), output=str(tmp_path / name)))
    shards, files = (scores_of(tmp_path / name) for name in ("shards", "files"))
    assert shards["psnr"].value == files["psnr"].value
    assert shards["psnr"].count == 5
