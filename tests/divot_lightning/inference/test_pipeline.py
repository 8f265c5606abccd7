"""The pipeline does what the functions do by hand, the same for the same seed, whatever form the input has."""

import io
import json

import numpy as np
import pytest
import torch

from divot_datamodules.decoding.clip_sampling import decode_clip
from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.tasks.built_in import ConversationTask
from divot_datamodules.toy.world import ToyWorld
from divot_lightning import ClipFeatures, Decoding, DivotPipeline
from divot_lightning.errors import UserError
from divot_lightning.inference.ask import answer, media_prompt, question_prompt
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.media_input import read_video
from divot_lightning.parts.segments import Clips, Text

QUESTION = "What colour is it ?"


@pytest.fixture(scope="module")
def pipeline(llm_run):
    return DivotPipeline.from_pretrained(llm_run)


@pytest.fixture(scope="module")
def frames():
    world = ToyWorld()
    return world.render(world.sample("train", np.random.default_rng(0)))


@pytest.fixture(scope="module")
def video(tmp_path_factory, frames):
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames, 8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(path)
    return path


def test_a_reconstruction_is_encoding_and_decoding_of_the_middle_clip(pipeline, video):
    models = pipeline.models
    original = torch.from_numpy(decode_clip(video, models.decoded_clip).video.copy())[None]
    tokens = models.encode(original)
    (decoded,) = models.decode(tokens, torch.Generator().manual_seed(3))
    reconstruction = pipeline.reconstruct(video, seed=3)
    assert torch.equal(reconstruction.original_NFCHW, original)
    assert torch.equal(reconstruction.features_NQC, tokens)
    assert torch.equal(reconstruction.video_NFCHW, decoded)
    assert torch.equal(pipeline.decode(pipeline.encode(video), seed=3), decoded)
    assert not torch.equal(pipeline.reconstruct(video, seed=4).video_NFCHW, decoded)


def test_the_first_tokens_alone_are_decoded(pipeline, video):
    tokens = pipeline.models.encode(pipeline.reconstruct(video).original_NFCHW)
    tokens[:, 1:] = 0.0
    reconstruction = pipeline.reconstruct(video, seed=3, num_tokens=1)
    assert torch.equal(reconstruction.features_NQC, tokens)
    assert torch.equal(reconstruction.video_NFCHW, pipeline.decode(tokens, seed=3))
    assert reconstruction.settings["num_tokens"] == 1


def test_generated_clips_are_decoded_features_of_the_seed(pipeline):
    models = pipeline.models
    features = generate_clip_features(models.video_llm, ["a red circle"] * 2, seed=5)
    (clips,) = models.decode(features, torch.Generator().manual_seed(5))
    generated = pipeline.generate("a red circle", num=2, seed=5)
    assert torch.equal(generated.features_NQC, features)
    assert torch.equal(generated.video_NFCHW, clips)
    assert torch.equal(pipeline.generate("a red circle", num=2, seed=5).video_NFCHW, clips)
    assert not torch.equal(pipeline.generate("a red circle", num=2, seed=6).video_NFCHW, clips)


def test_a_prompt_in_a_list_gets_the_clips_that_it_gets_alone(pipeline):
    prompts = ["a red circle", "a blue square"]
    together = pipeline.generate(prompts, num=2)
    assert [generated.prompt for generated in together] == prompts
    for generated in together:
        assert torch.equal(generated.video_NFCHW, pipeline.generate(generated.prompt, num=2).video_NFCHW)


def test_answers_are_those_of_the_functions_and_independent_of_each_other(pipeline, video):
    questions = [QUESTION, "what shape is it ?", ""]
    features = pipeline.encode(video)
    prompts = [media_prompt(question, features.kinds, "pretraining") for question in questions]
    by_hand = answer(pipeline.models.video_llm, prompts, [features.features_NQC] * 3, max_new_tokens=6)
    assert [one.text for one in pipeline.ask(video, questions, max_new_tokens=6)] == by_hand
    assert [pipeline.ask(features, one, max_new_tokens=6).text for one in questions] == by_hand


def test_a_sampled_answer_depends_on_its_seed_alone(pipeline, video):
    options = {"temperature": 1.0, "max_new_tokens": 8}
    alone = [pipeline.ask(video, one, seed=2, **options).text for one in (QUESTION, "what shape is it ?")]
    assert [one.text for one in pipeline.ask(video, [QUESTION, "what shape is it ?"], seed=2, **options)] == alone
    assert pipeline.ask(video, QUESTION, seed=3, **options).text != alone[0]


