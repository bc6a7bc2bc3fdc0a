"""A challenger in the shadow sees what the champion answers, holds no answer up, and learns what is marked."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.serving import wait_until
from support.toys import make_image
from support.watched import WatchedRegistry, colours, files

from vitcifar.data.edge_cases import to_png
from vitcifar.errors import RegistryError
from vitcifar.registry.marked import read_marked
from vitcifar.serving import shadow, shadow_process
from vitcifar.serving.app import Page, launch
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.shadow import Agreement, Shadow


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/feedback.db"


@pytest.fixture(autouse=True)
def normal_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests that run now may leave nothing."""
    monkeypatch.setattr(shadow, "PRIORITY", shadow_process.NORMAL)


@pytest.fixture
def server(tmp_path: Path, url: str) -> Iterator[Page]:
    registry: Any = WatchedRegistry(tmp_path)
    registry.aliases["challenger"] = 2
    running = launch(registry, port=0, page=False, poll_seconds=1e6, shadow="challenger", feedback=url)
    yield running
    running.close()


def pair(running: Page) -> Agreement:
    return next(iter(running.shadow.agreements()), Agreement(1, 2)) if running.shadow else Agreement(1, 2)


def send(client: httpx.Client, image: np.ndarray | bytes) -> dict[str, Any]:
    content = image if isinstance(image, bytes) else to_png(image)
    answer = client.post("/v1/predict", files={"image": ("image.png", content)})
    assert answer.status_code == 200
    return answer.json()["predictions"][0]


def test_it_predicts_the_same_images_and_what_is_marked_is_paired(client, server, url):
    blue, red = make_image("blue"), make_image("red")
    assert send(client, blue)["version"] == 1
    wait_until(lambda: pair(server).agreed == 1, "the challenger says blue, too")
    assert send(client, red)["label"] == "red", "the champion answers"
    wait_until(lambda: pair(server).disagreed == 1, "the challenger says green")
    for image in (blue, red):
        answer = client.post("/v1/feedback", params={"verdict": "right"}, files={"image": ("image.png", image)})
        assert answer.json()["version"] == 1
    store = FeedbackStore(url)
    wait_until(lambda: len(store.entries("colours")) == 4, "an entry of each version for each image")
    mine = [entry for entry in store.entries("colours") if entry.source == "shadow"]
    assert [(entry.version, entry.label, entry.truth) for entry in mine] == [(2, "blue", "blue"), (2, "green", "red")]
    (champion,) = {entry.release_digest for entry in store.entries("colours") if entry.version == 1}
    (challenger,) = {entry.release_digest for entry in mine}
    marked = read_marked(url, challenger, champion)
    assert (marked.num_images, marked.gained, marked.lost) == (2, 0, 1)
    found = client.get("/v1/monitor").json()
    assert found["shadow"]["pairs"][0]["agreement"] == 0.5, "an image that is marked counts once"
    assert {one["version"] for one in found["versions"]} == {1, 2}, "it has a window of its own"
    text = client.get("/metrics").text
    assert 'vitcifar_shadow_images_total{outcome="agreed",shadow="2",version="1"} 1.0' in text
    assert 'vitcifar_shadow_agreement{shadow="2",version="1"} 0.5' in text


def test_while_it_is_busy_or_dead_images_are_dropped_and_answered(client, server):
    send(client, make_image("blue"))
    wait_until(lambda: pair(server).agreed == 1, "it has started")
    child = server.shadow._child._process
    child.send_signal(signal.SIGSTOP)
    images = colours(5, seed=3)
    answers = [send(client, image) for image in images]
    assert len(answers) == 5 and all(answer["timing"]["total_ms"] < 5000 for answer in answers)
    wait_until(lambda: pair(server).dropped >= 2, "one is with the child, one waits")
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: pair(server).failed == 1, "its end is noticed")
    assert "cannot predict in the shadow" in server.shadow.problem
    assert client.post("/v1/predict", files=files(images)).status_code == 200
    server.shadow._failed = -1e9  # as if it were later: it starts again
    before = pair(server).agreed + pair(server).disagreed
    send(client, make_image((9, 200, 9)))
    wait_until(lambda: pair(server).agreed + pair(server).disagreed > before, "another child predicts")
    assert server.shadow.problem == ""


def test_its_process_runs_on_what_others_leave(client, server, monkeypatch):
    monkeypatch.setattr(shadow, "PRIORITY", shadow_process.IDLE)
    send(client, make_image("blue"))
    wait_until(lambda: server.shadow._child is not None, "it is started")
    child = server.shadow._child._process
    wait_until(lambda: os.sched_getscheduler(child.pid) == os.SCHED_IDLE, "it has opened its model")
    server.close()
    assert child.poll() is not None, "it ends with the server"


def test_it_follows_its_alias_and_rests_beside_itself(tmp_path):
    registry: Any = WatchedRegistry(tmp_path)
    pool = ModelPool(registry, "champion")
    challenger = Shadow(pool, "challenger")
    prediction = pool.state.current.predict(colours(1)[0])
    challenger.offer(pool.state.current, colours(1)[0], prediction)
    assert challenger.number() is None and challenger.agreements() == []
    registry.aliases["challenger"] = 1
    pool.refresh()
    assert challenger.number() is None, "the version that serves"
    registry.aliases["challenger"] = 2
    pool.refresh()
    assert challenger.number() == 2
    challenger.close()


def test_an_unknown_number_is_one_sentence(tmp_path):
    registry: Any = WatchedRegistry(tmp_path)
    with pytest.raises(RegistryError, match="There is no version 9 for the shadow"):
        launch(registry, port=0, page=False, shadow="9")
