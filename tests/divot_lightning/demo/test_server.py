"""The page's addresses: what they give is what the pipeline gives, and strangers get nothing else."""

import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from divot_datamodules.decoding.video_writing import encode_video
from divot_lightning import Decoding, DivotPipeline
from divot_lightning.demo.limits import Limits
from divot_lightning.demo.systems import find_systems
from divot_lightning.interop.exporting.export import export_run
from divot_lightning.interop.import_detokenizer import import_detokenizer
from divot_lightning.interop.import_tokenizer import import_tokenizer
from divot_lightning.interop.import_video_llm import import_video_llm
from tests.divot_lightning.demo.conftest import served
from tests.divot_lightning.inference.test_story import INSTRUCTION, SENTENCES

PROMPT = "a red circle moves slowly up"


@pytest.fixture(scope="module")
def clip(page, clip_file):
    """The id of an uploaded clip."""
    status, found = page.json("POST", "/api/clips?name=shape.mp4", clip_file.read_bytes())
    assert (status, found["name"], found["seconds"]) == (200, "shape.mp4", 2.0)
    return found["id"]


def get(page, address):
    status, _, content = page.call("GET", f"/{address}")
    assert status == 200
    return content


# --- what it does


def test_the_page_says_what_the_runs_can_do(page):
    status, about = page.json("GET", "/api/about")
    assert status == 200
    assert [system["name"] for system in about["systems"]][:2] == ["detokenizer", "instruction"]
    assert about["preferred"]["generate"] == ["llm_gmm_0", "llm_mse_0"]
    assert about["limits"]["upload_mb"] == 1
    assert about["examples"]["texts"]["generate"][0] == "a red circle moves quickly to the right"
    for example in about["examples"]["clips"]:
        assert get(page, example["view"])[4:8] == b"ftyp"
    assert all(get(page, name) for name in ("", "page/page.css", "page/page.js"))


def test_a_reconstruction_is_that_of_the_pipeline(page, clip, clip_file, experiment):
    job = page.work(kind="reconstruct", system="detokenizer", clip=clip, seed=3)
    assert job["state"] == "done", job
    pipeline = DivotPipeline.from_pretrained(experiment / "detokenizer")
    reconstruction = pipeline.reconstruct(clip_file, seed=3)
    assert get(page, job["result"]["clip"]["file"]) == encode_video(reconstruction.video_NFCHW[0].numpy(), 8)
    error = (reconstruction.original_NFCHW.double() - reconstruction.video_NFCHW).square().mean().item()
    assert job["result"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.06)
    settings = json.loads(get(page, job["result"]["clip"]["settings"]))
    assert (settings["run"], settings["seed"]) == ("detokenizer", 3)


def test_a_clip_is_shown_large_and_as_every_browser_plays_it(page, clip, tmp_path):
    job = page.work(kind="reconstruct", system="detokenizer", clip=clip)
    (tmp_path / "view.mp4").write_bytes(get(page, job["result"]["original"]))
    import av

    with av.open(tmp_path / "view.mp4") as view:
        stream = view.streams.video[0]
        assert (stream.height, stream.width, stream.pix_fmt, stream.codec_context.name) == (256, 256, "yuv420p", "h264")


def test_questions_are_answered_and_a_clip_is_encoded_once(page, clip, clip_file, experiment, monkeypatch):
    pipeline = DivotPipeline.from_pretrained(experiment / "instruction")
    question = "what shape is it ?"
    expected = pipeline.ask(clip_file, question).text
    first = page.work(kind="ask", system="instruction", clip=clip, question=question)
    assert (first["result"]["question"], first["result"]["answer"]) == (question, expected)
    system = next(one for one in page.demo.systems if one.name == "instruction")
    monkeypatch.setattr(system.pipeline.models, "encode", None)
    turn = {"question": question, "answer": "a circle"}
    second = page.work(kind="ask", system="instruction", clip=clip, question="where does it move ?", history=[turn])
    from divot_lightning import Answer

    history = [Answer(question, "a circle")]
    assert second["result"]["answer"] == pipeline.ask(clip_file, "where does it move ?", history=history).text


