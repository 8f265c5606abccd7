"""A report is one file that parses, shows everything it was given and loads nothing."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from divot_lightning.experiments.report.content import (
    Answered,
    Cell,
    Chart,
    Headline,
    Line,
    Picture,
    PictureRow,
    Report,
    Table,
)
from divot_lightning.experiments.report.rendering import render_report, write_report

VOID = {"meta", "img", "br", "hr", "link", "input", "line", "circle"}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects text, tags and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def clip() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)


def full_report() -> Report:
    return Report(
        title="Quickstart & report",
        introduction="Everything ran.",
        headlines=[Headline("shape", "87 %", ">= 85 %", True), Headline("captions", "70 %", ">= 80 %", False)],
        tables=[Table("Scores", ["what", "trained"], [["colour", Cell("0.97", True, "random-init 0.2")]], "64 clips")],
        reconstructions=[PictureRow("a red circle", [Picture(clip(), "all right", True)])],
        answers=[Answered(clip(), [("caption", "a red cross", "a <i>blue</i> cross", False)])],
        generations=[PictureRow("gmm, seed 0", [Picture(clip(), "", False), Picture(clip())])],
        charts=[Chart("tokenizer", [Line("train", [0, 10], [1.0, 0.5]), Line("empty", [], [])])],
        steps=Table("Steps", ["step", "time"], [["fit", "3:20"]]),
        conditions=[("torch", "2.13")],
        notes=["Clips that cannot be read count as wrong."],
    )


def test_page_parses_and_shows_every_part():
    page = Page(render_report(full_report()))
    text = " ".join(page.text)
    for wanted in ("Quickstart & report", "87 %", "missed", "random-init 0.2", "64 clips", "a <i>blue</i> cross",
                   "a red cross", "gmm, seed 0", "tokenizer", "3:20", "2.13", "count as wrong"):  # fmt: skip
        assert wanted in text, wanted
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert [image.get("class") for image in images] == ["right", None, "wrong", None]


def test_nothing_is_loaded_from_elsewhere():
    html = render_report(full_report())
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in Page(html).addresses)
    for token in ("http:", "https:", "url(", "@import", "<script", "<link"):
        assert token not in html, token


def test_an_oracle_is_named_only_where_it_judged():
    judged, plain = ([PictureRow("p", [Picture(clip(), "gmm", good)])] for good in (True, None))
    assert "oracle" in render_report(Report(title="t", generations=judged))
    assert "oracle" not in render_report(Report(title="t", generations=plain, reconstructions=plain))


def test_a_curve_and_its_key_look_alike_and_curves_of_one_key_have_one_entry():
    lines = [
        Line("none", [], []),
        *(Line(f"a{n}", [0, 1], [1, 2], colour=8 * (n > 1), key=f"a{n > 1}") for n in range(5)),
    ]
    page = render_report(Report(title="t", charts=[Chart("loss", lines)]))
    assert [page.count(f'class="line {style}"') for style in ("c0 d0", "c0 d1")] == [2 + 1, 3 + 1]
    assert [page.count(f"/></svg>{text}<") for text in ("aFalse (2)", "aTrue (3)", "none")] == [1, 1, 0]


def test_links_lead_somewhere():
    page = Page(render_report(full_report()))
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= places


def test_empty_parts_are_left_out():
    page = Page(render_report(Report(title="nothing yet")))
    assert [tag for tag, _ in page.tags if tag in ("h2", "img", "table")] == []


def test_file_appears_only_complete(tmp_path):
    write_report(full_report(), tmp_path / "deep" / "report.html")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    Page((tmp_path / "deep" / "report.html").read_text(encoding="utf-8"))


def test_a_picture_moves_at_its_own_rate():
    pictures = [Picture(clip(), frames_per_second=rate) for rate in (4.0, 8.0)]
    page = Page(render_report(Report("title", generations=[PictureRow("prompt", pictures)])))
    files = [address.partition("base64,")[2] for address in page.addresses if "image/webp" in address]
    durations = []
    for file in files:
        image = Image.open(io.BytesIO(base64.b64decode(file)))
        image.load()
        durations.append(image.info["duration"])
    assert durations == [250, 125]
