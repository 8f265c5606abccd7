"""Measurements with tiny untrained models: every kind writes its scores and what the report needs of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.vision.clip import ClipVision
from divot_datamodules.toy.world import ATTRIBUTES
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import save_component, weights_sha256
from divot_lightning.cli.main import main as run_divot
from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.experiments.measure import main, prepare
from divot_lightning.experiments.toy_measurements import load_clips
from divot_lightning.io.files import file_sha256
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import DetokenizerConfig, VideoDetokenizer
from divot_lightning.models.tokenizer.video_tokenizer import TokenizerConfig, VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.testing.toy_shards import make_toy_shards

HELD_OUT = 6
BENCHMARKS = {
    "reconstruction": "toy-batch-reconstruction",
    "world": "toy-real-clips",
    "generation": "toy-batch-generation",
    "probe": "toy-probe",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, cached features, and a run that has all components, none of them trained."""
    folder = tmp_path_factory.mktemp("quickstart")
    make_toy_shards(folder / "data", train=24, validation=2, held_out=HELD_OUT)
    torch.manual_seed(0)
    vision = partial(ClipVision, image_size=32, patch_size=16, width=8, layers=1, heads=2, frozen=False)
    sizes = {"temporal_width": 8, "temporal_layers": 1, "temporal_heads": 2, "temporal_init": "random", "pool_size": 2}
    sizes |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 2, "num_tokens": 3}
    sizes |= {"resampler_layers": 1, "resampler_heads": 2, "resampler_head_dim": 4, "token_dim": 4}
    save_component(VideoTokenizer(TokenizerConfig(vision=vision, **sizes)), folder / "run" / "tokenizer")
    config = DetokenizerConfig(
        latents=partial(BlockDCTLatents, scale=0.18215),
        denoiser=partial(VideoDiT, width=8, layers=1, heads=2, patch_frames=4),
        objective=VPrediction,
        sampling=SamplingConfig(steps=2, guidance=1.0),
        size=32,
        num_tokens=3,
        token_dim=4,
    )
    save_component(VideoDetokenizer(config), folder / "run" / "detokenizer")
    llama = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    llama |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    settings = VideoLLMConfig(
        language_model_config=llama,
        text_tokenizer=str(folder / "data" / "text_tokenizer"),
        num_queries=3,
        feature_dim=4,
    )
    save_component(VideoLLM(settings, MSEHead), folder / "run" / "video_llm")
    data, features = folder / "data", folder / "features"
    words = f"data encode --tokenizer {folder / 'run'}"
    splits = ("train", "held_out")
    encode = [f"{words} --input {data / split} --output {features / split}" for split in splits]
    assert run_divot(["several", *encode]) == 0
    return folder


def settings_of(folder, kind: str, output, **more) -> dict:
    """Return the settings of a measurement as a recipe's step has them."""
    run, clips = str(folder / "run"), str(folder / "data" / "held_out")
    features = {
        name: str(folder / "features" / split) for name, split in (("features", "held_out"), ("train", "train"))
    }
    evaluated = {"run": run, "data": str(folder / "data"), "max_new_tokens": 8}
    given = {
        "reconstruction": {"run": run, "clips": clips},
        "world": {"clips": clips},
        "generation": {"run": run, "detokenizer": run, "clips": clips},
        "probe": {"clips": clips, **features},
        "toy-captions": evaluated,
        "toy-questions": evaluated,
    }[kind]
    return {"name": kind, "benchmark": BENCHMARKS.get(kind, kind), "output": str(output / kind), **given, **more}


def measure(folder, kind: str, output, **more) -> dict[str, float]:
    assert main([json.dumps([settings_of(folder, kind, output, **more)])]) == 0
    return {score.name: score.value for score in load_scores(output / kind / "scores.json")}


def test_features_of_all_splits_are_cached(folder):
    clips = load_clips(folder / "features" / "held_out")
    assert clips.media.shape == (HELD_OUT, 3, 4)
    assert clips.keys == load_clips(folder / "data" / "held_out").keys


def test_reconstruction(folder, tmp_path):
    scores = measure(folder, "reconstruction", tmp_path)
    assert scores["reconstruction/invalid"] == 1.0
    assert {"reconstruction/psnr", "generation/frechet"} <= set(scores)
    with np.load(tmp_path / "reconstruction" / "clips.npz") as arrays:
        assert arrays["original"].shape == arrays["made"].shape == (HELD_OUT, 16, 3, 32, 32)


