"""The evaluations of a step, with tiny untrained models: each writes its scores and what the report needs of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.shards.sources import read_all
from divot_datamodules.toy.world import ATTRIBUTES
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import weights_sha256
from divot_lightning.cli.main import main as run_divot
from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.metrics.frechet import feature_distance
from divot_lightning.evaluation.metrics.probe import probe_accuracy
from divot_lightning.evaluation.metrics.toy_features import toy_clip_features
from divot_lightning.evaluation.metrics.toy_oracle import read_clips
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.evaluation.statistics.comparison import load_evaluation
from divot_lightning.experiments.measure import main, prepare
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.io.files import file_sha256
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.testing.run_distributed import run_distributed
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.tiny_models import tiny_detokenizer, tiny_tokenizer

HELD_OUT = 6
CLIPS = ("toy-reconstruction", "toy-real-clips", "toy")
ONE_SEED = {"one_seed": True, "kept_clips": HELD_OUT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, cached features, and a run that has all components, none of them trained."""
    folder = tmp_path_factory.mktemp("quickstart")
    make_toy_shards(folder / "data", train=24, validation=2, held_out=HELD_OUT)
    torch.manual_seed(0)
    save_component(tiny_tokenizer(), folder / "run" / "tokenizer")
    detokenizer = tiny_detokenizer(guidance=1.0)
    with torch.no_grad():  # a new denoiser is the zero function
        for value in detokenizer.denoiser.parameters():
            value.add_(0.1 * torch.randn_like(value))
    save_component(detokenizer, folder / "run" / "detokenizer")
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
    """Return the settings of an evaluation as a recipe's step has them."""
    given = {
        "toy-reconstruction": {"generation": ONE_SEED},
        "toy": {"generation": {**ONE_SEED, "detokenizer": str(folder / "run")}},
        "toy-probe": {"data": str(folder / "features")},
        "toy-captions": {"max_new_tokens": 8},
        "toy-questions": {"max_new_tokens": 8},
    }.get(kind, {})
    known = {"name": kind, "benchmark": kind, "run": str(folder / "run"), "data": str(folder / "data")}
    return {**known, "output": str(output / kind), **given, **more}


def measure(folder, kind: str, output, **more) -> dict[str, float]:
    assert main([json.dumps([settings_of(folder, kind, output, **more)])]) == 0
    return {score.name.partition("/")[2]: score.value for score in load_scores(output / kind / "scores.json")}


def clips_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "generation" / "clips.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def real(folder):
    """The held-out clips, uint8 (N, F, 3, H, W), and their texts."""
    decode = SampleDecoder(ClipConfig(height=32, width=32))
    samples = [decode(raw, None) for raw in read_all(folder / "data" / "held_out")]
    return torch.cat([sample.video for sample in samples]), [sample.text for sample in samples]


