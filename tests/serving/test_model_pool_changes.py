"""Answers while versions change: each equals the offline prediction of the version that it names."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from support.serving import FakeRegistry, wait_until
from support.toys import make_image

from vitcifar.data.edge_cases import to_png
from vitcifar.registry.aliases import move_alias
from vitcifar.release.cache import cached_releases
from vitcifar.serving.app import launch
from vitcifar.serving.loaded_model import open_version
from vitcifar.serving.model_pool import MAX_RECENT, ModelPool


def test_every_answer_of_eight_clients_through_a_promotion_and_a_rollback_is_that_of_its_version(registry, published):
    files = [to_png(image) for image in published.splits.test.images[:4]]
    expected = {
        (n, i): open_version(registry, n).predict(file).probabilities for n in (1, 2) for i, file in enumerate(files)
    }
    assert expected[1, 0] != expected[2, 0]
    running = launch(registry, port=0, page=False, poll_seconds=0.05)
    rows: list[tuple[int, dict]] = []
    stop = threading.Event()

    def ask(index: int) -> None:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/v1/predict", files={"image": files[index % 4]})
                rows.append((index % 4, response.raise_for_status().json()["predictions"][0]))

    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(ask, index) for index in range(8)]
        try:
            for number in (2, 1, 2):
                move_alias(registry, "champion", number, reason="a test")
                wait_until(lambda number=number: running.pool.state.current.version == number, "it is not followed")
                before = len(rows)
                wait_until(lambda before=before: len(rows) > before + 16, "nobody is answered")
        finally:
            stop.set()
    running.close()
    assert [client.exception() for client in clients] == [None] * 8
    assert {row["version"] for _, row in rows} == {1, 2}
    assert [row for index, row in rows if row["probabilities"] != expected[row["version"], index]] == []


def test_an_old_version_leaves_memory_when_its_last_request_ends(tmp_path):
    registry = FakeRegistry(tmp_path, tuple(range(1, MAX_RECENT + 3)))
    pool = ModelPool(registry, "champion")
    in_use = pool.get("1")
    left = weakref.ref(in_use.classifier)
    for number in registry.numbers[1:]:
        registry.aliases["champion"] = number
        assert pool.refresh().current.version == number
    assert in_use.predict(make_image("red")).label == "red", "a request that has begun goes on"
    assert left() is not None
    del in_use
    gc.collect()
    assert left() is None


@pytest.mark.slow
def test_many_reloads_fill_neither_memory_nor_the_cache(registry, monkeypatch, tmp_path):
    """Versions 1 and 2 in turns, with an empty cache that keeps one release: each is downloaded again."""
    monkeypatch.setenv("VITCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITCIFAR_CACHE_KEEP", "1")
    pool = ModelPool(registry, "champion")
    memory = []
    for number in (2, 1) * 10:
        pool._recent = {}
        registry.client.set_registered_model_alias("toy", "champion", str(number))
        state = pool.refresh()
        assert (state.current.version, state.problem) == (number, "")
        assert state.current.predict(np.zeros((8, 8, 3), np.uint8)).release_id == state.current.manifest.release_id
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        assert len(cached_releases()) <= 2, "the new one, and the one that was open while it was downloaded"
        assert pool.state.current.manifest.onnx_path.is_file()
    assert memory[-1] < 1.1 * memory[3]
