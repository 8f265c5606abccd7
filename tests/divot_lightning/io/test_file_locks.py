import gc
import os
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest

from divot_datamodules.shards.writing import ShardFolder
from divot_lightning.errors import UserError
from divot_lightning.io.file_locks import exclusively, writer_lock


def _append(path, rounds):
    for _ in range(rounds):
        with exclusively(path):
            before = path.read_text() if path.exists() else ""
            time.sleep(0.001)
            path.write_text(before + "x")


def test_one_process_at_a_time_is_in_the_block(tmp_path):
    context = get_context("fork")
    children = [context.Process(target=_append, args=(tmp_path / "f", 10)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert (tmp_path / "f").read_text() == "x" * 30
    assert sorted(os.listdir(tmp_path)) == ["f", "f.lock"]


HOLD = (
    "import sys, time\n"
    "from divot_datamodules.shards.writing import ShardFolder\n"
    "folder = ShardFolder(sys.argv[1], kind='video', settings={})\n"
    "folder.write(0, [('k', {'txt': b'x'})])\n"
    "print('writing', flush=True)\n"
    "time.sleep(60)\n"
)


def test_a_folder_that_another_process_writes_is_refused_until_that_one_ended_however_it_did(tmp_path):
    folder = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(UserError, match=r"another process is writing into .*out at this moment"):
        ShardFolder(folder, kind="video", settings={})
    assert (folder / "shard-000000.tar").is_file()
    process.kill()
    process.communicate()
    mine = ShardFolder(folder, kind="video", settings={})
    assert mine.has(0)
    mine.finish()
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "shard-000000.tar",
        "shard-000000.tar.index.npz",
    ]


def test_this_process_may_continue_after_an_interrupted_call(tmp_path):
    first = ShardFolder(tmp_path, kind="video", settings={})
    second = ShardFolder(tmp_path, kind="video", settings={})
    del first
    gc.collect()
    assert (tmp_path / "index.lock").exists()
    second.finish()
    assert not (tmp_path / "index.lock").exists()
    third = writer_lock(tmp_path / "index.lock")  # after a release it is taken anew
    assert (tmp_path / "index.lock").exists()
    del third
    gc.collect()
    assert not (tmp_path / "index.lock").exists()
