"""The tab Batch: its numbers, its CSV, and a person who uses it in Chromium."""

import csv
import json

import httpx
import numpy as np
import pytest
from PIL import Image
from support.serving import expected_prediction, in_chromium, make_model, send_event
from support.toys import make_image

from vitcifar.serving.page import batch
from vitcifar.serving.page.html import percent
from vitcifar.serving.page.images import Decoded
from vitcifar.serving.score import predict_row
from vitcifar.serving.tables import COLUMNS

DONE = "#batch .progress:has-text('done')"
ROWS = "#batch tbody tr"
PIXELS = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture
def files(published, tmp_path):
    """Eleven digits, one with the name of a formula, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(published.splits.test.images[:10]):
        Image.fromarray(pixels).save(folder / f"digit {index}.png")
    Image.fromarray(published.splits.test.images[10]).save(folder / "=1+1.png")
    (folder / "letter.png").write_text("Dear page,")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\tx.png"])
def test_no_cell_of_the_csv_is_a_formula(toy_onnx, name):
    row = predict_row(make_model(toy_onnx), (name, make_image()))
    (cells,) = csv.reader([batch.csv_line(batch.csv_row(row))])
    assert len(cells) == len(COLUMNS)
    assert not any(cell.startswith(batch.FORMULA) for cell in cells)
    (cells,) = csv.reader([batch.csv_line(batch.csv_row(predict_row(make_model(toy_onnx), (name, b""))))])
    assert cells[COLUMNS.index("error")] and not any(cell.startswith(batch.FORMULA) for cell in cells)


@pytest.mark.parametrize(("threshold", "shown"), [(0.0, "–"), (0.9, "yes"), (None, "no")])
def test_a_row_says_whether_the_prediction_is_confident(toy_onnx, threshold, shown):
    model = make_model(toy_onnx, threshold=threshold)
    scored = predict_row(model, ("red.png", make_image("red")))
    assert f"<td>{shown}</td></tr>" in batch.table_row(1, Decoded(name="red.png", pixels=PIXELS), scored, model)


def test_a_forged_request_is_answered_with_one_sentence(page):
    for forged in ([1] * 10_000, {"files": [{"url": "/etc/passwd"}] * 10_000}, "x"):
        answer = send_event(page, "with_one", ["champion"], forged)
        assert "reload the page" in answer and len(answer) < 2000
    assert "reload the page" in send_event(page, "with_one", ["champion"], None)
    assert "cannot be accessed" in send_event(page, "with_one", ["champion"], {"files": [{"path": "/etc/passwd"}]})
    request = {"serial": "a", "start": 0, "versions": [], "files": []}
    answer = send_event(page, "with_one", ["x" * 50_000], request)
    assert "There is no version" in answer and len(answer) < 2000


@in_chromium
def test_a_person_classifies_many_images_sorts_them_and_downloads_the_table(tab, page, registry, files):
    parts = []
    tab.on("request", lambda request: parts.append(request.post_data_json) if "queue/join" in request.url else None)
    tab.get_by_role("tab", name="Batch").click()
    height = tab.evaluate("document.querySelector('#batch').offsetHeight")
    tab.set_input_files("#batch input", [str(file) for file in files])
    tab.wait_for_selector(DONE)
    assert [len(part["event_data"]["files"]) for part in parts] == [1, 8, 3], "rows come before the last image is sent"
    assert tab.inner_text("#batch .progress").startswith("12 images done, 1 of them cannot be read")
    assert tab.evaluate("document.querySelector('#batch').offsetHeight") == height, "nothing moves"
    sent = [("image", (file.name, file.read_bytes())) for file in files]
    answered = httpx.post(f"{page.url}/v1/predict", files=sent, trust_env=False, timeout=20).json()["predictions"]
    rows = tab.locator(ROWS)
    assert rows.locator("th").all_inner_texts() == [file.name for file in files]
    assert rows.locator("img.thumb").count() == 11
    for row, prediction in zip(rows.all(), answered, strict=True):
        if "error" in prediction:
            assert row.locator(".problem").inner_text() == prediction["error"]
        else:
            probability = percent(prediction["probabilities"][prediction["label"]])
            assert row.locator("td").all_inner_texts()[2:4] == [prediction["label"], probability]

    header = tab.locator("#batch th button[data-key=probability]")
    header.focus()
    tab.keyboard.press("Enter")
    assert header.locator("..").get_attribute("aria-sort") == "ascending"
    shown = [
        float(value) for value in rows.evaluate_all("rows => rows.slice(0, 11).map(row => row.dataset.probability)")
    ]
    assert shown == sorted(shown) and rows.last.locator("th").inner_text() == "letter.png", "errors come last"
    tab.keyboard.press("Enter")
    assert header.locator("..").get_attribute("aria-sort") == "descending"
    assert float(rows.first.get_attribute("data-probability")) == max(shown)

    tab.get_by_role("tab", name="Classify").click()
    tab.get_by_role("tab", name="Batch").click()
    assert rows.count() == 12, "another tab was open in between"
    with tab.expect_download() as download:
        tab.click("text=Download CSV")
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(COLUMNS)
    assert [row["path"] for row in table] == ["'=1+1.png", *(file.name for file in files[1:])]
    for row, prediction in zip(table, answered, strict=True):
        if "error" in prediction:
            assert row["error"] == prediction["error"] and not row["label"]
        else:
            assert json.loads(row["probabilities"]) == prediction["probabilities"], "the same numbers"
            assert (row["version"], row["digest"]) == ("1", prediction["release_digest"])


@in_chromium
def test_a_person_stops_continues_and_takes_another_version_on_a_phone(tab, registry, files):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_role("tab", name="Batch").click()
    waiting = []

    def hold(route):  # the first part, until the test lets it through
        route.continue_() if waiting else waiting.append(route)

    tab.route("**/queue/join*", hold)
    tab.set_input_files("#batch input", [str(file) for file in files[:4]])
    tab.click("#batch .go:has-text('Stop')")
    assert tab.inner_text("#batch .progress") == "Stopped after 0 of 4 images."
    waiting[0].continue_()
    tab.click("#batch .go:has-text('Continue')")
    tab.wait_for_selector(DONE)
    assert tab.locator(ROWS).count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "the table scrolls inside"
    tab.select_option("#version-list", "2")
    tab.click("#batch .go:has-text('Classify again')")
    tab.wait_for_selector("#batch .caption:has-text('toy version 2')")
    tab.wait_for_selector(DONE)
    labels = [row.get_attribute("data-label") for row in tab.locator(ROWS).all()]
    assert labels[1:] == [expected_prediction(registry, 2, file).label for file in files[1:4]]
    tab.click("#batch .clear")
    assert tab.locator(ROWS).count() == 0
