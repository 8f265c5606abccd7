"""Measurements with tiny untrained models: every kind writes its scores and what the report needs of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.objectives.ddim import VPrediction
from divot_datamodules.toy.world import ATTRIBUTES
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import save_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.experiments.quickstart.clips import load_clips
from divot_lightning.experiments.quickstart.encode import main as encode
from divot_lightning.experiments.quickstart.measure import main
from divot_lightning.io.files import file_sha256
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import DetokenizerConfig, VideoDetokenizer
from divot_lightning.models.tokenizer.video_tokenizer import TokenizerConfig, VideoTokenizer
from divot_lightning.models.tokenizer.vision_backbone import VisionConfig
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.testing.toy_shards import make_toy_shards

HELD_OUT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, cached features, and a run that has all components, none of them trained."""
    folder = tmp_path_factory.mktemp("quickstart")
    make_toy_shards(folder / "data", train=24, validation=2, held_out=HELD_OUT)
    torch.manual_seed(0)
    vision = VisionConfig(image_size=32, patch_size=16, width=8, layers=1, heads=2, frozen=False)
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
    encode([str(folder / "run"), str(folder / "data"), str(folder / "features")])
    return folder


def measure(folder, kind: str, output) -> dict[str, float]:
    words = [kind, "--clips", str(folder / "data" / "held_out"), "--features", str(folder / "features" / "held_out")]
    words += ["--train", str(folder / "features" / "train"), "--run", str(folder / "run")]
    assert main([*words, "--detokenizer", str(folder / "run"), "--output", str(output)]) == 0
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("generation", "MSEHead has no sampling setting guidance"),
        ("captions", "--head.guidance has no effect on captions"),
    ],
)
def test_settings_of_the_head_reach_what_samples_and_nothing_else(folder, tmp_path, kind, message):
    words = [kind, "--clips", str(folder / "data" / "held_out"), "--run", str(folder / "run")]
    with pytest.raises(UserError, match=message):
        main([*words, "--detokenizer", str(folder / "run"), "--output", str(tmp_path), "--head.guidance", "2"])


def test_captions_and_questions(folder, tmp_path):
    assert "captions/exact" in measure(folder, "captions", tmp_path)
    assert set(measure(folder, "questions", tmp_path)) == {f"questions/{name}" for name in ("all", *ATTRIBUTES)}
    rows = json.loads((tmp_path / "questions" / "texts.json").read_text())
    assert len(rows) == len(ATTRIBUTES) * HELD_OUT
    assert {"key", "question", "expected", "said"} == set(rows[0])


def test_what_is_asked_is_never_shown_to_the_model(folder, tmp_path, monkeypatch):
    seen = []

    def generate_text(self, segments, features, **settings):
        seen.extend(part.text for sample in segments for part in sample if hasattr(part, "text"))
        return [""] * len(segments)

    monkeypatch.setattr(VideoLLM, "generate_text", generate_text)
    measure(folder, "captions", tmp_path)
    measure(folder, "questions", tmp_path)
    texts = load_clips(folder / "data" / "held_out").texts
    truths = {text["caption"] for text in texts} | {turn["answer"] for text in texts for turn in text["questions"]}
    assert seen
    assert not truths.intersection(word.strip() for word in seen)


def test_probe(folder, tmp_path):
    scores = measure(folder, "probe", tmp_path)
    assert set(scores) == {f"probe/{name}" for name in ATTRIBUTES}
    assert all(0.0 <= value <= 1.0 for value in scores.values())


@pytest.mark.parametrize("kind", ["reconstruction", "generation", "captions", "questions", "probe", "world"])
def test_a_score_says_what_it_means(folder, tmp_path, kind):
    measure(folder, kind, tmp_path)
    score = load_scores(tmp_path / kind / "scores.json")[0]
    shards = {path.name: file_sha256(path) for path in (folder / "data" / "held_out").glob("*.tar")}
    assert shards
    assert score.protocol["files"] == shards
    assert score.protocol["split"] == "held_out"
    assert score.protocol["versions"]["torch"] == torch.__version__
    models = {"reconstruction": ["tokenizer", "detokenizer"], "generation": ["video_llm", "tokenizer", "detokenizer"]}
    models |= {"captions": ["video_llm"], "questions": ["video_llm"]}
    for name in models.get(kind, []):
        assert score.model[name] == weights_sha256(folder / "run" / name)
        assert score.protocol["weights"][name] == "trained"
    if kind in ("captions", "questions", "probe"):
        features = sorted((folder / "features" / "held_out").glob("*.tar"))
        assert score.model["features"] == {path.name: file_sha256(path) for path in features}
    else:
        assert score.protocol["clips"]["frames"] == 16


def test_several_measurements_share_a_process(folder, tmp_path):
    words = ["--clips", str(folder / "data" / "held_out"), "--output"]
    assert (
        main(["world", *words, str(tmp_path / "a"), "then", "world", *words, str(tmp_path / "b"), "--seed", "1"]) == 0
    )
    assert load_scores(tmp_path / "a" / "world" / "scores.json") != load_scores(
        tmp_path / "b" / "world" / "scores.json"
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reconstruction", ["--run", "{0}/run"]),
        ("generation", ["--run", "{0}/run", "--detokenizer", "{0}/run"]),
        ("captions", ["--run", "{0}/run", "--features", "{0}/features/held_out"]),
    ],
)
def test_items_have_the_scores_as_their_means(folder, tmp_path, kind, options):
    words = [word.format(folder) for word in options]
    assert main([kind, "--clips", str(folder / "data" / "held_out"), "--output", str(tmp_path), *words]) == 0
    scores = {score.name: score for score in load_scores(tmp_path / kind / "scores.json")}
    items = json.loads((tmp_path / kind / "items.json").read_text())
    assert items
    for name, values in items.items():
        assert len(values) == HELD_OUT
        assert np.mean(values) == pytest.approx(scores[name].value)