def test_a_description_needs_no_question_and_warns_if_it_was_not_trained(page, clip):
    job = page.work(kind="ask", system="instruction", clip=clip, question="")
    assert job["state"] == "done"
    assert "was trained on the task question, not to describe videos" in job["notes"][0]
    assert page.work(kind="ask", system="llm_gmm_0", clip=clip, question="")["notes"] == []


def test_samples_of_each_head_are_those_of_the_pipeline_and_repeat_with_the_seed(page, experiment):
    request = {"prompt": PROMPT, "systems": ["llm_gmm_0", "llm_mse_0"], "num": 2, "seed": 5, "steps": 3}
    job = page.work(kind="generate", **request)
    again = page.work(kind="generate", **request)
    other = page.work(kind="generate", **{**request, "seed": 6})
    for number, name in enumerate(request["systems"]):
        pipeline = DivotPipeline.from_pretrained(experiment / name, experiment / "detokenizer")
        generated = pipeline.generate(PROMPT, num=2, seed=5, decoding=Decoding(steps=3))
        shown, repeated, changed = (one["result"]["systems"][number]["clips"] for one in (job, again, other))
        for clip, same, different, video in zip(shown, repeated, changed, generated.video_NFCHW, strict=True):
            assert get(page, clip["file"]) == encode_video(video.numpy(), 8)
            assert get(page, same["file"]) == get(page, clip["file"])
            assert get(page, different["file"]) != get(page, clip["file"])
        settings = json.loads(get(page, shown[0]["settings"]))
        assert (settings["run"], settings["detokenizer"]) == (name, "detokenizer")
        assert str(experiment) not in json.dumps(settings)


def test_words_that_a_run_does_not_know_are_told_each_time(page):
    for _ in range(2):
        job = page.work(kind="generate", prompt="a red zebra", systems=["llm_gmm_0"])
        assert job["notes"] == ["The text tokenizer of llm_gmm_0 does not know: zebra"]


def test_a_story_has_sentences_clips_and_a_file(page):
    job = page.work(kind="story", system="stories", instruction=INSTRUCTION, num_clips=3)
    assert [part["text"] for part in job["result"]["parts"]] == SENTENCES
    assert len({get(page, part["clip"]["file"]) for part in job["result"]["parts"]}) == 3
    assert json.loads(get(page, job["result"]["settings"]))["instruction"] == INSTRUCTION


def test_progress_is_told_and_a_job_is_cancelled_within_a_step(page, slow):
    status, job = page.json(
        "POST", "/api/jobs", {"kind": "generate", "prompt": PROMPT, "systems": ["llm_gmm_0"], "steps": 200}
    )
    assert status == 202
    fractions = set()
    while len(fractions) < 3:
        _, job = page.json("GET", f"/api/jobs/{job['id']}")
        assert job["state"] in ("waiting", "running")
        if job["fraction"] is not None:
            fractions.add(job["fraction"])
            assert job["stage"].startswith("llm_gmm_0: the de-tokenizer decodes, step ")
            assert job["stage"].endswith(" of 200")
    page.json("DELETE", f"/api/jobs/{job['id']}")
    while job["state"] not in ("cancelled", "done"):
        time.sleep(0.02)
        _, job = page.json("GET", f"/api/jobs/{job['id']}")
    assert job["state"] == "cancelled"
    assert max(fractions) < 0.5
    assert not (page.demo.files / job["id"]).exists()


# --- what it refuses


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"kind": "generate", "prompt": " ", "systems": ["llm_gmm_0"]}, "There is no prompt. Write one."),
        ({"kind": "generate", "prompt": "a" * 501, "systems": ["llm_gmm_0"]}, "has 501 characters; this page takes"),
        ({"kind": "generate", "prompt": "a", "systems": ["llm_gmm_0"], "num": 5}, "num is 5; it must be a whole"),
        ({"kind": "generate", "prompt": "a", "systems": ["llm_gmm_0"], "steps": 201}, "steps is 201"),
        ({"kind": "generate", "prompt": "a", "systems": ["llm_gmm_0"], "seed": -1}, "seed is -1"),
        ({"kind": "generate", "prompt": "a", "systems": ["../runs"]}, "Choose one of the runs that can do this"),
        ({"kind": "generate", "prompt": "a", "systems": []}, "Choose at least one"),
        ({"kind": "generate", "prompt": "a", "systems": ["detokenizer"]}, "Choose one of the runs that can do this"),
        ({"kind": "story", "instruction": "a", "system": "stories", "num_clips": 7}, "num_clips is 7"),
        ({"kind": "reconstruct", "system": "detokenizer", "clip": "/etc/passwd"}, "This clip is not there any more"),
        ({"kind": "ask", "system": "instruction", "clip": None, "question": "a"}, "This clip is not there any more"),
    ],
)
def test_a_wrong_request_fails_with_a_plain_sentence(page, request_, message):
    job = page.work(**request_)
    assert job["state"] == "failed"
    assert message in job["error"]


