"""`divot demo` checks its arguments first, prints its address, and leaves nothing behind."""

import json
import re
import signal
import time
import urllib.request

import pytest

from divot_lightning.cli.demo import main
from divot_lightning.errors import UserError
from tests.divot_lightning.inference.conftest import llm_run  # noqa: F401
from tests.helpers.jobs import Job


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-upload-mb", "0"], "--max-upload-mb is 0"),
        (["--max-seconds", "-1"], r"--max-seconds is -1\.0"),
        (["--max-queue", "0"], "--max-queue is 0"),
        (["--port", "65536"], "--port is 65536"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(words, named):
    with pytest.raises(UserError, match=named):
        main(["no_run", *words])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs starlette and uvicorn\n.*pip install "\.\[demo\]"'):
        main(["no_run"])


def test_a_missing_run_and_a_missing_example_are_named(tmp_path, request):
    with pytest.raises(UserError, match="there is no run folder"):
        main([str(tmp_path / "nowhere")])
    run = str(request.getfixturevalue("llm_run"))
    with pytest.raises(UserError, match="there is no file"):
        main([run, "--example", str(tmp_path / "nowhere.mp4"), "--port", "0"])


def test_a_port_in_use_is_named(request):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be used"):
            main([str(request.getfixturevalue("llm_run")), "--port", str(port)])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_until_it_is_stopped_and_its_folder_is_deleted(request, tmp_path, stop):
    run = str(request.getfixturevalue("llm_run"))
    with Job.divot("demo", run, "--port", "0", environment={"TMPDIR": str(tmp_path)}) as job:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"^http://127\.0\.0\.1:\d+/\S*", job.output, re.MULTILINE)):
            assert job.process.poll() is None, job.output
            assert time.monotonic() < deadline, job.output
            time.sleep(0.02)
        with urllib.request.urlopen(f"{found[0]}api/about", timeout=60) as answer:
            assert json.load(answer)["systems"][0]["abilities"] == ["ask", "generate", "reconstruct", "story"]
        assert list(tmp_path.glob("divot_demo_*"))
        job.send(stop, rank=0)
        assert job.wait() == 130
    assert not list(tmp_path.glob("divot_demo_*"))