@pytest.mark.parametrize("settings", [{}, {"end_after": "last", "separator": "\n"}])
@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_a_further_turn_is_asked_as_conversations_were_trained(template, settings):
    sample = {"questions": [{"question": "a ?", "answer": "b"}, {"question": "c ?", "answer": "d"}]}
    trained = ConversationTask(template, **settings).segments(sample, np.random.default_rng(0), num_clips=2)
    assert [
        *question_prompt("c ?", 2, template, history=[("a ?", "b")], tasks={"conversation": settings}),
        Text("d", learn=True),
    ] == trained


def test_earlier_turns_change_the_answer(llm_run, video):
    pipeline = DivotPipeline.from_pretrained(llm_run, template="instruction")
    first = pipeline.ask(video, "what shape is it ?", max_new_tokens=4)
    prompt = question_prompt(QUESTION, 1, "instruction", history=[(first.question, first.text)])
    by_hand = answer(pipeline.models.video_llm, [prompt], [pipeline.encode(video).features_NQC], max_new_tokens=4)
    assert [pipeline.ask(video, QUESTION, history=[first], max_new_tokens=4).text] == by_hand


def test_several_videos_and_pictures_are_read_in_order(pipeline, video, picture):
    features = pipeline.encode([video, picture, video])
    assert features.kinds == ("video", "image", "video")
    parts = [pipeline.encode(one).features_NQC for one in (video, picture, video)]
    assert torch.equal(features.features_NQC, torch.cat(parts))
    clips = [part for part in media_prompt(QUESTION, features.kinds, "instruction") if isinstance(part, Clips)]
    assert clips == [Clips(1, "read"), Clips(1, "read", "image"), Clips(1, "read")]
    assert media_prompt(QUESTION, ("video", "video"), "instruction") == question_prompt(QUESTION, 2, "instruction")
    assert isinstance(pipeline.ask([video, picture], QUESTION).text, str)


def test_all_forms_of_a_file_give_the_same_features(pipeline, video, picture):
    for path, kind in ((video, "video"), (picture, "image")):
        expected = pipeline.encode(str(path))
        assert expected.kinds == (kind,)
        content = path.read_bytes()
        with path.open("rb") as file:
            for form in (path, content, io.BytesIO(content), file, expected):
                found = pipeline.encode(form)
                assert torch.equal(found.features_NQC, expected.features_NQC)
                assert found.kinds == expected.kinds


def test_all_forms_of_pixels_give_the_same_clips(pipeline, frames):
    from PIL import Image

    clip = pipeline.models.decoded_clip
    forms = [frames, frames[None], frames.transpose(0, 2, 3, 1), torch.from_numpy(frames)]
    for form in forms:
        found, kind = read_video(form, clip)
        assert kind == "video"
        np.testing.assert_array_equal(found, frames[None])
    still = frames[0].transpose(1, 2, 0)
    for form in (still, frames[0], Image.fromarray(still)):
        found, kind = read_video(form, clip)
        assert kind == "image"
        np.testing.assert_array_equal(found, np.broadcast_to(frames[0], (1, 16, 3, 32, 32)))


