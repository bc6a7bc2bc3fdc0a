"""Health, metrics, documentation, the sub-path, and the server without its page."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.project import ROOT, loaded_modules
from support.serving import FakeRegistry
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
    assert list(row) == list(shown) and list(row["timing"]) == list(shown["timing"])


@pytest.mark.parametrize("path", ["/health", "/v1/predict", "/docs"])
def test_every_response_has_the_security_headers_and_foreign_hosts_are_rejected(client, path):
    response = client.get(path, headers={"Host": "evil.example"})
    assert response.status_code == 400 and response.headers["x-frame-options"] == "DENY"


def test_without_the_page_gradio_and_torch_are_not_imported(tmp_path):
    loaded = loaded_modules(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\nfrom support.serving import FakeRegistry\n"
        "from vitcifar.serving.app import launch\n"
        "launch(FakeRegistry(Path('.')), port=0, page=False).close()",
        tmp_path,
    )
    assert not {"gradio", "torch", "torchvision"} & loaded


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
