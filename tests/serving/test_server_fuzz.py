"""Thousands of requests that no client would send, over every route of a server with its page and its feedback."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.fuzz import make_request, routes_of, send
from support.serving import FakeRegistry, health

from vitcifar.serving.app import Page, launch

MAX_ANSWER = 20_000  # characters of an error
MAX_SECONDS = 5.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A server with everything that can be switched on."""
    folder = tmp_path_factory.mktemp("colours")
    running = launch(FakeRegistry(folder), port=0, feedback=f"sqlite:///{folder}/feedback.db", poll_seconds=1e6)
    yield running
    running.close()


@pytest.mark.parametrize("num_requests", [400, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_no_request_is_an_error_of_the_server(whole: Page, num_requests: int, record_property: Any) -> None:
    source, routes = random.Random(num_requests), routes_of(whole)
    statuses, wrong = Counter[int](), []
    for number in range(num_requests):
        request = make_request(source, routes)
        began = time.monotonic()
        status, answer = send(whole, request)
        seconds = time.monotonic() - began
        statuses[status] += 1
        failed = status >= 500 and status != 503
        if failed or seconds > MAX_SECONDS or (status >= 400 and len(answer) > MAX_ANSWER):
            wrong.append((number, status, round(seconds, 1), len(answer), request))
    print(f"{num_requests} requests over {len(routes)} routes: {dict(sorted(statuses.items()))}")
    record_property("requests served", sum(count for status, count in statuses.items() if 200 <= status < 400))
    record_property("bad inputs refused", sum(count for status, count in statuses.items() if 400 <= status < 500))
    assert wrong == []
    assert statuses[200] > num_requests / 20, "requests that are answered are among them"
    assert health(whole)["status"] == "ok"
