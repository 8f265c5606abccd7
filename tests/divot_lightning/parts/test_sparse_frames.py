import pytest

from divot_lightning.parts.sparse_frames import sparse_frame_indices


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (16, 5, [0, 4, 8, 12, 15]),
        (5, 5, [0, 1, 2, 3, 4]),
        (6, 5, [0, 1, 2, 3, 5]),
        (8, 5, [0, 2, 4, 6, 7]),
        (9, 3, [0, 4, 8]),
        (4, 2, [0, 3]),
        (3, 1, [0]),
    ],
)
def test_sparse_frames_start_first_end_last_and_are_evenly_spaced_between(total, count, expected):
    assert sparse_frame_indices(total, count) == expected


def test_sparse_indices_rise_strictly_within_any_clip():
    for total in range(1, 40):
        for count in range(1, total + 1):
            indices = sparse_frame_indices(total, count)
            assert len(indices) == count
            assert indices == sorted(set(indices))
            assert indices[0] == 0
            assert indices[-1] == total - 1 or count == 1
