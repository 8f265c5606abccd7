"""A folder of an export or an import appears whole, also if two processes write it or one was killed."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from divot_lightning.errors import UserError
from divot_lightning.interop.folders import whole_folder
from tests.helpers.faults import limited_file_size

HOLD = (
    "import sys, time\n"
    "from divot_lightning.interop.folders import whole_folder\n"
    "with whole_folder(sys.argv[1]) as work:\n"
    "    work.mkdir()\n"
    "    (work / 'half').touch()\n"
    "    print('writing', flush=True)\n"
    "    sys.stdin.readline()\n"
)


def start(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_second_writer_is_refused_and_the_first_one_ends_as_if_alone(tmp_path):
    first = start(tmp_path / "out")
    refused = pytest.raises(UserError, match=r"another process is writing into .*out\S* at this moment")
    with refused, whole_folder(tmp_path / "out"):
        pass
    first.communicate("\n")
    assert first.returncode == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "half"]


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    first = start(tmp_path / "out")
    first.kill()
    first.communicate()
    with whole_folder(tmp_path / "out") as work:
        work.mkdir()
        (work / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    weights = {"a": torch.zeros(1000)}
    told = pytest.raises(UserError, match=r"out cannot be written: .*File too large.*\nmake room")
    with limited_file_size(1000), told, whole_folder(tmp_path / "out") as work:
        work.mkdir()
        save_file(weights, work / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
