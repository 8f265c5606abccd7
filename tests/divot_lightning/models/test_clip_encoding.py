import functools

import pytest
import torch

from divot_backbones.vision.clip import ClipVision
from divot_lightning.models.clip_encoding import CLIPS_AT_ONCE, encode_clips
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer


@pytest.fixture(scope="module", params=[8, 96])
def tokenizer(request):
    """Return a narrow tokenizer, and one so wide that matrix libraries choose their algorithm by the batch size."""
    torch.manual_seed(0)
    width = request.param
    vision = functools.partial(ClipVision, frozen=False, image_size=32, patch_size=8, width=width, layers=1, heads=2)
    config = TokenizerConfig(
        vision=vision,
        temporal_width=width,
        temporal_layers=1,
        temporal_heads=2,
        temporal_init="random",
        pool_size=2,
        spatiotemporal_width=width,
        spatiotemporal_layers=1,
        spatiotemporal_heads=2,
        num_tokens=3,
        resampler_layers=1,
        resampler_heads=2,
        resampler_head_dim=4,
        token_dim=4,
    )
    return VideoTokenizer(config).eval()


def clips(count, frames=5):
    return torch.randint(0, 256, (count, frames, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(1))


def test_the_tokens_are_the_tokenizers(tokenizer):
    video = clips(7, frames=16)
    with torch.no_grad():
        expected = tokenizer(to_unit_range(video))
    torch.testing.assert_close(encode_clips(tokenizer, video), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_clips_tokens_are_the_same_bits_in_every_batch_and_at_every_index(tokenizer, mixed):
    video = clips(13)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        alone = torch.cat([encode_clips(tokenizer, clip[None]) for clip in video])
        for order in (torch.arange(13), torch.randperm(13, generator=torch.manual_seed(2)), torch.arange(5, 12)):
            assert torch.equal(encode_clips(tokenizer, video[order]), alone[order])
    assert alone.dtype == torch.float32


def test_every_call_of_the_tokenizer_has_the_same_size(tokenizer):
    sizes = []
    handle = tokenizer.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    encode_clips(tokenizer, clips(6))
    handle.remove()
    assert sizes == [CLIPS_AT_ONCE["cpu"]] * 2


def test_dense_clips_give_the_tokens_of_their_sparse_frames(tokenizer):
    dense = clips(3, frames=16)
    assert torch.equal(encode_clips(tokenizer, dense), encode_clips(tokenizer, dense[:, [0, 4, 8, 12, 15]]))


def test_a_tokenizer_in_half_precision_takes_stored_clips(tokenizer):
    half = VideoTokenizer(tokenizer.config).eval().bfloat16()
    half.load_state_dict(tokenizer.state_dict())
    tokens = encode_clips(half, clips(2))
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, encode_clips(tokenizer, clips(2)), atol=0.2, rtol=0.2)
    assert not torch.equal(tokens, encode_clips(tokenizer, clips(2)))
