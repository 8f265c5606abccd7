"""The page in a real browser: every part of it is used as a visitor does, and nothing is loaded from elsewhere."""

import base64
import json
import shutil
import time

import numpy as np
import pytest

from divot_datamodules.decoding.video_writing import encode_video
from divot_lightning import DivotPipeline
from tests.divot_lightning.inference.test_story import INSTRUCTION, SENTENCES

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

SIZES = {"phone": (390, 844), "desktop": (1440, 900)}

LOOK = """() => {
  const width = document.documentElement.clientWidth;
  const shown = [...document.querySelectorAll("body *")].filter(e => e.checkVisibility());
  const boxes = [...document.querySelectorAll("button, input, select, textarea, video, a")]
    .filter(e => e.checkVisibility() && !e.closest(".status, .drop, button.clip"))
    .map(e => [e.id || e.name || e.textContent || e.tagName, e.getBoundingClientRect()]);
  const over = [];
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1) over.push(`${a} and ${b}`);
  }));
  return {
    overlapping: over,
    cut: shown.filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.tagName + "." + e.className),
    scrolls: document.documentElement.scrollWidth - width,
    videos: [...document.querySelectorAll("article video")].filter(e => e.checkVisibility())
      .map(e => [e.error === null, e.readyState, e.videoWidth]),
  };
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, page):
    """Open the page in a new window; every request and error in it is noted."""
    contexts = []

    def opened(size="desktop", **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.requested, tab.problems = [], []
        tab.on("request", lambda request: tab.requested.append(request.url))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("console", lambda message: message.type == "error" and tab.problems.append(message.text))
        tab.goto(page.address)
        tab.wait_for_selector("#example-clips button.clip")
        return tab

    yield opened
    for context in contexts:
        context.close()


def until(tab, condition):
    """Wait for a JavaScript condition. The page forbids eval, so Playwright's `wait_for_function` cannot be used."""
    while not tab.evaluate(condition):
        tab.wait_for_timeout(20)


def idle(tab):
    """Wait until no job runs, and give the page time to load what it shows."""
    tab.wait_for_selector("#status", state="hidden")
    until(tab, "[...document.querySelectorAll('article video')].every(v => v.readyState === 4)")


def looks_right(tab):
    found = tab.evaluate(LOOK)
    assert found["overlapping"] == []
    assert found["scrolls"] <= 0, found["cut"]
    assert found["cut"] == []
    assert all(video == [True, 4, 256] for video in found["videos"]), found["videos"]


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_a_visitor_reconstructs_asks_generates_and_reads_a_story(visit, page, clip_file, experiment, size, scheme):
    tab = visit(size, color_scheme=scheme)
    # Drop a clip and see its reconstruction beside it.
    tab.set_input_files("#file", clip_file)
    tab.wait_for_selector("text=Chosen: a moving shape.mp4 (2 seconds)")
    tab.click("#reconstruct-form button.main")
    tab.wait_for_selector("#reconstruction article video")
    idle(tab)
    assert tab.locator("#reconstruction article video").count() == 2
    # Ask about it.
    tab.click("[data-examples=ask] button >> text=what shape is it ?")
    tab.click("#ask-form button.main")
    tab.wait_for_selector("#answers li")
    answer = DivotPipeline.from_pretrained(experiment / "instruction").ask(clip_file, "what shape is it ?").text
    assert tab.inner_text("#answers .answer") == (answer.strip() or "(the model wrote nothing)")
    looks_right(tab)
    # Type a prompt and see samples of each head.
    tab.click("#tab-prompt")
    tab.fill("#prompt-form textarea", "a red circle moves slowly up")
    tab.click("#prompt-form button.main")
    tab.wait_for_selector("#samples article h4 >> text=llm_mse_0")
    idle(tab)
    assert tab.locator("#samples h4").all_inner_texts() == ["gmm llm_gmm_0", "mse llm_mse_0"]
    assert tab.locator("#samples video").count() == 2
    looks_right(tab)
    # Tell a story.
    tab.click("#tab-story")
    tab.fill("#story-form textarea", INSTRUCTION)
    tab.click("#story-form button.main")
    tab.wait_for_selector("#told article")
    idle(tab)
    assert tab.locator("#told li p").all_inner_texts() == SENTENCES
    assert tab.locator("#told video").count() == 3
    looks_right(tab)
    assert len(tab.requested) > 10
    assert [address for address in tab.requested if not address.startswith((page.address, "data:"))] == []
    assert tab.problems == []


def test_a_clip_is_dropped_on_the_page(visit, clip_file):
    tab = visit()
    read = """data => {
      const dropped = new DataTransfer();
      dropped.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], "dropped.mp4"));
      return dropped;
    }"""
    dropped = tab.evaluate_handle(read, base64.b64encode(clip_file.read_bytes()).decode())
    tab.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    tab.wait_for_selector("text=Chosen: dropped.mp4 (2 seconds)")


