"""The peak of a process's memory is its own."""

import subprocess
import sys

import numpy as np

from divot_lightning.training.reporting.process_memory import peak_bytes

MIB = 2**20


def test_memory_that_was_freed_counts() -> None:
    before = peak_bytes()
    held = np.ones(400 * MIB, np.uint8)
    during = peak_bytes()
    del held
    assert during >= 400 * MIB
    assert peak_bytes() > 0.99 * during > 0.99 * before, "the kernel counts it in batches of pages"


def test_the_peak_of_a_parent_does_not_count() -> None:
    held = np.ones(400 * MIB, np.uint8)
    code = "from divot_lightning.training.reporting.process_memory import peak_bytes; print(peak_bytes())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(told) < 200 * MIB < len(held)
