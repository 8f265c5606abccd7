"""Small folders in the published forms of the benchmarks; the videos in them are empty files unless given."""

import json

import pytest


@pytest.fixture
def lay(tmp_path):
    """Write files into a benchmark's folder: JSON for what is no text, empty files for names alone."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / "benchmark" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "benchmark"

    return write
