"""An experiment of tiny runs, and its page served at a free port."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.toy.world import ToyWorld
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.demo.limits import Limits
from divot_lightning.demo.server import Demo
from divot_lightning.demo.systems import find_systems
from tests.divot_lightning.inference.conftest import llm_run  # noqa: F401
from tests.divot_lightning.inference.test_story import storyteller

LIMITS = Limits(upload_mb=1, seconds=5.0, waiting=2, results=6)


def _run(folder, component, source, settings, **used):
    """Write a run folder with one component of its own."""
    shutil.copytree(source / component, folder / component)
    record_components(folder, used)
    data = {"class_path": "x.Y", "init_args": settings}
    (folder / "config.yaml").write_text(json.dumps({"data": data}))


@pytest.fixture(scope="session")
def experiment(tmp_path_factory, request):
    """The folder of an experiment, as quickstart leaves it: two heads, a tuned and a storytelling run."""
    source, folder = request.getfixturevalue("llm_run"), tmp_path_factory.mktemp("experiment")
    shutil.copytree(source / "tokenizer", folder / "tokenizer" / "tokenizer")
    tokenizer = folder / "tokenizer" / "tokenizer"
    _run(folder / "detokenizer", "detokenizer", source, {}, tokenizer=tokenizer)
    teller = tmp_path_factory.mktemp("teller")
    save_component(storyteller(teller, "query_bidirectional")[0], teller / "video_llm")
    pretraining = {"tasks": {"caption": 1.0, "generate": 1.0}}
    _run(folder / "llm_gmm_0", "video_llm", source, pretraining, tokenizer=tokenizer)
    _run(folder / "llm_gmm_1", "video_llm", source, pretraining, tokenizer=tokenizer)
    _run(folder / "llm_mse_0", "video_llm", teller, pretraining, tokenizer=tokenizer)
    tuned = {"template": "instruction", "tasks": {"question": 1.0}}
    _run(folder / "instruction", "video_llm", source, tuned, tokenizer=tokenizer)
    told = {"template": "instruction", "tasks": {"story": 1.0}}
    _run(folder / "stories", "video_llm", teller, told, tokenizer=tokenizer)
    (folder / "results").mkdir()
    (folder / "recipe.yaml").write_text("title: none\n")
    return folder


class Page:
    """A page at a port of this machine, and calls of it that change nothing in an address."""

    def __init__(self, demo, port):
        self.demo, self.port, self.address = demo, port, f"http://127.0.0.1:{port}/"

    def call(self, method, path, body=None, **headers):
        """Return status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, **headers):
        """Return status and JSON of an answer; a dictionary as body is sent as JSON."""
        sent = json.dumps(body) if isinstance(body, dict) else body
        status, _, found = self.call(method, path, sent, **headers)
        return status, json.loads(found)

    def work(self, **request):
        """Do a job to its end and return its description."""
        status, job = self.json("POST", "/api/jobs", request)
        assert status == 202, job
        while job["state"] in ("waiting", "running"):
            time.sleep(0.02)
            _, job = self.json("GET", f"/api/jobs/{job['id']}")
        return job


@contextmanager
def served(systems, folder, limits=LIMITS):
    """Serve a page in a thread."""
    demo = Demo(systems, folder, limits)
    server = uvicorn.Server(uvicorn.Config(demo.app(), port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield Page(demo, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def page(experiment, tmp_path_factory):
    with served(find_systems([str(experiment)]), tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture
def slow(page):
    """Make every denoising step of the page take a tenth of a second."""
    handles = [
        one.pipeline.models.detokenizer.denoiser.register_forward_pre_hook(lambda *given: time.sleep(0.1))
        for one in page.demo.systems
        if "detokenizer" in (one.detokenizer, one.name)
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """A real mp4 of the toy world."""
    world = ToyWorld()
    frames = world.render(world.sample("train", np.random.default_rng(0)))
    return write_video(tmp_path_factory.mktemp("clip") / "a moving shape.mp4", frames, 8)