def test_pixels_of_any_length_and_size_are_cut_as_the_same_file_is(pipeline, tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    path = write_video(tmp_path / "big.mkv", big.transpose(0, 3, 1, 2), 8, crf=0)
    clip = pipeline.models.decoded_clip
    from_file, from_pixels = read_video(path, clip)[0], read_video(big, clip)[0]
    assert from_file.shape == from_pixels.shape == (3, 16, 3, 32, 32)
    assert np.abs(from_file.astype(int) - from_pixels).mean() < 2


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (np.zeros((16, 32, 32, 3)), r"the array is float64 \(16, 32, 32, 3\)"),
        (np.zeros((16, 32, 32), np.uint8), "no video or picture"),
        (np.zeros((1, 5, 32, 32, 3), np.uint8), "clips of 5 frames; this run's have 16"),
        ("nowhere.mp4", r"there is no file nowhere\.mp4"),
        (b"no video", "the given bytes gives? no clip: undecodable"),
        (io.StringIO("text"), 'open it with "rb"'),
        ([], "the list of videos is empty"),
    ],
)
def test_what_is_no_video_is_named_in_at_most_five_lines(pipeline, media, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline.encode(media)
    assert len(str(caught.value).splitlines()) <= 5


def test_sampling_settings_hold_for_one_call(pipeline):
    models = pipeline.models
    usual = pipeline.generate("a red circle")
    changed = pipeline.generate(
        "a red circle", variance_scale=0.5, decoding=Decoding(steps=3, guidance=1.0, sampler={"eta": 0.0})
    )
    settings = changed.settings
    assert settings["head"] == {"variance_scale": 0.5}
    assert (settings["sampling"]["steps"], settings["sampling"]["guidance"]) == (3, 1.0)
    assert settings["objective"]["init_args"]["eta"] == 0.0
    assert not torch.equal(changed.video_NFCHW, usual.video_NFCHW)
    assert (models.video_llm.head.variance_scale, models.detokenizer.objective.eta) == (0.1, 1.0)
    assert torch.equal(pipeline.generate("a red circle").video_NFCHW, usual.video_NFCHW)


def test_each_sampler_setting_changes_the_clip(pipeline, video):
    features = pipeline.encode(video)
    usual = pipeline.decode(features)
    for changes in ({"steps": 3}, {"guidance": 1.0}, {"sampler": {"eta": 0.0}}, {"sampler": "unipc"}):
        decoding = Decoding(**changes)
        assert not torch.equal(pipeline.decode(features, decoding=decoding), usual)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": {"steps": 3}}, r"GMMHead has no sampling setting steps"),
        ({"decoding": Decoding(sampler={"order": 1})}, r"VPrediction has no sampling setting order; it has: eta"),
        ({"decoding": Decoding(sampler="euler")}, r"solver is 'euler'; choose one of: ddim, dpm_solver, unipc"),
        ({"num": 0}, "number of clips is 0"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"decoding": Decoding(steps=0)}, r"sampling\.steps is 0; it must be at least 1"),
        ({"decoding": Decoding(guidance=float("nan"))}, r"sampling\.guidance is nan"),
        ({"decoding": Decoding(steps=1001)}, r"sampling\.steps is 1001; give 1 to 1000"),
        ({"seed": 2**64}, rf"seed is {2**64}; it must be from 0 to {2**64 - 1}"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
    ],
)
def test_settings_that_there_are_not_are_refused_before_a_model_runs(pipeline, options, message, monkeypatch):
    monkeypatch.setattr(pipeline.models.video_llm, "generate_features", None)
    with pytest.raises(UserError, match=message) as caught:
        pipeline.generate("a red circle", **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_an_empty_prompt_and_a_missing_folder_are_refused(tmp_path, pipeline):
    for prompt in (" ", [], ["a red circle", ""]):
        with pytest.raises(UserError, match="there is no text"):
            pipeline.generate(prompt)
    with pytest.raises(UserError, match="there is no run folder"):
        DivotPipeline.from_pretrained(tmp_path / "nowhere")


def test_saved_clips_have_their_settings_beside_them(pipeline, video, tmp_path):
    generated = pipeline.generate("a red circle", num=2, seed=7)
    paths = generated.save(tmp_path / "x.mp4")
    assert [path.name for path in paths] == ["x-0.mp4", "x-1.mp4"]
    stored = json.loads((tmp_path / "x-1.json").read_text())
    assert stored == {"prompt": "a red circle", **json.loads(json.dumps(generated.settings))}
    assert {"seed", "temperature", "head", "sampling", "objective", "template", "fps", "run"} <= set(stored)
    pipeline.reconstruct(video).save(tmp_path / "y.mp4")
    assert {"y.mp4", "y.json", "y_compare.mp4"} <= {path.name for path in tmp_path.iterdir()}


def test_a_dtype_is_that_of_all_models_and_changes_features_by_rounding(llm_run, pipeline, video):
    half = DivotPipeline.from_pretrained(llm_run, dtype="bfloat16")
    models = half.models
    for module in (models.tokenizer, models.detokenizer, models.video_llm.language_model):
        assert next(module.parameters()).dtype == torch.bfloat16
    found, exact = half.encode(video).features_NQC, pipeline.encode(video).features_NQC
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.2, rtol=0.1)
    assert half.generate("a red circle").video_NFCHW.shape == (1, 16, 3, 32, 32)
    assert isinstance(half.ask(video, QUESTION, max_new_tokens=3).text, str)
    with pytest.raises(UserError, match="dtype is 'int8'; choose one of float32"):
        DivotPipeline.from_pretrained(llm_run, dtype="int8")


def test_a_hub_repository_is_found_where_it_was_downloaded(llm_run, tmp_path, monkeypatch, video, pipeline):
    repository = tmp_path / "models--org--divot"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc").symlink_to(llm_run)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = DivotPipeline.from_pretrained("org/divot").encode(video)
    assert torch.equal(found.features_NQC, pipeline.encode(video).features_NQC)


def test_features_are_returned_as_they_are(pipeline):
    features = ClipFeatures(torch.zeros(2, 3, 4), ("video", "video"))
    assert pipeline.encode(features) is features
    assert len(features) == 2
