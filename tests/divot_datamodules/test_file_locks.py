import os
import time
from multiprocessing import get_context

from divot_datamodules.file_locks import exclusively


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