def decoded(models: LoadedRun, tokens_NQC: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.cat(list(models.decode(tokens_NQC, torch.Generator().manual_seed(seed))))


def oracle_scores(clips: torch.Tensor, texts: list[dict]) -> dict[str, float]:
    """Return the fractions that the oracle finds right, by their definition."""
    pairs = list(zip(read_clips(clips), texts, strict=True))
    rights = [[r.valid and getattr(r, name) == t["attributes"][name] for name in ATTRIBUTES] for r, t in pairs]
    found = dict(zip(ATTRIBUTES, np.mean(rights, axis=0), strict=True))
    return {**found, "all": np.mean([all(row) for row in rights]), "invalid": np.mean([not r.valid for r, _ in pairs])}


@pytest.mark.parametrize("seed", [0, 3])
def test_reconstructions_of_one_seed_are_those_of_one_batch(folder, tmp_path, real, seed):
    """The quickstart's numbers have always been those of all clips in one batch; they stay the same to the last bit."""
    scores = measure(folder, "toy-reconstruction", tmp_path, seed=seed)
    models, clips = LoadedRun(folder / "run"), clips_of(tmp_path / "toy-reconstruction")
    expected = decoded(models, models.encode(real[0]), seed)
    np.testing.assert_array_equal(clips["original"], real[0].numpy())
    np.testing.assert_array_equal(clips["generated"], expected.numpy())
    squares = (expected.double() - real[0].double()).square().flatten(1).mean(dim=1)
    assert scores["psnr"] == pytest.approx((10 * torch.log10(255**2 / squares)).mean().item(), rel=1e-7)
    assert {name: scores[name] for name in (*ATTRIBUTES, "all", "invalid")} == oracle_scores(expected, real[1])
    assert {"frechet", "start_error_pixels", "spread"} <= set(scores)


@pytest.mark.parametrize("seed", [0, 3])
def test_generated_clips_of_one_seed_are_those_of_one_batch(folder, tmp_path, real, seed):
    scores = measure(folder, "toy", tmp_path, seed=seed)
    models, captions = LoadedRun(folder / "run"), [text["caption"] for text in real[1]]
    tokens_NQC = generate_clip_features(models.video_llm, captions, template=models.template, seed=seed)
    expected = decoded(models, tokens_NQC, seed)
    np.testing.assert_array_equal(clips_of(tmp_path / "toy")["generated"], expected.numpy())
    assert {name: scores[name] for name in (*ATTRIBUTES, "all", "invalid")} == oracle_scores(expected, real[1])
    distance = feature_distance(toy_clip_features(real[0]), toy_clip_features(expected), scaled=True)
    assert scores["frechet"] == pytest.approx(distance.item(), rel=1e-9)
    texts = json.loads((tmp_path / "toy" / "generation" / "texts.json").read_text())
    assert [text["caption"] for text in texts] == captions


def test_another_seed_makes_other_clips(folder, tmp_path):
    generated = []
    for seed in (0, 3):
        measure(folder, "toy-reconstruction", tmp_path / str(seed), seed=seed)
        generated.append(clips_of(tmp_path / str(seed) / "toy-reconstruction")["generated"])
    assert (generated[0] != generated[1]).any(axis=(1, 2, 3, 4)).all()


def test_without_one_seed_a_clip_does_not_depend_on_the_others(folder, tmp_path):
    for count in (2, HELD_OUT):
        measure(folder, "toy-reconstruction", tmp_path / str(count), limit=count, generation={})
    few, all_of_them = (clips_of(tmp_path / str(n) / "toy-reconstruction")["generated"] for n in (2, HELD_OUT))
    np.testing.assert_array_equal(few, all_of_them[:2])


def test_with_one_seed_another_number_of_clips_is_another_protocol(folder, tmp_path, capsys):
    measure(folder, "toy-reconstruction", tmp_path, limit=2)
    assert main([json.dumps([settings_of(folder, "toy-reconstruction", tmp_path)])]) == 2
    assert "items_of_one_seed was 2, now it is 6" in capsys.readouterr().err


def test_clips_of_one_seed_are_made_together_or_not_at_all(folder, tmp_path):
    """A stopped evaluation, or one whose stored clip was lost, makes the same clips again."""
    first = measure(folder, "toy-reconstruction", tmp_path)
    generated, output = clips_of(tmp_path / "toy-reconstruction")["generated"], tmp_path / "toy-reconstruction"
    (output / "clips" / "3.npz").unlink()
    rows = (output / "predictions.jsonl").read_text().splitlines(keepends=True)
    (output / "predictions.jsonl").write_text("".join(rows[:2]))
    assert measure(folder, "toy-reconstruction", tmp_path) == pytest.approx(first, nan_ok=True, rel=0, abs=0)
    np.testing.assert_array_equal(clips_of(output)["generated"], generated)


def evaluated_on_rank(rank, settings):
    prepare(settings)()


def test_clips_of_one_seed_are_the_same_on_two_processes(folder, tmp_path):
    alone = measure(folder, "toy", tmp_path / "one")
    run_distributed(evaluated_on_rank, 2, settings_of(folder, "toy", tmp_path / "two"))
    files = [(tmp_path / name / "toy" / "scores.json").read_bytes() for name in ("one", "two")]
    assert alone
    assert files[0] == files[1]


def test_real_clips_are_all_right(folder, tmp_path):
    scores = measure(folder, "toy-real-clips", tmp_path)
    assert [scores[name] for name in (*ATTRIBUTES, "all")] == [1.0] * 5


@pytest.mark.parametrize("encoded", [True, False])
def test_the_probe_is_fitted_on_training_clips_and_tested_on_held_out_ones(folder, tmp_path, encoded):
    """Cached features, and the videos that they were made from, have the same scores."""
    where = folder / ("features" if encoded else "data")
    scores = measure(folder, "toy-probe", tmp_path, data=str(where))
    decode = SampleDecoder()
    parts = [[decode(raw, None) for raw in read_all(folder / "features" / split)] for split in ("train", "held_out")]
    tokens = [torch.cat([sample.features for sample in part]).flatten(1) for part in parts]
    for name in ATTRIBUTES:
        labels = [[sample.text["attributes"][name] for sample in part] for part in parts]
        assert scores[name] == probe_accuracy(tokens[0], labels[0], tokens[1], labels[1])
    counts = {score.name: score.count for score in load_scores(tmp_path / "toy-probe" / "scores.json")}
    assert counts["toy-probe/shape"] == HELD_OUT


def test_where_the_training_clips_of_the_probe_are_is_not_in_its_protocol(folder, tmp_path):
    protocols = []
    for name in ("here", "there"):
        train = shutil.copytree(folder / "features" / "train", tmp_path / name)
        benchmark = {"class_path": "toy-probe", "init_args": {"train": str(train)}}
        measure(
            folder, "toy-probe", tmp_path / "scores" / name, benchmark=benchmark, data=str(folder / "features/held_out")
        )
        scores = load_scores(tmp_path / "scores" / name / "toy-probe" / "scores.json")
        protocols.append({score.name: score.protocol for score in scores})
    assert protocols[0] == protocols[1]
    assert str(tmp_path / "here") not in json.dumps(protocols[0])


def test_the_probe_refuses_the_features_of_another_tokenizer(folder, tmp_path, capsys):
    other = shutil.copytree(folder / "run", tmp_path / "other")
    weights = load_file(other / "tokenizer" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "tokenizer" / "model.safetensors")
    assert main([json.dumps([settings_of(folder, "toy-probe", tmp_path, run=str(other))])]) == 2
    assert re.search("features of .*made by tokenizer .*divot data encode", capsys.readouterr().err, re.DOTALL)


def test_captions_and_questions_are_those_of_divot_evaluate(folder, tmp_path):
    for kind in ("toy-captions", "toy-questions"):
        scores = measure(folder, kind, tmp_path)
        config = EvaluationConfig(kind, str(folder / "data"), output=str(tmp_path / "again" / kind), max_new_tokens=8)
        expected = evaluate(folder / "run", config).scores
        assert scores == {score.name.partition("/")[2]: score.value for score in expected}
    rows = [json.loads(line) for line in (tmp_path / "toy-questions" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(ATTRIBUTES) * HELD_OUT
    assert all(row["target"] for row in rows)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("toy-captions", {"benchmark": "toy-caption"}, "benchmark 'toy-caption' is not installed"),
        ("toy-captions", {"max_new_token": 3}, "max_new_token"),
        ("toy", {"benchmark": "toy-batch-generation"}, "is now 'toy' with generation.one_seed"),
        ("toy-real-clips", {"generation": {"one_seed": True}}, "generation.one_seed has no effect on toy-real-clips"),
    ],
)
def test_evaluations_with_wrong_settings_are_refused_before_anything_is_read(tmp_path, kind, more, message):
    with pytest.raises(UserError, match=message):
        prepare(settings_of(tmp_path, kind, tmp_path, **more))


def test_a_setting_that_is_missing_is_named():
    with pytest.raises(UserError, match="toy-captions lacks the setting run"):
        prepare({"benchmark": "toy-captions", "output": "x", "data": "y"})


def test_an_error_ends_with_the_line_that_the_report_shows(folder, tmp_path, capsys):
    wrong = settings_of(folder, "toy", tmp_path, generation={"head": {"guidance": 2}})
    assert main([json.dumps([wrong])]) == 2
    assert capsys.readouterr().err.startswith("error: MSEHead has no sampling setting guidance")


@pytest.mark.parametrize("kind", [*CLIPS, "toy-probe"])
def test_a_score_says_what_it_means(folder, tmp_path, kind):
    measure(folder, kind, tmp_path)
    score = load_scores(tmp_path / kind / "scores.json")[0]
    shards = {path.name: file_sha256(path) for path in (folder / "data" / "held_out").glob("*.tar")}
    assert shards
    # Cached features belong to the model; two tokenizers are measured in one way.
    assert score.protocol["files"] == ({} if kind == "toy-probe" else shards)
    assert score.protocol["split"] == "held_out"
    assert score.protocol["versions"]["torch"] == torch.__version__
    models = {"toy-reconstruction": ["tokenizer", "detokenizer"], "toy": ["video_llm", "tokenizer", "detokenizer"]}
    models |= {"toy-probe": ["tokenizer"]}
    for name in models.get(kind, []):
        assert score.model[name] == weights_sha256(folder / "run" / name)
        assert score.protocol["weights"][name] == "trained"
    assert score.protocol["clips"]["frames"] == 16


def test_several_evaluations_share_a_process(folder, tmp_path):
    both = [settings_of(folder, "toy-real-clips", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert main([json.dumps(both)]) == 0
    first, second = (load_scores(tmp_path / seed / "toy-real-clips" / "scores.json") for seed in "01")
    assert first != second


@pytest.mark.parametrize("kind", ["toy-reconstruction", "toy"])
def test_items_have_the_scores_as_their_means(folder, tmp_path, kind):
    scores = measure(folder, kind, tmp_path)
    found = load_evaluation(tmp_path / kind)
    for name in ("all", *ATTRIBUTES):
        values = found.values(f"{kind}/{name}")
        assert len(values) == HELD_OUT
        assert np.mean(list(values.values())) == pytest.approx(scores[name])
