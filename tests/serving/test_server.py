"""Health, metrics, documentation, the sub-path, and the server without its page."""

import http.client
import json
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.project import ROOT
from support.serving import FakeRegistry, wait_until
from support.toys import make_image

from vitcifar.serving.app import launch


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """The metrics: the name and the values of the labels -> the value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def test_ready_names_the_version_and_what_is_wrong_with_the_registry(server, client):
    assert client.get("/health/live").json() == {"status": "live"}
    ready = client.get("/health/ready").json()
    assert (ready["status"], ready["version"], ready["spec"], ready["problem"]) == ("ready", 1, "champion", "")
    server.pool.registry.unreachable = True
    server.pool.refresh()
    try:
        response = client.get("/health/ready")
        assert response.status_code == 200, "it still serves"
        assert response.json()["problem"] == "The registry cannot be read. Version 1 is still serving."
        assert samples(client)["vitcifar_problem",] == 1
    finally:
        server.pool.registry.unreachable = False
        server.pool.refresh()
    assert client.get("/health").json()["status"] == "ok"


def test_metrics_count_requests_errors_and_the_phases_of_every_image(client):
    before = samples(client)
    files = [("image", ("a.png", make_image())), ("image", ("b.png", b"no")), ("image", ("c.png", make_image()))]
    client.post("/v1/predict", files=files, params={"version": "2"})
    client.post("/v1/predict", files=files, params={"version": "9"})
    client.get("/a/b/c")
    after = samples(client)

    def gained(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert gained("vitcifar_requests_total", "/v1/predict", "200", "2") == 1
    assert gained("vitcifar_errors_total", "/v1/predict", "404", "") == 1
    assert gained("vitcifar_requests_total", "other", "404", "") == 1, "a stranger's path is no label"
    assert (
        gained("vitcifar_images_total", "classified", "2") == 2 and gained("vitcifar_images_total", "error", "2") == 1
    )
    for phase in ("queue", "decode", "inference"):
        assert gained("vitcifar_latency_seconds_count", phase) == 2
    assert after["vitcifar_queue_depth",] == 0
    (info,) = (key for key in after if key[0] == "vitcifar_version_info")
    assert (info[1], info[3], info[5]) == ("colours", "toy1", "1"), "model, release and version, by their labels' names"


@pytest.mark.parametrize("path", ["/v1/predict", "/invocations", "/v2/models/{name}/infer"])
@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x", "application/json"])
def test_a_client_that_leaves_while_it_sends_is_no_error_of_the_server(server, client, path, kind):
    key = ("vitcifar_requests_total", path, "499", "")
    before = samples(client).get(key, 0)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("POST", path.format(name="colours"), b"--x", {"Content-Type": kind, "Content-Length": "1000"})
    connection.close()
    wait_until(lambda: samples(client).get(key, 0) > before, "the request was not ended")
    assert samples(client)[key] == before + 1


def test_the_documentation_has_examples_and_loads_nothing_from_other_machines(client):
    page = client.get("/docs").text
    assert "http://" not in page and "https://" not in page
    for path in ("/docs/files/swagger-ui-bundle.js", "/docs/files/swagger-ui.css"):
        assert path in page and client.get(path).status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert {"multipart/form-data", "application/json", "image/png"} <= set(operation["requestBody"]["content"])
    sent = operation["requestBody"]["content"]["application/json"]["example"]
    shown = operation["responses"]["200"]["content"]["application/json"]["example"]["predictions"][0]
    (row,) = client.post("/v1/predict", json=sent).json()["predictions"]
    statistics = {"out_of_distribution", "ood_score"}  # which the release of this test does not have
    assert list(row) == [name for name in shown if name not in statistics] and statistics <= set(shown)
    assert list(row["timing"]) == list(shown["timing"])


def test_an_answer_is_sent_at_once(client):
    """A socket that waits for more to send adds 40 ms to every answer."""
    seconds = [client.post("/v1/predict", files={"image": make_image()}).elapsed.total_seconds() for _ in range(10)]
    assert min(seconds) < 0.035


def documented_calls() -> list[str]:
    """The calls of the server in the guide: blocks of which every line belongs to one call."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/serve.md").read_text(), flags=re.DOTALL)
    calls = [block for block in blocks if "127.0.0.1:7860" in block]
    return [call for block in calls for call in re.split(r"\n(?=curl|\(printf)", block.strip())]


@pytest.mark.parametrize("call", documented_calls(), ids=range(len(documented_calls())))
def test_the_curl_calls_of_the_guide_work(server, tmp_path, call):
    for name in ("cat.jpg", "dog.png"):
        (tmp_path / name).write_bytes(make_image("red", kind="PNG"))
    call = call.replace("http://127.0.0.1:7860", server.url).replace("models/vitcifar", "models/colours")
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    labels = [row["label"] for row in answer.get("predictions", [])] or answer["outputs"][0]["data"]
    assert set(labels) == {"red"}


@pytest.mark.parametrize("path", ["/health", "/v1/predict", "/docs"])
def test_every_response_has_the_security_headers_and_foreign_hosts_are_rejected(client, path):
    response = client.get(path, headers={"Host": "evil.example"})
    assert response.status_code == 400 and response.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("prefix", ["", "/sub/path"], ids=["stripped by the proxy", "passed on"])
def test_a_sub_path_is_served_whether_the_proxy_strips_it_or_not(tmp_path, prefix):
    running = launch(FakeRegistry(tmp_path), port=0, root_path="sub/path/")
    try:
        assert running.url.endswith("/sub/path")
        base = running.url.removesuffix("/sub/path") + prefix
        with httpx.Client(base_url=base, trust_env=False, timeout=20) as client:
            assert client.get("/health").status_code == 200
            assert "/sub/path/docs/files/swagger-ui.css" in client.get("/docs").text
            assert client.get("/docs/files/swagger-ui.css").status_code == 200
            assert client.get("/openapi.json").json()["servers"] == [{"url": "/sub/path"}]
            assert client.get("/config").json()["root"].endswith("/sub/path")
            assert client.get("/theme.css").status_code == 200
            assert client.post("/v1/predict", files={"a": make_image()}).status_code == 200
    finally:
        running.close()


def test_no_request_fails_while_the_alias_moves_a_version_is_broken_and_the_registry_goes_away(tmp_path):
    registry = FakeRegistry(tmp_path)
    running = launch(registry, port=0, page=False, poll_seconds=0.02)
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client:
            while not stop.is_set():
                answers.append(client.post("/v1/predict", files={"image": make_image()}))

    def serves(version: int, problem: str) -> bool:
        ready = httpx.get(f"{running.url}/health/ready", trust_env=False).json()
        return ready["version"] == version and problem in ready["problem"]

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(ask) for _ in range(4)]
        try:
            registry.aliases["champion"] = 2
            wait_until(lambda: serves(2, ""), "the promotion is not followed")
            registry.numbers.append(3)
            registry.broken.add(3)
            registry.aliases["champion"] = 3
            wait_until(lambda: serves(2, "points to version 3, which cannot be loaded"), "the problem is not named")
            registry.unreachable = True
            wait_until(lambda: serves(2, "The registry cannot be read"), "the problem is not named")
            registry.aliases["champion"], registry.unreachable = 1, False
            wait_until(lambda: serves(1, ""), "the rollback is not followed")
        finally:
            stop.set()
    running.close()
    assert [client.exception() for client in clients] == [None] * 4
    assert {answer.status_code for answer in answers} == {200}
    rows = [answer.json()["predictions"][0] for answer in answers]
    assert {(row["version"], row["release_id"]) for row in rows} == {(1, "toy1"), (2, "toy2")}
