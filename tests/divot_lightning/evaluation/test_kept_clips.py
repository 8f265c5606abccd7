"""Stored clips are read again, and a damaged file counts as none, so that its clip is made again."""

from pathlib import Path

import numpy as np

from divot_lightning.evaluation.kept_clips import find_clip, keep_clip


def test_a_damaged_file_wherever_it_is_damaged_is_no_clip(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 4, (5, 3, 16, 16)).astype(np.uint8)
    keep_clip(tmp_path, 7, clip=clip)
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    np.testing.assert_array_equal(find_clip(tmp_path, 7), clip)
    for position in range(0, len(whole), 40):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        found = find_clip(tmp_path, 7)
        assert found is None or (found == clip).all(), f"byte {position}"
    assert find_clip(tmp_path, 8) is None