@pytest.mark.parametrize("body", ["[1]", "no json", '{"kind": "_ask"}', '{"kind": ["ask"]}', "{}", '"' + "\ud800" * 3])
def test_what_is_no_job_is_refused(page, body):
    status, found = page.json("POST", "/api/jobs", body.encode("utf-8", "surrogatepass"))
    assert status == 400
    assert "reconstruct, ask, generate, story" in found["error"]


def uploads(page):
    return sorted((page.demo.clips.folder).iterdir())


def test_a_file_that_is_too_large_is_refused_whether_or_not_it_says_so(page):
    before = uploads(page)
    status, found = page.json("POST", "/api/clips?name=a.mp4", b"0" * (10**6 + 1))
    assert (status, found["error"]) == (413, "The file is too large: more than 1 MB.")
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall(b"POST /api/clips HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"0" * 0x10000 + b"\r\n"
        try:
            for _ in range(40):
                connection.sendall(piece)
        except OSError:
            pass  # the server has answered and does not listen any more
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    status, _ = page.json("POST", "/api/jobs", b" " * (2**18 + 1))
    assert status == 413
    assert uploads(page) == before


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a video or picture"),
        (b"no video at all", "cannot be read as a video or picture"),
        (PLAYLIST, "cannot be read as a video or picture"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read as a video or picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', "cannot be read as a video"),
        (encode_video(np.zeros((48, 3, 16, 16), np.uint8), 8), "is 6 seconds long; this page takes at most 5"),
    ],
)
def test_what_is_no_short_video_is_refused_and_not_kept(page, content, message):
    before = uploads(page)
    status, found = page.json("POST", "/api/clips?name=../../x.mp4", content)
    assert status == 400
    assert found["error"].startswith("x.mp4 ")
    assert message in found["error"]
    assert uploads(page) == before


def test_the_oldest_uploads_are_deleted(page, clip_file):
    content = clip_file.read_bytes()
    for _ in range(page.demo.limits.uploads + 1):
        page.json("POST", "/api/clips", content)
    assert len(uploads(page)) == page.demo.limits.uploads


SECRET = "this file is beside the page's folder"


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/%2e%2e/secret.txt",
        "/files/..%2fsecret.txt",
        "/files/%2e%2e%2fsecret.txt",
        "/files/..%5csecret.txt",
        "/files//{folder}/secret.txt",
        "/files/%2f{folder}/secret.txt",
        "/files/link.txt",
        "/files/../uploads/",
        "/files/",
        "/files/examples/",
        "/page/../server.py",
        "/page/%2e%2e/server.py",
        "/../../../../../../etc/passwd",
        "/files/../../../../../../../../etc/passwd",
        "/files/%00",
    ],
)
def test_a_file_outside_the_folder_cannot_be_read(page, path):
    folder = page.demo.files.parent
    (folder / "secret.txt").write_text(SECRET)
    if not (page.demo.files / "link.txt").is_symlink():
        (page.demo.files / "link.txt").symlink_to(folder / "secret.txt")
    status, _, content = page.call("GET", path.format(folder=str(folder).lstrip("/")))
    assert status in (400, 404, 405)
    assert SECRET.encode() not in content
    assert b"root:" not in content
    assert b"starlette" not in content


