"""The monitor: a bounded window without images, what it reports of a running server, and what it cannot say."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from support.serving import FakeRegistry, make_manifest
from support.toys import make_image
from support.watched import WatchedRegistry, colours, evaluation, files

from vitcifar.data.dataset import pixel_hash
from vitcifar.inference.session import Prediction
from vitcifar.serving import monitor
from vitcifar.serving.app import Page, launch
from vitcifar.serving.monitor import Monitor, Window


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    registry: Any = WatchedRegistry(tmp_path_factory.mktemp("watched"))
    running = launch(registry, port=0, page=False, poll_seconds=1e6)
    yield running
    running.close()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "REFRESH_SECONDS", -1.0)


def predicted(label: str = "red", probability: float = 0.9) -> Prediction:
    return Prediction(label=label, probabilities={label: probability}, release_id="toy")


def reports(client: httpx.Client) -> dict[int, dict[str, Any]]:
    return {one["version"]: one for one in client.get("/v1/monitor").json()["versions"]}


def test_a_server_reports_accuracy_confidence_and_drift_of_what_it_has_predicted(client, fresh):
    assert reports(client) == {}
    assert client.post("/v1/predict", files=files(colours(40, seed=1))).status_code == 200
    few = reports(client)[1]
    assert few["num_images"] == 40 and few["drift"] is None and few["estimated_accuracy"] is None
    assert few["notes"] == ["50 different images are needed for a report."]
    rows = client.post("/v1/predict", files=files(colours(80, seed=2))).json()["predictions"]
    rows += client.post("/v1/predict", files=files(colours(40, seed=1))).json()["predictions"]  # again
    report = reports(client)[1]
    assert (report["num_images"], report["num_predictions"], report["num_reference"]) == (120, 160, 300)
    confidences = np.array([max(row["probabilities"].values()) for row in rows])
    assert report["estimated_accuracy"] == pytest.approx(confidences.mean(), abs=1e-6)
    assert report["estimated_low"] < report["estimated_accuracy"] < report["estimated_high"]
    assert report["not_confident"] == pytest.approx(np.mean([not row["confident"] for row in rows]))
    assert (report["test_accuracy"], report["test_not_confident"]) == (0.9, 0.0)
    assert report["drift"] is False and report["drift_p_value"] > 0.05 and report["notes"] == []


def test_other_images_are_a_drift_of_the_version_that_predicts_them(client, fresh):
    client.post("/v1/predict", params={"version": "2"}, files=files(colours(60, mean=190)))
    report = reports(client)[2]
    assert report["drift"] is True and report["drift_p_value"] == 1 / 500
    text = client.get("/metrics").text
    assert 'vitcifar_monitor_drift{version="2"} 1.0' in text
    assert 'vitcifar_monitor_images{version="2"} 60.0' in text
    for name in ("estimated_accuracy", "estimated_low", "estimated_high", "not_confident", "drift_p_value"):
        assert f'vitcifar_monitor_{name}{{version="2"}}' in text


def test_every_way_to_predict_is_seen(client, server, fresh):
    window = server.pool.monitor.window(server.pool.state.current.manifest, server.pool.state.current.digest)
    before = window.num_predictions
    image = make_image((3, 2, 1), (5, 5))
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}]}
    import base64

    body["inputs"][0]["data"] = [base64.b64encode(image).decode()]  # type: ignore[index]
    assert client.post("/v2/models/colours/infer", json=body).status_code == 200
    assert client.post("/invocations", json={"inputs": body["inputs"][0]["data"]}).status_code == 200
    assert window.num_predictions == before + 2


def test_a_window_is_bounded_and_keeps_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "WINDOW", 10)
    window, images = Window(make_manifest(), "d"), colours(12)
    assert [window.add(image, predicted(), np.ones(3, np.float32)) for image in images] == [True] * 12
    assert list(window._seen) == [pixel_hash(image) for image in images[2:]]
    assert window.add(images[5], predicted("blue"), None) is False, "the same image is one"
    assert list(window._seen)[-1] == pixel_hash(images[5]) and len(window._seen) == 10
    (kept,) = {tuple(vars(seen)) for seen in window._seen.values()}
    assert kept == ("label", "confidence", "embedding", "time")


def test_what_a_version_cannot_say_is_a_note():
    window = Window(make_manifest(threshold=0.0, checks={}), "d")
    for image in colours(60):
        window.add(image, predicted(), None)
    report = window.report()
    assert report.estimated_accuracy == pytest.approx(0.9) and report.not_confident is None and report.drift is None
    assert len(report.notes) == 3 and "without reference embeddings" in " ".join(report.notes)


def test_the_band_knows_how_well_a_version_is_calibrated(tmp_path):
    halves = {}
    for name, recorded in (("good", evaluation(accuracy=0.9)), ("bad", {**evaluation(), "confidences": [0.99] * 200})):
        window = Window(make_manifest(checks={"test": recorded}), name)
        for image in colours(60):
            window.add(image, predicted(), None)
        report = window.report()
        halves[name] = (report.estimated_accuracy or 0) - (report.estimated_low or 0)
    assert halves["bad"] > 1.5 * halves["good"]


def test_a_report_is_made_again_only_after_a_while(monkeypatch):
    window = Window(make_manifest(), "d")
    window.add(colours(1)[0], predicted(), None)
    first = window.report()
    window.add(colours(2)[1], predicted(), None)
    assert window.report() is first
    monkeypatch.setattr(monitor, "REFRESH_SECONDS", -1.0)
    assert window.report().num_images == 2


def test_a_server_remembers_a_few_versions(monkeypatch):
    monkeypatch.setattr(monitor, "MAX_WINDOWS", 2)
    watch = Monitor()
    first = watch.window(make_manifest(), "1")
    assert watch.window(make_manifest(), "1") is first
    watch.window(make_manifest(), "2")
    watch.window(make_manifest(), "3")
    assert watch.window(make_manifest(), "1") is not first


def test_the_monitor_wants_the_password(tmp_path):
    registry: Any = FakeRegistry(tmp_path)
    running = launch(registry, port=0, page=False, passwords={"ann": "right"})
    try:
        for auth, status in ((None, 401), (("ann", "right"), 200)):
            assert httpx.get(f"{running.url}/v1/monitor", auth=auth, trust_env=False).status_code == status
    finally:
        running.close()
