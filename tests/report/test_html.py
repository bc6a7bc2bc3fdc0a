"""The HTML report: one file, well-formed, escaped, without requests, and readable in a real browser."""

import base64
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.project import ROOT
from support.reports import HOSTILE, Page, many_classes

from vitcifar.data.contact_sheet import Tile
from vitcifar.report.html import Finding, Heat, HeatMap, Number, Raster, Section, Table, html_report
from vitcifar.report.log import report_sections
from vitcifar.report.style import dress, new_figure

CHROMIUM = Path("/usr/bin/chromium")
# Of each part that may scroll sideways: whether it does, and whether its hint is seen.
HINTS = """[...document.querySelectorAll('.scroll')].map(part =>
    [part.scrollWidth > part.clientWidth, part.querySelector('.hint').offsetHeight > 0])"""

# What scrolls sideways without a hint.
UNHINTED = """[...document.querySelectorAll('main *:not(.scroll)')].filter(part =>
    getComputedStyle(part).overflowX === 'auto' && part.scrollWidth > part.clientWidth).map(part => part.className)"""


@pytest.fixture(scope="module")
def page(result):
    return render(result)


def render(result):
    parts = report_sections(result.evaluation, result.dataset, result.probabilities, result.analysis, result.comparison)
    return html_report("Run <b>1</b>", parts, subtitle="a & b", facts={"Data": "<x>"})


def test_report_is_well_formed_and_its_contents_link_to_every_section(page):
    assert page.startswith("<!doctype html>") and Page(page).tags.count("section") == 13
    links = re.findall(r'href="#([^"]+)"', page)
    assert links == re.findall(r'<section id="([^"]+)"', page) and len(set(links)) == len(links)


def test_report_escapes_every_text(page):
    read = Page(page)
    assert "script" not in read.tags
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert "<script>alert(1)</script>" in read.text  # as words
    assert "<i>0</i>.png" in read.text and "Run <b>1</b>" in read.text and "<other> images" in read.text
    assert not re.search(r"<i>\d|<b>1</b>|<x>|<other>", page)


@pytest.mark.parametrize("field", ["title", "text", "verdict"])
def test_section_texts_are_escaped(field):
    section = Section(**{"title": "One", "verdict": "plain", field: HOSTILE[1] + HOSTILE[3]})
    read = Page(html_report("x", [section]))
    assert not {"script"} & set(read.tags) and "img" not in read.tags and HOSTILE[1] + HOSTILE[3] in read.text


@pytest.mark.parametrize(
    "part",
    [
        {"numbers": [Number(name=HOSTILE[3], value=HOSTILE[3], note=HOSTILE[3])]},
        {"tables": [Table(title=HOSTILE[3], header=[HOSTILE[3]], rows=[[HOSTILE[3]]])]},
        {"findings": [Finding(text=HOSTILE[3])] * 3},
        {"command": HOSTILE[3] * 3},
        {
            "heat_maps": [
                HeatMap(
                    title=HOSTILE[3],
                    note=HOSTILE[3],
                    rows=["r"],
                    columns=["c"],
                    row_title="",
                    column_title="",
                    cells=[[Heat(strength=1, tone="bad", text=HOSTILE[3], hint=HOSTILE[3])]],
                )
            ]
        },
        {"raster": Raster(title=HOSTILE[3], note=HOSTILE[3] * 2, alt=HOSTILE[3], pixels=np.zeros((2, 2, 4), np.uint8))},
        {"tiles": [Tile(image=np.zeros((2, 2, 3), np.uint8), title=HOSTILE[3], note=HOSTILE[3], id=HOSTILE[3])]},
    ],
)
def test_every_field_of_a_part_is_escaped(part):
    read = Page(html_report("x", [Section(title="One", **part)]))
    assert read.text.count(HOSTILE[3]) == 3
    assert read.tags.count("img") == len({"tiles", "raster"} & set(part)) and not read.values("onerror")


def test_report_loads_nothing_from_outside(page):
    read = Page(page)
    for name in ("src", "href", "xlink:href"):
        for value in read.values(name):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/svg+xml;base64,")), value
    assert "@import" not in page and "url(" not in page and "<link" not in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in read.values("content")


def test_figures_are_embedded_as_svg_that_loads_nothing(page):
    figures = [url for url in Page(page).values("src") if url.startswith("data:image/svg+xml")]
    assert len(figures) == len(set(figures)) == 4
    for url in figures:
        svg = base64.b64decode(url.split(",")[1]).decode()
        assert "<svg" in svg and "<script" not in svg and "@import" not in svg
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))


