"""Write small toy data for tests."""

from pathlib import Path


def make_toy_shards(
    folder: str | Path, *, train: int = 16, validation: int = 8, held_out: int = 8, size: int = 32, seed: int = 0
) -> Path:
    """Write toy shards of real h264 clips with captions and questions, in well under a second.

    Each split has up to four shards, which a few ranks and workers can divide.

    Args:
        folder: Gets `train/`, `validation/`, `held_out/` and `text_tokenizer/`.
        train: Training clips.
        validation: Clips of the same combinations.
        held_out: Clips of other combinations.
        size: Height and width in pixels.
        seed: Seed of all sampling.

    Returns:
        The folder.
    """
    from divot_datamodules.toy.shards import ToyDataConfig, write_toy_data

    settings = ToyDataConfig(size=size, train=train, validation=validation, held_out=held_out, seed=seed)
    write_toy_data(folder, settings)
    return Path(folder)
