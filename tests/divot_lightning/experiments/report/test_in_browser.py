"""A report in a real browser: everything is in the page, nothing is cut off on a phone, pictures load, it prints."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from divot_lightning.experiments.report.content import (
    Answered,
    Cell,
    Chart,
    Headline,
    ItemScores,
    Line,
    Picture,
    PictureRow,
    Report,
    Table,
)
from divot_lightning.experiments.report.rendering import render_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=4000")

LOOK = """
const page = document.getElementById("page").contentDocument;
const wide = [...page.querySelectorAll("main *")].filter(e => !e.closest(".scroll") && !e.closest("svg")
  && e.getBoundingClientRect().right > page.documentElement.clientWidth + 1).map(e => e.tagName + "." + e.className);
const found = {
  broken: [...page.images].filter(i => !i.complete || i.naturalWidth === 0).length,
  images: page.images.length,
  outside: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
  overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  wide: wide,
  text: page.body.innerText.length,
  charts: [...page.querySelectorAll("svg polyline")].filter(l => l.getBoundingClientRect().width > 0).length,
};
document.title = JSON.stringify(found);
"""


def browse(folder, *flags: str) -> str:
    command = (BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags)
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


@pytest.fixture(scope="module")
def report() -> str:
    clip = np.random.default_rng(0).integers(0, 255, (4, 3, 32, 32), dtype=np.uint8)
    wide = Table("Scores", ["", *(f"a_long_column_name_{n}" for n in range(12))], [[Cell("row"), *["0.123"] * 12]])
    rows = [PictureRow("a caption of some length that has to wrap", [Picture(clip, "a system", True)] * 8)]
    return render_report(
        Report(
            title="A report with everything",
            introduction="Words. " * 60,
            headlines=[Headline("shape", "95%", ">= 90%", True)] * 5,
            tables=[wide],
            reconstructions=rows,
            answers=[Answered(clip, [("what?", "this", "that", False)])],
            generations=rows,
            items={
                "right": ItemScores(
                    ["one", "two </script>", "three"],
                    {"mse": [0.0, 1.0, None], "gmm": [1.0, 0.5, 1.0]},
                ),
                "sharp": ItemScores(["one"], {"gmm": [2.0], "new": [1.0], "mse": [3.0]}),
            },
            charts=[Chart("loss", [Line(f"cell {n}", [0, 1, 2], [3.0, 2.0, 1.0 + n]) for n in range(7)])],
            conditions=[("Processor", "one")],
            notes=["A note with an_unbroken_name_that_is_rather_long_for_a_phone_" * 2],
        )
    )


@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_is_whole_at_any_width(tmp_path, report, width):
    page = tmp_path / "page.html"
    frame = f'<iframe id="page" style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(report)}"></iframe>'
    page.write_text(f"{frame}<script>addEventListener('load', () => {{{LOOK}}})</script>", encoding="utf-8")
    dom = browse(tmp_path, f"--window-size={max(width, 600) + 40},900", "--dump-dom", page.as_uri())
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]))
    assert found["images"] == 17
    assert found["broken"] == 0
    assert found["outside"] == []
    assert found["overflow"] <= 0, found["wide"]
    assert found["charts"] == 7
    assert found["text"] > 500


def test_two_combinations_are_compared_item_by_item(tmp_path, report):
    (tmp_path / "page.html").write_text(report, encoding="utf-8")
    dom = browse(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    summary = re.search(r'<p id="pairs">(.*?)</p>', dom)[1]
    assert summary == "2 items: B is higher on 1, lower on 1, equal on 0; mean difference 0.250"
    rows = re.findall(r"<tr>(.*?)</tr>", re.search(r'<tbody id="differing">(.*?)</tbody>', dom)[1])
    assert [re.findall(r"<td>(.*?)</td>", row) for row in rows] == [
        ["one", "0.000", "1.000", "1.000"],
        ["two &lt;/script&gt;", "1.000", "0.500", "-0.500"],
    ]


def test_another_score_keeps_the_combinations_that_were_chosen(tmp_path, report):
    choose = """
    const at = id => document.getElementById(id);
    at("first").value = "gmm"; at("second").value = "mse"; at("second").onchange();
    at("score").value = "sharp"; at("score").onchange();
    at("pairs").textContent += ` (${at("first").value} and ${at("second").value})`;
    """
    (tmp_path / "page.html").write_text(f"{report}<script>{{{choose}}}</script>", encoding="utf-8")
    dom = browse(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    summary = re.search(r'<p id="pairs">(.*?)</p>', dom)[1]
    assert summary == "1 items: B is higher on 1, lower on 0, equal on 0; mean difference 1.000 (gmm and mse)"


def test_a_page_prints(tmp_path, report):
    (tmp_path / "page.html").write_text(report, encoding="utf-8")
    browse(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri())
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