def test_figures_are_described_by_their_titles_and_notes():
    figure = new_figure(3, 2)
    for axes, title, note in zip(figure.subplots(1, 2), ("Left", "a < b"), ("", "0.5"), strict=True):
        dress(axes, title, note=note)
    assert Page(html_report("x", [Section(title="One", figures=[figure])])).values("alt") == ["Left; a < b: 0.5"]


def test_the_name_of_an_option_is_not_broken_over_lines():
    page = html_report("x", [Section(title="One", findings=[Finding(text="more --epochs <b>may</b> help")])])
    assert 'more <span class="option">--epochs</span> &lt;b&gt;may&lt;/b&gt; help' in page


def test_headings_are_in_order_and_every_table_has_headers_and_every_image_a_text(page):
    read = Page(page)
    assert [tag for tag in read.tags if re.fullmatch("h[1-6]", tag)] == ["h1"] + ["h2"] * 13
    assert len(read.values("alt")) == read.tags.count("img") and all(read.values("alt"))
    for table in page.split("<table")[1:]:
        body = table.split("<tbody>")[1].split("</table>")[0]
        assert '<th scope="col"' in table and body.count("<tr>") == body.count('<th scope="row"')


def test_what_is_wide_scrolls_by_keyboard():
    narrow, wide = (Table(title=str(n), header=["x"] * n, rows=[["1"] * n]) for n in (2, 6))
    parts = html_report("x", [Section(title="One", tables=[narrow, wide])]).split('<div class="scroll')
    assert all('tabindex="0" role="region" aria-label=' in part for part in parts[1:])


@pytest.mark.parametrize(("num_classes", "limit"), [(30, 250_000), (1000, 600_000)])
def test_a_report_of_many_classes_has_a_bounded_size(num_classes, limit):
    evaluation, dataset, probabilities = many_classes(num_classes)
    page = html_report("x", report_sections(evaluation, dataset, probabilities))
    assert len(page.encode()) < limit
    assert "<bdi>猫 0</bdi>" in page  # a name in the script of its class


def test_ids_of_the_page_are_unique(page):
    ids = Page(page).values("id")
    assert ids and sorted(ids) == sorted(set(ids))


def test_report_of_the_same_result_is_the_same(result, page):
    assert render(result) == page


def test_shares_in_a_table_have_bars_and_text_stays_text():
    table = Table(title="T", header=["name", "share", "count"], rows=[["<a>", 0.25, "7"]], numeric=[1, 2])
    page = html_report("x", [Section(title="One", tables=[table])])
    assert 'style="width:25.0%"' in page and "25.0%</span>" in page
    assert '<th scope="row"><bdi>&lt;a&gt;</bdi></th>' in page and '<td class="n">7</td>' in page
    assert '<th scope="col" class="n">share</th>' in page


def test_large_tiles_are_reduced_and_small_ones_keep_their_pixels():
    tiles = [Tile(image=np.zeros((side, side, 3), np.uint8), title=str(side)) for side in (8, 400)]
    read = Page(html_report("x", [Section(title="One", tiles=tiles)]))
    sides = [int.from_bytes(base64.b64decode(url.split(",")[1])[16:20]) for url in read.values("src")]
    assert sides == [8, 192] and read.values("class").count("small") == 1


def test_template_and_stylesheet_are_packaged():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["vitcifar"]
    packaged = {path for pattern in patterns for path in (ROOT / "vitcifar").glob(pattern)}
    assert {path for path in (ROOT / "vitcifar" / "report").iterdir() if path.suffix in (".j2", ".css")} <= packaged


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM} on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_report_opens_offline_in_a_browser_without_messages_and_fits_the_screen(page, tmp_path, width, scheme):
    sync_api = pytest.importorskip("playwright.sync_api")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        requests, messages = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.goto(file.as_uri())
        scroll_width = tab.evaluate("document.documentElement.scrollWidth")
        broken = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
        flat = tab.evaluate("[...document.querySelectorAll('.figure img')].filter(i => i.clientHeight < 80).length")
        figure = tab.locator(".figure").first.screenshot()
        hints, unhinted = tab.evaluate(HINTS), tab.evaluate(UNHINTED)
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert (messages, scroll_width, broken, flat) == ([], width, 0, 0)
    assert unhinted == [] and 'class="figure wide"' in page
    assert {scrolls for scrolls, _ in hints} == ({True, False} if width == 390 else {False})
    assert all(scrolls == is_hinted for scrolls, is_hinted in hints), "a hint to swipe says what is so"
    brightness = np.asarray(Image.open(io.BytesIO(figure)).convert("L")).mean()
    assert brightness > 200 if scheme == "light" else brightness < 60  # the paper of a figure is that of the page
