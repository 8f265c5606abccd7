"""CLIP similarity is the mean over frames of the model's own cosine."""

import numpy as np
import pytest
import torch
from PIL import Image

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.clip_similarity import ClipSimilarity, ClipTextSimilarity
from divot_lightning.parts.benchmarks import BenchmarkItem
from tests.divot_lightning.evaluation.measuring import clip_pairs, scores_of

CAPTIONS = ["a red circle", "the blue square moves left"]


def clips():
    return torch.randint(0, 256, (2, 3, 3, 20, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def expected(folder, video, caption):
    """By hand: Pillow resizes and crops, the model's forward gives the scaled cosine."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = []
    for frame in video:
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
        width = int(16 * picture.width / picture.height)
        picture = picture.resize((width, 16), Image.Resampling.BICUBIC)
        left = (width - 16) // 2
        array = np.asarray(picture.crop((left, 0, left + 16, 16)), dtype=np.float64) / 255
        pixels.append(((array - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1))
    words = tokenizer([caption], return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=torch.from_numpy(np.stack(pixels)).float(),
        ).logits_per_image
        return (logits / model.logit_scale.exp()).mean().item()


def test_similarity_is_the_mean_over_frames_of_the_models_cosine(clip_folder):
    items = [BenchmarkItem("", None, "", facts={"prompt": text}) for text in CAPTIONS]
    found = scores_of(ClipSimilarity(str(clip_folder)), clip_pairs(clips(), clips()), items)
    expected_mean = np.mean([expected(clip_folder, *pair) for pair in zip(clips(), CAPTIONS, strict=True)])
    np.testing.assert_allclose(found["clip_similarity"], expected_mean, rtol=1e-5)


def test_padding_to_a_longer_caption_and_overlong_texts_change_nothing(clip_folder):
    similarity = ClipTextSimilarity(clip_folder)
    alone = similarity(clips()[:1], CAPTIONS[:1])
    torch.testing.assert_close(similarity(clips(), CAPTIONS)[:1], alone, rtol=1e-5, atol=1e-6)
    assert similarity(clips()[:1], ["red " * 50]).isfinite().all()


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        ClipTextSimilarity(tmp_path)
