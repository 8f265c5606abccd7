"""What the package does apart from lmms-eval: media, decoding settings, answers and scores."""

import numpy as np
import pytest
import torch
from divot_lmms_eval.answering import Answering
from divot_lmms_eval.decoding import decoding_of
from divot_lmms_eval.media import MediaEncoder
from PIL import Image

from divot_datamodules.decoding.video_writing import write_video
from divot_lightning import DivotPipeline
from divot_lightning.errors import UserError
from tests.divot_lightning.inference.conftest import llm_run  # noqa: F401


@pytest.fixture
def pipeline(llm_run):  # noqa: F811
    return DivotPipeline.from_pretrained(llm_run)


@pytest.fixture
def pixels():
    """A video of two seconds, uint8 (16, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)


def test_a_list_of_pictures_is_a_video_or_pictures_of_their_own(pipeline, pixels):
    pictures = [Image.fromarray(frame) for frame in pixels]
    video = MediaEncoder(pipeline, 20, "video").encode(0, pictures)
    assert video.kinds == ("video",)
    assert torch.equal(video.features_NQC, pipeline.encode(pixels).features_NQC)
    own = MediaEncoder(pipeline, 20, "pictures").encode(0, pictures[:2])
    assert own.kinds == ("image", "image")
    assert torch.equal(own.features_NQC, pipeline.encode(pictures[:2]).features_NQC)


def test_paths_single_pictures_and_no_media_are_read_as_what_they_are(pipeline, pixels, tmp_path):
    path = str(write_video(tmp_path / "v.mp4", np.moveaxis(pixels, -1, 1), 8))
    encoder = MediaEncoder(pipeline, 20, "video")
    assert torch.equal(encoder.encode("a", [path]).features_NQC, pipeline.encode(path).features_NQC)
    grey = Image.fromarray(pixels[0]).convert("L")
    assert encoder.encode("b", [grey]).kinds == ("image",)
    assert encoder.encode("c", [path, grey]).kinds == ("video", "image")
    assert encoder.encode("d", None).features_NQC.shape == (0, 3, 4)
    assert encoder.encode("e", []).kinds == ()


def test_frames_of_several_sizes_get_the_first_ones(pipeline, pixels):
    pictures = [Image.fromarray(pixels[0]), Image.fromarray(pixels[1]).resize((48, 40))] * 8
    assert MediaEncoder(pipeline, 20, "video").encode(0, pictures).kinds == ("video",)


def test_questions_about_the_same_media_encode_it_once(pipeline, pixels, monkeypatch):
    calls = []
    real = DivotPipeline.encode
    monkeypatch.setattr(DivotPipeline, "encode", lambda *args, **options: calls.append(1) or real(*args, **options))
    encoder, picture = MediaEncoder(pipeline, 20, "video"), Image.fromarray(pixels[0])
    for key in (1, 1, 1, 2):
        encoder.encode(key, [picture])
    assert len(calls) == 2


def test_sound_and_unknown_settings_are_refused(pipeline):
    with pytest.raises(UserError, match="videos and pictures only"):
        MediaEncoder(pipeline, 20, "video").encode(0, [{"array": [0.0], "sampling_rate": 16000}])
    with pytest.raises(UserError, match="picture_lists is 'frames'"):
        MediaEncoder(pipeline, 20, "frames")


def test_beams_are_named_and_replaced(caplog):
    assert decoding_of({"num_beams": 5})["temperature"] == 0.0
    assert "5 beams" in caplog.text


def test_a_batch_answers_and_scores_as_the_pipeline_does_one_by_one(pipeline, pixels):
    clips = [pipeline.encode(pixels), pipeline.encode(Image.fromarray(pixels[0]))]
    questions, answering = ["what shape is it ?", "where does it move ?"], Answering(pipeline, seed=3)
    for temperature in (0.0, 0.8):
        decoding = {"max_new_tokens": 5, "temperature": temperature, "top_p": 0.9}
        alone = [pipeline.ask(clip, text, seed=3, **decoding).text for clip, text in zip(clips, questions, strict=True)]
        assert answering.answer(questions, clips, decoding) == alone
    scored = answering.score(questions, ["cross", "left"], clips)
    for clip, question, word, (loss, greedy) in zip(clips, questions, ["cross", "left"], scored, strict=True):
        [alone] = pipeline.score_answers(clip, question, [word])
        assert loss == pytest.approx(alone.loss, rel=1e-5)
        assert greedy == alone.is_greedy


def test_a_question_without_media_is_answered_from_the_text(pipeline):
    nothing = MediaEncoder(pipeline, 20, "video").encode(0, None)
    [text] = Answering(pipeline, 0).answer(["what is red ?"], [nothing], decoding_of({"max_new_tokens": 3}))
    assert isinstance(text, str)
    assert Answering(pipeline, 0).score(["what is red ?"], ["a circle"], [nothing])[0][0] > 0
