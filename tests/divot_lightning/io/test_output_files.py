"""Errors of writing output are explained in a line; errors about other files are raised unchanged."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.io.output_files import make_folder, require_writable, writing_to
from tests.helpers.faults import limited_file_size, read_only_folder


@contextmanager
def _little_room(path):
    with limited_file_size(1000), writing_to(path):
        yield


def test_a_full_disk_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"out\.bin cannot be written.*\nMake room"), _little_room(tmp_path / "out.bin"):
        (tmp_path / "out.bin").write_bytes(b"x" * 2000)


def test_a_device_without_room_is_explained():
    with pytest.raises(UserError, match="/dev/full cannot be written: the disk is full"), writing_to("/dev/full"):
        Path("/dev/full").write_bytes(b"x")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(parents=True), lambda path: path.write_text("x")])
def test_a_file_in_the_way_is_explained(tmp_path, make):
    (tmp_path / "file").touch()
    expected = pytest.raises(UserError, match=r"cannot be written: there is a file where a folder is needed")
    with expected, writing_to(tmp_path / "file" / "out"):
        make(tmp_path / "file" / "out")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_missing_permissions_are_explained(tmp_path, code):
    with pytest.raises(UserError, match=r"a\.mp4 cannot be written: \w+"), writing_to(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "no", "/etc/shadow"), OSError(errno.EIO, "broken"), FileNotFoundError(2, "x")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(OSError) as caught, writing_to(tmp_path):  # noqa: PT011
        raise error
    assert caught.value is error


@pytest.mark.parametrize("folder", ["/proc/out", "/proc/out/deep", "/dev/null/out"])
def test_a_folder_that_no_file_system_makes_is_explained(folder):
    with pytest.raises(UserError, match=r"cannot be written: (no folder can be made there|there is a file where).*\n"):
        make_folder(folder)
    make_folder("/proc")  # one that is there needs nothing


@pytest.mark.parametrize("name", ["a.mp4", "deep/er/a.mp4", "there.mp4"])
def test_a_file_that_can_be_written_leaves_no_trace_of_the_check(tmp_path, name):
    (tmp_path / "there.mp4").write_text("kept")
    require_writable(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["there.mp4"]
    assert (tmp_path / "there.mp4").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/a.mp4", "a file where a folder is needed"),
        ("folder", "a folder where a file is needed"),
        ("new/" + "x" * 250, "its name is too long"),
        ("/proc/a.mp4", "no folder can be made"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_without_a_trace(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=reason):
        require_writable(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_read_only_folder_is_refused(tmp_path):
    with read_only_folder(tmp_path), pytest.raises(UserError, match="it is read-only"):
        require_writable(tmp_path / "a.mp4")
