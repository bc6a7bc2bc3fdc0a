"""The tab Compare: two versions side by side, how often they agree, and where they do not."""

import pytest
from PIL import Image
from support.serving import FakeRegistry, expected_prediction, in_chromium, send_event
from support.toys import make_image

from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import compare, images
from vitcifar.serving.page.html import percent

DONE = "#compare .progress:has-text('done')"


@pytest.fixture
def files(published, tmp_path):
    for index, pixels in enumerate(published.splits.test.images[:8]):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.glob("?.png"))


def test_the_newest_other_version_is_compared_with_the_one_that_serves(tmp_path):
    colours = FakeRegistry(tmp_path, numbers=(1, 2, 3))
    assert compare.default_pair(ModelPool(colours, "champion")) == ("1", "3")
    assert compare.default_pair(ModelPool(colours, "3")) == ("3", "2")
    alone = FakeRegistry(tmp_path, numbers=(1,))
    assert compare.default_pair(ModelPool(alone, "champion")) == ("1", "1")


def test_both_versions_are_named_with_their_own_prediction(colours):
    file = {"name": "<b>.png", "bytes": 9, "url": "data:;base64,"}
    part = images.Part(serial="", start=4, versions=(), files=(file,))
    pool = ModelPool(colours, "champion")
    answer = compare.answer_compare(pool, part, "1", "2")
    assert answer["versions"] == ["1", "2"] and "colours version 1" in answer["caption"]
    assert "data-agree" not in answer["rows"][0]["row"], "a file that cannot be read counts neither way"
    decoded = images.Decoded(name="<b>.png", pixels=images.read_isolated(make_image("red"), "red"))
    models = pool.get("1"), pool.get("2")
    one, other = (model.classifier.predict_images([decoded.pixels])[0] for model in models)
    row, shown = compare.table_row(5, decoded, one, other), compare.side_by_side(decoded, models, (one, other))
    assert 'data-agree="yes"' in row and "<b>.png" not in row + shown
    assert shown.count("<section>") == 2 and shown.count('<li class="bar">') == 6


def test_a_forged_request_is_answered_with_one_sentence(page):
    for forged in ([1] * 10_000, {"versions": ["1"] * 10_000}, None):
        answer = send_event(page, "with_two", ["1", "2"], forged)
        assert "reload the page" in answer and len(answer) < 2000
    request = {"serial": "a", "start": 0, "versions": ["9", "1"], "files": []}
    assert "There is no version" in send_event(page, "with_two", ["1", "2"], request)


@in_chromium
def test_a_person_compares_two_versions_on_several_images(tab, registry, files):
    tab.get_by_role("tab", name="Compare").click()
    tab.set_input_files("#compare input[type=file]", [str(file) for file in files])
    tab.wait_for_selector(DONE)
    pairs = [tuple(expected_prediction(registry, version, file) for version in (1, 2)) for file in files]
    differ = [(file.name, *pair) for file, pair in zip(files, pairs, strict=True) if pair[0].label != pair[1].label]
    assert differ, "this toy's versions disagree on some of these images"
    assert tab.locator(".agreement b").all_inner_texts() == [str(8 - len(differ)), "8"]
    assert tab.locator(".pictured h2").all_inner_texts() == ["toy version 1", "toy version 2"]
    assert tab.locator(".pictured .verdict b").all_inner_texts() == [one.label for one in pairs[-1]]

    rows = tab.locator("#compare tr[data-agree]:visible")
    for row, (name, one, other) in zip(rows.all(), differ, strict=True):
        cells = [one.label, percent(one.probability), other.label, percent(other.probability), "no"]
        assert [row.locator("th").inner_text(), *row.locator("td").all_inner_texts()[2:]] == [name, *cells]
        assert row.locator("img.thumb").count() == 1
    rows.first.locator("button").focus()
    tab.keyboard.press("Enter")
    assert differ[0][0] in tab.inner_text(".pictured figcaption"), "a name shows its image side by side"
    tab.check(".agreeing")
    assert rows.count() == 8

    tab.set_input_files("#compare input[type=file]", str(files[0]))
    tab.wait_for_function("[...document.querySelectorAll('.agreement b')][1].textContent === '9'")
    tab.select_option("#second-version select", "1")
    tab.wait_for_function("[...document.querySelectorAll('.agreement b')].every(one => one.textContent === '9')")
    assert tab.locator(".pictured h2").all_inner_texts() == ["toy version 1", "toy version 1"]