def test_other_pages_cannot_use_it(page):
    request = {"kind": "generate", "prompt": "a", "systems": ["llm_gmm_0"]}
    status, found = page.json("POST", "/api/jobs", request, Origin="https://example.org")
    assert (status, found["error"]) == (403, "Only the page itself may do this.")
    assert page.json("POST", "/api/jobs", {}, Origin=page.address.rstrip("/"))[0] == 400
    assert page.call("POST", "/api/clips", b"x", Origin="null")[0] == 403
    assert page.call("GET", "/api/about", Host="example.org")[0] == 400
    for name in ("localhost", "[::1]"):
        assert page.call("GET", "/api/about", Host=f"{name}:{page.port}")[0] == 200
    _, headers, _ = page.call("GET", "/")
    assert "access-control-allow-origin" not in {name.lower() for name in headers}
    policy = {name.lower(): value for name, value in headers.items()}["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_page_names_no_other_host():
    import divot_lightning.demo

    for file in (Path(divot_lightning.demo.__file__).parent / "page").iterdir():
        assert "//" not in file.read_text().replace("// ", ""), file


def test_a_full_queue_is_told(page, slow):
    request = {"kind": "generate", "prompt": PROMPT, "systems": ["llm_gmm_0"], "steps": 200}
    jobs = [page.json("POST", "/api/jobs", request)[1]]
    while page.json("GET", f"/api/jobs/{jobs[0]['id']}")[1]["state"] != "running":
        time.sleep(0.02)
    jobs += [page.json("POST", "/api/jobs", request)[1] for _ in range(2)]
    status, found = page.json("POST", "/api/jobs", request)
    assert (status, found["error"]) == (429, "The queue is full: 2 jobs are waiting. Try again in a while.")
    for job in jobs:
        page.json("DELETE", f"/api/jobs/{job['id']}")
    assert page.json("GET", "/api/jobs/unknown")[0] == 400


# --- with folders of other origin


@pytest.fixture
def imported(tmp_path):
    """A folder of components, imported from tiny files in the released form."""
    from safetensors.torch import load_file

    from tests.divot_lightning.interop import test_import_video_llm as released

    run = tmp_path / "imported"
    released.write_released(tmp_path / "release")
    vit = {f"vit_model.model.{name}": value for name, value in released.openclip_vit().items()}
    data = released.DATA
    torch.save({**load_file(data / "tokenizer_state.safetensors"), **vit}, tmp_path / "tokenizer.bin")
    state = {**load_file(data / "detokenizer_state.safetensors"), **released.original_vae()}
    torch.save(state, tmp_path / "detokenizer.bin")
    import_tokenizer(tmp_path / "tokenizer.bin", run / "tokenizer", None, released.tokenizer_config())
    import_detokenizer(tmp_path / "detokenizer.bin", run / "detokenizer", released.detokenizer_config(num_frames=8))
    import_video_llm(tmp_path / "release" / "sft_gen", run / "video_llm", num_queries=released.Q)
    return run


@pytest.fixture
def exported(tmp_path, llm_run):
    """A run in the formats of other libraries."""
    return export_run(llm_run, tmp_path / "exported")


@pytest.mark.parametrize("kind", ["imported", "exported"])
def test_everything_works_with(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    systems = find_systems([str(run)], template="instruction")
    with served(systems, tmp_path / "page", Limits()) as page:
        _, about = page.json("GET", "/api/about")
        clip = about["examples"]["clips"][0]["clip"]["id"]
        jobs = [
            page.work(kind="reconstruct", system=run.name, clip=clip, steps=2),
            page.work(kind="ask", system=run.name, clip=clip, question="what shape is it ?"),
            page.work(kind="generate", systems=[run.name], prompt=PROMPT, steps=2),
            page.work(kind="story", system=run.name, instruction=INSTRUCTION, num_clips=1, steps=2),
            page.work(kind="generate", systems=[run.name], prompt=PROMPT, steps=2, as_released=True),
        ]
        assert [job["state"] for job in jobs] == ["done"] * 5, jobs
        asked = json.loads(get(page, jobs[4]["result"]["systems"][0]["clips"][0]["settings"]))["request"]
        assert asked == "Generate a video of {}"
        assert get(page, jobs[0]["result"]["clip"]["file"])[4:8] == b"ftyp"
        assert get(page, jobs[2]["result"]["systems"][0]["clips"][0]["file"])[4:8] == b"ftyp"
