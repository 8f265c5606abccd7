"""Small models that the tests of metrics and judges make for themselves."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from divot_lightning.evaluation.judges.endpoint import KEY_VARIABLE


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A transformers folder of a tiny random CLIP model of 16x16 pixels."""
    from transformers import CLIPConfig, CLIPModel

    from divot_datamodules.toy.text_tokenizer import word_level_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = word_level_tokenizer(["a red circle moves up", "the blue square left"])
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


class Endpoint:
    """A server on the loopback device that says yes where the answer is `dog`; `script` holds what comes first.

    An entry of the script is status, headers and body, or a function that takes the handler and does what it likes.
    `reply` makes the text of every further reply from the last message.
    """

    def __init__(self):
        self.requests, self.keys, self.script, self.at_once, self.most_at_once = [], [], [], 0, 0
        self.reply = lambda prompt: "Yes" if "Model's answer: dog" in prompt else "No."
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.requests.append((self.path, body))
                    endpoint.keys.append(self.headers["Authorization"])
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                    entry = endpoint.script.pop(0) if endpoint.script else (200, {}, None)
                if callable(entry):
                    with lock:
                        endpoint.at_once -= 1
                    return entry(self)
                status, headers, text = entry
                if text is None:
                    reply = endpoint.reply(body["messages"][-1]["content"])
                    text = json.dumps({"choices": [{"message": {"content": reply}}]})
                threading.Event().wait(0.02)
                with lock:
                    endpoint.at_once -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        # Ending it waits for the next poll.
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder with a tokenizer, a de-tokenizer and a video LLM, all tiny and untrained."""
    from tests.divot_lightning.inference.conftest import write_untrained_run

    return write_untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """Toy shards with five held-out clips."""
    from divot_lightning.testing.toy_shards import make_toy_shards

    return make_toy_shards(tmp_path_factory.mktemp("toy"), train=1, validation=1, held_out=5)


@pytest.fixture(scope="session")
def video_bytes():
    """Make an mp4 at 8 frames per second whose frame i has the grey level 10 + 7 i."""
    import numpy as np

    from divot_datamodules.decoding.video_writing import encode_video

    def make(count=16, size=32):
        levels = (10 + 7 * np.arange(count)).astype(np.uint8)
        return encode_video(np.broadcast_to(levels[:, None, None, None], (count, 3, size, size)).copy(), 8)

    return make


@pytest.fixture
def mvbench(tmp_path, video_bytes):
    """A folder with one question of each of MVBench's tasks about a video of three seconds."""
    import io

    from PIL import Image

    from divot_lightning.evaluation.benchmarks.multiple_choice import MVBENCH_TASKS

    picture = io.BytesIO()
    Image.new("RGB", (40, 32), (9, 90, 200)).save(picture, "PNG")
    files = {}
    for name, task in MVBENCH_TASKS.items():
        entry = {"video": f"{name}.mp4", "question": "what ?", "candidates": ["red", "up"], "answer": "up"}
        if task.frames:
            files |= {f"video/{task.media}/{name}.mp4/{n + 1:05d}.png": picture.getvalue() for n in range(9)}
        else:
            files[f"video/{task.media}/{name}.mp4"] = video_bytes(24)
        files[f"json/{task.file}"] = [{**entry, "start": 0.5, "end": 2.5} if task.bounded else entry]
    for name, content in files.items():
        path = tmp_path / "mvbench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(tmp_path / "mvbench")
