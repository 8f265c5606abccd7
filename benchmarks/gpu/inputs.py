"""The inputs of the GPU benchmark, made on the spot: videos, pictures, texts. Their content does not matter.

Run: python benchmarks/gpu/inputs.py FOLDER SIZE SAMPLES
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer

WORDS = 32_000
"""As many as the language model of the paper knows."""

FPS = 8.0


def make_inputs(folder: Path, size: int, samples: int, words: int = WORDS) -> None:
    """Write `videos/`, `clips/` with four videos of one clip each, `pictures/` and `text_tokenizer/`.

    A video lasts 18 seconds in the mean, as in WebVid; here log-normal with a sigma of 0.6, at most 40 seconds, which
    give 20 clips. A text has 9 words and a Poisson number more: 9 for a video, 40 for a picture.

    Args:
        folder: Where to.
        size: Height and width in pixels.
        samples: Number of videos, and of pictures.
        words: Number of words that texts are made of.
    """
    draws = np.random.default_rng(0)
    vocabulary = [f"word{number}" for number in range(words)]
    word_level_tokenizer(vocabulary).save_pretrained(folder / "text_tokenizer")
    with tarfile.open(_parent(folder / "videos" / "0.tar"), "w") as tar:
        for number in range(samples):
            seconds = min(draws.lognormal(np.log(18) - 0.6**2 / 2, 0.6), 40.0)
            video = encode_video(_moving_square(int(max(seconds, 2.5) * FPS), size), FPS)
            _add(tar, number, "mp4", video, _text(draws, vocabulary, 9))
    with tarfile.open(_parent(folder / "clips" / "0.tar"), "w") as tar:
        for number in range(4):
            _add(tar, number, "mp4", encode_video(_moving_square(int(2 * FPS), size), FPS), _text(draws, vocabulary, 9))
    with tarfile.open(_parent(folder / "pictures" / "0.tar"), "w") as tar:
        for number in range(samples):
            picture = io.BytesIO()
            Image.fromarray(_moving_square(1, size)[0].transpose(1, 2, 0)).save(picture, "jpeg")
            _add(tar, number, "jpg", picture.getvalue(), _text(draws, vocabulary, 40))


def _moving_square(frames: int, size: int) -> np.ndarray:
    video = np.full((frames, 3, size, size), 96, np.uint8)
    side = size // 4
    for frame in range(frames):
        left = frame * 2 % (size - side)
        video[frame, :, left : left + side, left : left + side] = 224
    return video


def _text(draws: np.random.Generator, vocabulary: list[str], more: int) -> str:
    return " ".join(draws.choice(vocabulary, 9 + draws.poisson(more)))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add(tar: tarfile.TarFile, number: int, suffix: str, media: bytes, text: str) -> None:
    for name, content in ((suffix, media), ("json", json.dumps({"caption": text}).encode())):
        member = tarfile.TarInfo(f"{number:05d}.{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    make_inputs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
