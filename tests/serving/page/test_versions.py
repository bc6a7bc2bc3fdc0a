"""The tab Versions: what it tells of the registry, and what it hides of the server."""

import dataclasses
import threading

import pytest
from support.serving import in_chromium, make_manifest, send_event, wait_until

from vitcifar import stores
from vitcifar.registry.aliases import Event, move_alias
from vitcifar.registry.registry import Version
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import versions

VERSION = Version(
    model_name="colours",
    number=1,
    aliases=(),
    status="",
    created="2026-01-31T12:00:00Z",
    run_id="r",
    source="",
    tags={},
)
EVENT = Event(
    alias="champion", before=1, after=2, kind="promote", reason="<b>", who="ann", when="2026-01-31T12:00:00Z", done=True
)


def test_the_accuracy_has_its_interval(colours):
    evaluation = {"accuracy": 0.95, "accuracy_low": 0.9, "accuracy_high": 0.98, "labels": [0] * 1500}
    details = versions.Details(release=make_manifest(checks={"test": evaluation}))
    assert "<b>95.0%</b>" in versions.accuracy(details)
    assert "(90.0% to 98.0%, 1,500 images)" in versions.accuracy(details)
    assert versions.accuracy(None) == "…"
    assert "not recorded" in versions.accuracy(versions.Details(release=make_manifest(checks={})))


def test_the_history_names_who_moved_an_alias_when_and_why():
    forced = dataclasses.replace(EVENT, kind="rollback", forced=True, reason="")
    table = versions.history_table([EVENT, forced, dataclasses.replace(EVENT, done=False, who="nobody")])
    assert "ann" in table and "2026-01-31 12:00" in table and "1 → 2" in table and "&lt;b&gt;" in table
    assert table.index("rolled back") < table.index("promoted"), "the newest comes first"
    assert "gates overridden" in table and "nobody" not in table
    assert table.count("<tr>") == 3
    assert "50 older moves" in versions.history_table([EVENT] * 100)
    edited = dataclasses.replace(EVENT, before="<script>")  # in a tag, which others may write
    assert "<script>" not in versions.history_table([edited])


def test_tags_that_somebody_edited_break_no_page(colours):
    broken = dataclasses.replace(VERSION, tags={"gates/champion/20260131T120000Z": "no JSON", "gates/x": "{}"})
    assert "never checked" in versions.gates(broken) and "never checked" in versions.gates(VERSION)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in /home/ann/data/cat.png", "in …/cat.png"),
        ("lost sqlite:////home/ann/mlflow.db today", "lost … today"),
        ("http://ann:secret@db:5000/x", "…"),
        (r"C:\Users\ann\x.png", "…/x.png"),
        ("golden_dir /srv/golden, the policy is none", "golden_dir …/golden, the policy is none"),
        ("softmax(logits / 0.3), 1/2 and `data/model.pt2`", "softmax(logits / 0.3), 1/2 and `data/model.pt2`"),
    ],
)
def test_visitors_read_no_folder_and_no_address(text, shown):
    assert versions.for_visitors(text) == shown


def test_a_model_card_cannot_inject_html_links_or_images():
    html = versions.render_markdown(
        "# A <script>x</script>\n\n- [a](http://x) ![b](http://y) <http://z>\n- `<i>`\n\n"
        "| a | b |\n|---|---|\n| c | d |\n"
    )
    assert "<h2>A &lt;script&gt;" in html and "<td>c</td>" in html and "&lt;i&gt;" in html
    assert "<a" not in html and "<img" not in html and "<script" not in html


def test_a_run_has_a_link_only_when_the_store_is_a_server_and_without_its_password(registry, monkeypatch):
    version = registry.show(1)
    assert stores.run_url(version.run_id) == "", "the store is a file"
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: "https://ann:secret@mlflow.example/sub/")
    experiment = registry.client.get_run(version.run_id).info.experiment_id
    assert stores.run_url(version.run_id) == (
        f"https://mlflow.example/sub/#/experiments/{experiment}/runs/{version.run_id}?workflowType=machine_learning"
    )


def test_a_store_that_does_not_answer_blocks_nobody(colours):
    answered = threading.Event()

    def manifest(version):
        answered.wait(20)
        raise OSError("/home/ann is away")

    colours.manifest = manifest
    pool, reader = ModelPool(colours, "champion"), versions.DetailsReader(colours)
    known = reader.get([dataclasses.replace(VERSION, tags={"release_digest": "f" * 64})])
    assert known == {} and "<td>…</td>" in versions.versions_table(pool, known)
    answered.set()
    listed = [dataclasses.replace(VERSION, tags={"release_digest": "f" * 64})]
    wait_until(lambda: bool(reader.get(listed)), "the failure was not noted")
    assert reader.get(listed)[1].problem == "cannot be read now"


@pytest.mark.parametrize("forged", [None, [1] * 10_000, {"version": ["1"] * 10_000}, {"version": "../../etc" * 9999}])
def test_a_forged_request_is_answered_with_one_sentence(page, forged):
    answer = send_event(page, "show_card", [], forged)
    assert "There is no such version" in answer and len(answer) < 2000


@in_chromium
def test_a_person_reads_versions_history_and_card_and_sees_a_promotion(tab, page, registry):
    tab.get_by_role("tab", name="Versions").click()
    row = tab.locator("#versions tbody tr")
    tab.wait_for_selector("#versions td:has-text('10.0%')")
    assert row.locator("th").all_inner_texts() == ["2", "1 champion serves"]
    assert "the first" in tab.inner_text("#history")
    tab.locator("[data-card='2']").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#model-card h2:has-text('toy 2')")
    assert tab.evaluate("document.activeElement.className") == "model-card", "a screen reader goes on there"
    assert registry.pull(2).release_id in tab.inner_text("#model-card")
    move_alias(registry, "champion", 2, reason="better on <night> images")
    tab.wait_for_selector("#versions tr:has-text('2 champion serves')", timeout=10_000)
    tab.wait_for_selector("#history tr:has-text('better on <night> images')", timeout=10_000)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    move_alias(registry, "champion", 1, reason="back")
    tab.wait_for_selector("#versions tr:has-text('1 champion serves')", timeout=10_000)
