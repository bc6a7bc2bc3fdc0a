"""The queue: how many wait, clients that leave, and requests that have begun when the server stops."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from support.serving import FakeRegistry, wait_until
from support.toys import make_image

from vitcifar.inference.session import OnnxClassifier
from vitcifar.serving import app, server
from vitcifar.serving.prediction_queue import PredictionQueue


class Slow:
    """Holds every prediction until `go`; counts those that began and ended."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go, self.began, self.ended = threading.Event(), 0, 0
        predict = OnnxClassifier.predict

        def hold(*args, **options):
            self.began += 1
            assert self.go.wait(20)
            prediction = predict(*args, **options)
            self.ended += 1
            return prediction

        patch.setattr(OnnxClassifier, "predict", hold)


@pytest.fixture
def slow(monkeypatch):
    return Slow(monkeypatch)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A server that classifies one request at a time, while one other waits; and its queue."""
    queues = []
    monkeypatch.setattr(server, "PredictionQueue", lambda: queues.append(PredictionQueue(1, 1)) or queues[0])
    running = app.launch(FakeRegistry(tmp_path), port=0, page=False)
    yield running, queues[0]
    running.close()


def post(url: str, num_images: int = 1) -> httpx.Response:
    files = [("image", make_image())] * num_images
    return httpx.post(f"{url}/v1/predict", files=files, trust_env=False, timeout=20)


def leave(url: str, num_images: int = 1) -> http.client.HTTPConnection:
    """Send a request whose response nobody awaits."""
    request = httpx.Request("POST", f"{url}/v1/predict", files=[("image", make_image())] * num_images)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("POST", "/v1/predict", request.read(), {"Content-Type": request.headers["content-type"]})
    return connection


def test_a_full_queue_is_503_with_retry_after_and_who_waits_is_answered(small, slow):
    running, queue = small
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(post, running.url)
        wait_until(lambda: slow.began == 1, "the first request did not begin")
        second = threads.submit(post, running.url)
        wait_until(lambda: queue.depth == 1, "the second request does not wait")
        refused = post(running.url)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "requests are waiting" in refused.json()["detail"]
        slow.go.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert second.result().json()["predictions"][0]["timing"]["queue_ms"] > 1


def test_of_a_hundred_requests_at_once_those_that_do_not_fit_are_refused_at_once_and_then_all_is_as_before(
    tmp_path, monkeypatch, slow
):
    monkeypatch.setattr(server, "PredictionQueue", lambda: PredictionQueue(1, 16))
    running = app.launch(FakeRegistry(tmp_path), port=0, page=False)
    try:
        with ThreadPoolExecutor(100) as threads:
            asked = [threads.submit(post, running.url) for _ in range(100)]
            wait_until(lambda: sum(one.done() for one in asked) == 83, "83 of them do not fit")
            refused = [one.result() for one in asked if one.done()]
            assert {answer.status_code for answer in refused} == {503}
            assert slow.ended == 0  # they do not wait for the first that was taken
            slow.go.set()
            assert sorted({one.result().status_code for one in asked}) == [200, 503] and slow.ended == 17
        assert post(running.url).status_code == 200
    finally:
        running.close()


def test_a_client_that_left_is_not_computed_for(small, slow):
    running, queue = small
    several = leave(running.url, 3)
    wait_until(lambda: slow.began == 1, "the first request did not begin")
    waiting = leave(running.url)
    wait_until(lambda: queue.depth == 1, "the second request does not wait")
    waiting.close()
    wait_until(lambda: queue.depth == 0, "the second request still waits")
    several.close()
    time.sleep(0.2)
    slow.go.set()
    assert post(running.url).status_code == 200
    assert slow.began == 2, "of the one that left, neither its second image nor its third"


def test_what_has_begun_is_answered_when_the_server_stops(small, slow):
    running, _ = small
    with ThreadPoolExecutor(2) as threads:
        begun = threads.submit(post, running.url)
        wait_until(lambda: slow.began == 1, "the request did not begin")
        closing = threads.submit(running.close)
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            post(running.url)
        slow.go.set()
        assert begun.result().status_code == 200
        closing.result(app.DRAIN_SECONDS)


def test_the_server_stops_although_a_request_does_not_end(small, slow, monkeypatch):
    running, _ = small
    running._server.config.timeout_graceful_shutdown = 1
    with ThreadPoolExecutor(1) as threads:
        threads.submit(post, running.url)
        wait_until(lambda: slow.began == 1, "the request did not begin")
        started = time.monotonic()
        running.close()
        assert time.monotonic() - started < 5 and not running._thread.is_alive()
        slow.go.set()