def test_real_clips_are_all_right(folder, tmp_path):
    scores = measure(folder, "world", tmp_path)
    assert [scores[f"generation/{name}"] for name in (*ATTRIBUTES, "all")] == [1.0] * 5


def test_generation(folder, tmp_path):
    scores = measure(folder, "generation", tmp_path)
    assert scores["generation/all"] == 0.0
    texts = json.loads((tmp_path / "generation" / "texts.json").read_text())
    assert [text["caption"] for text in texts] == [t["caption"] for t in load_clips(folder / "data" / "held_out").texts]


def test_captions_and_questions_are_those_of_divot_evaluate(folder, tmp_path):
    for kind in ("toy-captions", "toy-questions"):
        scores = measure(folder, kind, tmp_path)
        config = EvaluationConfig(kind, str(folder / "data"), output=str(tmp_path / "again" / kind), max_new_tokens=8)
        expected = evaluate(folder / "run", config).scores
        assert scores == {score.name: score.value for score in expected}
    rows = (tmp_path / "toy-questions" / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == len(ATTRIBUTES) * HELD_OUT


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("toy-captions", {"benchmark": "toy-caption"}, "benchmark 'toy-caption' is not installed"),
        ("toy-captions", {"max_new_token": 3}, "max_new_token"),
        ("probe", {"run": "x"}, "toy-probe has no setting run; it has clips, features, train"),
    ],
)
def test_measurements_with_wrong_settings_are_refused_before_anything_is_read(tmp_path, kind, more, message):
    with pytest.raises(UserError, match=message):
        prepare(settings_of(tmp_path, kind, tmp_path, **more))


def test_a_setting_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="toy-probe: missing a required argument: 'features'"):
        prepare({"benchmark": "toy-probe", "output": "x", "clips": "y"})
    with pytest.raises(UserError, match="toy-captions lacks the setting run"):
        prepare({"benchmark": "toy-captions", "output": "x", "data": "y"})


def test_an_error_ends_with_the_line_that_the_report_shows(folder, tmp_path, capsys):
    wrong = settings_of(folder, "generation", tmp_path, head={"guidance": 2})
    assert main([json.dumps([wrong])]) == 2
    assert capsys.readouterr().err.startswith("error: MSEHead has no sampling setting guidance")


def test_probe(folder, tmp_path):
    scores = measure(folder, "probe", tmp_path)
    assert set(scores) == {f"probe/{name}" for name in ATTRIBUTES}
    assert all(0.0 <= value <= 1.0 for value in scores.values())


@pytest.mark.parametrize("kind", ["reconstruction", "generation", "probe", "world"])
def test_a_score_says_what_it_means(folder, tmp_path, kind):
    measure(folder, kind, tmp_path)
    score = load_scores(tmp_path / kind / "scores.json")[0]
    shards = {path.name: file_sha256(path) for path in (folder / "data" / "held_out").glob("*.tar")}
    assert shards
    assert score.protocol["files"] == shards
    assert score.protocol["split"] == "held_out"
    assert score.protocol["versions"]["torch"] == torch.__version__
    models = {"reconstruction": ["tokenizer", "detokenizer"], "generation": ["video_llm", "tokenizer", "detokenizer"]}
    for name in models.get(kind, []):
        assert score.model[name] == weights_sha256(folder / "run" / name)
        assert score.protocol["weights"][name] == "trained"
    if kind == "probe":
        features = sorted((folder / "features" / "held_out").glob("*.tar"))
        assert score.model["features"] == {path.name: file_sha256(path) for path in features}
    else:
        assert score.protocol["clips"]["frames"] == 16


def test_several_measurements_share_a_process(folder, tmp_path):
    both = [settings_of(folder, "world", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert main([json.dumps(both)]) == 0
    first, second = (load_scores(tmp_path / seed / "world" / "scores.json") for seed in "01")
    assert first != second


@pytest.mark.parametrize("kind", ["reconstruction", "generation"])
def test_items_have_the_scores_as_their_means(folder, tmp_path, kind):
    scores = measure(folder, kind, tmp_path)
    items = json.loads((tmp_path / kind / "items.json").read_text())
    assert set(items) == {f"{kind}/{name}" for name in ("all", *ATTRIBUTES)}
    for name, values in items.items():
        assert len(values) == HELD_OUT
        assert np.mean(values) == pytest.approx(scores[name])
