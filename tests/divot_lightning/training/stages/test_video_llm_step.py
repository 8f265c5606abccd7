from types import SimpleNamespace

import pytest
import torch

from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMOutput
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.video_llm_step import (
    apply_feature_statistics,
    clip_features,
    feature_statistics,
    find_detokenizer,
    loss_parts,
)


def test_a_batch_without_clips_has_no_features(tokenizer_run):
    tokenizer = load_component(tokenizer_run / "tokenizer", VideoTokenizer).eval()
    assert clip_features({"segments": []}, tokenizer) is None


def test_videos_are_encoded_from_their_sparse_frames_without_gradient(tokenizer_run, batches):
    tokenizer = load_component(tokenizer_run / "tokenizer", VideoTokenizer).eval()
    features = clip_features(batches[0], tokenizer)
    sparse = batches[0]["video"][:, [0, 4, 8, 12, 15]].float() / 127.5 - 1
    torch.testing.assert_close(features, tokenizer(sparse))
    assert not features.requires_grad


def test_sums_of_parts_give_the_statistics_of_the_whole(tokenizer_run, make_config, head):
    tokenizer = load_component(tokenizer_run / "tokenizer", VideoTokenizer).eval()
    video_llm = VideoLLM(make_config(), head)
    parts = [torch.randn(count, 3, 8) * 5 + 100 for count in (2, 4)]
    sums = sum(feature_statistics([{"features": part}], 1, tokenizer, video_llm) for part in parts)
    apply_feature_statistics(video_llm, sums)
    whole = torch.cat(parts).flatten(0, 1)
    torch.testing.assert_close(video_llm.feature_mean_C, whole.mean(dim=0))
    torch.testing.assert_close(video_llm.feature_std_C, whole.std(dim=0, correction=0))


def test_only_the_asked_number_of_batches_is_read(tokenizer_run, make_config, head):
    tokenizer = load_component(tokenizer_run / "tokenizer", VideoTokenizer).eval()
    batches = iter([{"features": torch.randn(1, 3, 8)}] * 5)
    sums = feature_statistics(batches, 2, tokenizer, VideoLLM(make_config(), head))
    assert sums[0, 0] == 6
    assert len(list(batches)) == 3


@pytest.mark.parametrize("counted", [4, 0])
def test_losses_come_with_their_counts_which_are_zero_for_a_dummy_batch(counted):
    output = VideoLLMOutput(torch.tensor(1.0), torch.tensor(2.0), 7, 3)
    parts = loss_parts(output, {"segments": [[]] * 4, "counted": counted}, text_loss_weight=0.5, head_loss_weight=2.0)
    assert parts == {
        "text_loss": LossPart(torch.tensor(1.0), 7 if counted else 0, 0.5),
        "head_loss": LossPart(torch.tensor(2.0), 3 if counted else 0, 2.0),
    }


def test_a_batch_is_filled_up_with_clips_that_nobody_sees(tokenizer_run, batches):
    tokenizer = load_component(tokenizer_run / "tokenizer", VideoTokenizer).eval()
    torch.testing.assert_close(clip_features(batches[0], tokenizer, 7), clip_features(batches[0], tokenizer))
    assert clip_features({"segments": []}, tokenizer, 3) is None
    cached = {"features": torch.ones(2, 3, 8)}
    assert clip_features(cached, tokenizer, 3) is cached["features"]


def test_the_detokenizer_of_the_previous_run_is_exported(tokenizer_run):
    tokenizer_folder = find_component(tokenizer_run, "tokenizer")
    assert find_detokenizer(str(tokenizer_run), tokenizer_folder) == {}
    assert find_detokenizer(str(tokenizer_folder), tokenizer_folder) == {}
    stand_in = load_component(tokenizer_folder, VideoTokenizer)
    save_component(stand_in, tokenizer_run / "detokenizer")
    assert find_detokenizer(str(tokenizer_run), tokenizer_folder) == {"detokenizer": tokenizer_run / "detokenizer"}


def test_too_few_features_for_statistics_are_refused():
    with pytest.raises(UserError, match="hold 1 features"):
        apply_feature_statistics(SimpleNamespace(), torch.ones(3, 4))