def test_a_seed_repeats_a_clip_which_can_be_downloaded(visit, experiment):
    tab = visit()
    tab.click("#tab-prompt")
    tab.click("[data-examples=generate] button >> nth=0")
    tab.fill("#prompt-form [name=seed]", "7")
    saved = []
    for seed in ("7", "7", "8"):
        tab.fill("#prompt-form [name=seed]", seed)
        before = tab.locator("#samples article").count()
        tab.click("#prompt-form button.main")
        until(tab, f"document.querySelectorAll('#samples article').length === {before + 1}")
        idle(tab)
        with tab.expect_download() as download:
            tab.click("#samples article >> nth=0 >> text=Download mp4 >> nth=0")
        assert download.value.suggested_filename == f"llm_gmm_0_seed{seed}.mp4"
        saved.append(download.value.path().read_bytes())
    pipeline = DivotPipeline.from_pretrained(experiment / "llm_gmm_0", experiment / "detokenizer")
    generated = pipeline.generate("a red circle moves quickly to the right", seed=7)
    assert saved[0] == saved[1] == encode_video(generated.video_NFCHW[0].numpy(), 8)
    assert saved[2] != saved[0]
    with tab.expect_download() as download:
        tab.click("#samples article >> nth=0 >> text=settings >> nth=0")
    assert json.loads(download.value.path().read_text())["seed"] == 8
    tab.click("#prompt-form .another")
    assert tab.input_value("#prompt-form [name=seed]") != "8"


@pytest.mark.usefixtures("slow")
def test_progress_is_shown_and_a_job_is_cancelled(visit):
    tab = visit()
    tab.click("#tab-prompt")
    tab.fill("#prompt-form textarea", "a red circle")
    tab.click("summary")
    tab.fill("#prompt-form [name=steps]", "200")
    tab.click("#prompt-form button.main")
    until(tab, "document.querySelector('#progress').value > 0.01")
    assert "the de-tokenizer decodes, step " in tab.inner_text("#stage")
    assert tab.is_disabled("#prompt-form button.main")
    tab.click("#cancel")
    tab.wait_for_selector("#status", state="hidden")
    assert tab.locator("#samples article").count() == 0
    assert tab.is_enabled("#prompt-form button.main")
    assert tab.is_hidden("#problem")


@pytest.mark.usefixtures("slow")
def test_a_job_ends_with_its_page(visit, page):
    tab = visit()
    tab.click("#tab-prompt")
    tab.fill("#prompt-form textarea", "a red circle")
    tab.click("summary")
    tab.fill("#prompt-form [name=steps]", "200")
    tab.click("#prompt-form button.main")
    until(tab, "document.querySelector('#progress').value > 0")
    (job,) = (one for one in page.demo.jobs._jobs.values() if one.state == "running")
    tab.goto("about:blank")
    while job.state == "running":
        time.sleep(0.02)
    assert job.state == "cancelled"


def test_refusals_are_plain_sentences(visit, page, tmp_path):
    tab = visit("phone")

    def refused(words):
        tab.wait_for_selector(f"#problem >> text={words}")
        looks_right(tab)
        tab.click("#close")
        assert tab.is_hidden("#problem")

    (tmp_path / "large.mp4").write_bytes(b"0" * 1_500_000)
    tab.set_input_files("#file", tmp_path / "large.mp4")
    refused("The file is too large: 1.5 MB. This page takes at most 1 MB.")
    (tmp_path / "long.mp4").write_bytes(encode_video(np.zeros((48, 3, 16, 16), np.uint8), 8))
    tab.set_input_files("#file", tmp_path / "long.mp4")
    refused("long.mp4 is 6 seconds long; this page takes at most 5.")
    (tmp_path / "text.mp4").write_text("no video")
    tab.set_input_files("#file", tmp_path / "text.mp4")
    refused("text.mp4 cannot be read as a video or picture")
    assert tab.is_hidden("#chosen")
    tab.click("#tab-prompt")
    for name in ("llm_gmm_0", "llm_mse_0"):
        tab.uncheck(f"#heads input[value={name}]")
    tab.fill("#prompt-form textarea", "a red circle")
    tab.click("#prompt-form button.main")
    refused("Choose at least one head.")


def test_words_of_a_model_and_names_of_files_are_never_html(visit, clip_file, tmp_path):
    tab = visit()
    name = "<img src=x onerror=alert(1)>.mp4"
    shutil.copyfile(clip_file, tmp_path / name)
    tab.set_input_files("#file", tmp_path / name)
    tab.wait_for_selector("#chosen >> text=<img src=x onerror=alert(1)>.mp4")
    assert tab.locator("#chosen img").count() == 0


def test_the_tabs_are_reached_with_the_keyboard(visit):
    tab = visit()
    tab.focus("#tab-clip")
    tab.keyboard.press("ArrowRight")
    assert tab.is_visible("#prompt-form textarea")
    tab.keyboard.press("ArrowLeft")
    assert tab.is_visible("#drop")
    tab.focus("#example-clips button >> nth=1")
    tab.keyboard.press("Enter")
    assert "a blue square" in tab.inner_text("#chosen")
