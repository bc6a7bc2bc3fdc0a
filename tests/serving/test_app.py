"""Ports, the health endpoint, the life of the server, and the addresses that it opens."""

import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from socket import AF_INET
from urllib.parse import urlsplit

import gradio_client
import psutil
import pytest
from support.project import ROOT, loaded_modules
from support.serving import health, request_status, wait_until
from support.toys import make_image

from vitcifar.errors import ServingError
from vitcifar.serving.app import bind, is_loopback, launch, read_passwords, split_root
from vitcifar.serving.middleware import MAX_REQUEST_BYTES
from vitcifar.serving.page.gradio_setup import private_folder


def test_a_port_in_use_is_one_sentence_with_the_way_out(colours):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"Port {port} on 127\.0\.0\.1 is in use: type --port {port + 1}"):
            launch(colours, port=port)
    assert colours.pulled == [], "no version is loaded for a page that cannot start"


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_one_sentence(host):
    with pytest.raises(ServingError, match="is not an address of this machine"):
        bind(host, 7860)


def test_port_0_takes_a_free_one():
    with bind("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 1023


@pytest.mark.parametrize(
    ("root_path", "origin", "path"),
    [
        ("", "", ""),
        ("/cifar/", "", "/cifar"),
        ("//cifar", "", "/cifar"),
        ("HTTPS://photos.example:8443/a/b/", "https://photos.example:8443", "/a/b"),
        ("http://photos.example", "http://photos.example", ""),
    ],
)
def test_the_root_path_is_a_sub_path_or_a_whole_url(root_path, origin, path):
    assert split_root(root_path) == (origin, path)


@pytest.mark.parametrize("root_path", ["ftp://photos.example/a", "https:///a", "http://[photos/a"])
def test_a_root_path_that_is_no_url_of_a_web_server_is_one_sentence(colours, root_path):
    with pytest.raises(ServingError, match=r"(in --root-path is no URL of a web server|is no host name): type"):
        launch(colours, port=0, root_path=root_path)
    assert colours.pulled == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.7"])
def test_an_address_beyond_this_machine_needs_a_password_or_consent(colours, host):
    with pytest.raises(ServingError, match=r"other machines without a password: add --auth FILE.* or --public yes"):
        launch(colours, host=host, port=0)
    assert colours.pulled == []


@pytest.mark.parametrize(("host", "loopback"), [("localhost", True), ("127.0.0.9", True), ("::1", True), ("", False)])
def test_loopback_is_this_machine_alone(host, loopback):
    assert is_loopback(host) is loopback


def test_a_public_page_says_every_address_that_is_open(colours):
    running = launch(colours, host="0.0.0.0", port=0, public=True)
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == AF_INET}
    try:
        assert {urlsplit(url).hostname for url in running.urls} == own
        for url in running.urls:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
                assert response.status == 200
    finally:
        running.close()


READ = ["config", "gradio_api/info", "gradio_api/queue/data?session_hash=a", "gradio_api/file=/etc/hostname"]
SEND = [f"gradio_api/{route}" for route in ("run/predict", "call/predict", "queue/join", "upload")]


def test_with_a_password_nothing_is_answered_before_the_login(colours, tmp_path):
    (tmp_path / "passwords").write_text("ann:right:one\n\nben:other\n")
    running = launch(colours, host="0.0.0.0", port=0, passwords=read_passwords(tmp_path / "passwords"))
    try:
        for route in READ + SEND:
            body = b'{"data": []}' if route in SEND else None
            assert request_status(running, f"/{route}", {"Content-Type": "application/json"}, body) == 401, route
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for wrong in (b"username=ann&password=other", b"username=eve&password=", b"username=ann&password="):
            assert request_status(running, "/login", form, wrong) in (400, 422)
        assert request_status(running, "/login", form, b"username=ann&password=right:one") == 200
        client = gradio_client.Client(running.url, auth=("ben", "other"), verbose=False, analytics_enabled=False)
        assert "/predict" in str(client.view_api(return_format="dict"))
    finally:
        running.close()


@pytest.mark.parametrize("content", ["", "ann\n", ":secret\n", "ann:\n", None])
def test_a_file_without_passwords_is_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "passwords").write_text(content)
    with pytest.raises(ServingError, match=r"passwords.*NAME:PASSWORD"):
        read_passwords(tmp_path / "passwords")


def test_health_names_the_version_that_serves(page):
    response = health(page)
    assert (response["status"], response["model"], response["version"]) == ("ok", "toy", 1)
    assert (response["spec"], response["aliases"], response["problem"]) == ("champion", ["champion"], "")


def test_every_response_has_the_security_headers(page):
    with urllib.request.urlopen(page.url, timeout=10) as response:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-frame-options"] == "DENY" and response.headers["x-content-type-options"] == "nosniff"


def test_a_foreign_host_header_is_rejected(page):
    assert request_status(page, "/", {"Host": "evil.example"}) == 400
    assert request_status(page, "/health", {"Host": "localhost:1"}) == 200


@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/upload"])
def test_a_request_that_is_too_large_is_rejected(page, path):
    assert request_status(page, path, {"Content-Length": str(MAX_REQUEST_BYTES + 1)}, b"{") == 413
    chunks = (b"x" * 2**20 for _ in range(MAX_REQUEST_BYTES // 2**20 + 2))
    assert request_status(page, path, {"Transfer-Encoding": "chunked"}, chunks) == 413


LARGE = 20 * 10**6  # bytes
FORM = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
DATA_URL = b'{"data": [{"url": "data:image/png;base64,', b'"}, ""]}'
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "headers", "before", "after"),
    [
        ("/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=b"}, FORM, b"\r\n--b--\r\n"),
        ("/v1/predict", {"Content-Type": "multipart/form-data; boundary=b"}, FORM, b"\r\n--b--\r\n"),
        ("/gradio_api/call/predict", JSON_TYPE, *DATA_URL),
        ("/gradio_api/run/predict", JSON_TYPE, *DATA_URL),
        ("/v1/predict", JSON_TYPE, b'{"images": ["', b'"]}'),
        ("/v1/predict", {"Content-Type": "image/png"}, b"", b""),
        ("/invocations", JSON_TYPE, b'{"inputs": ["', b'"]}'),
    ],
)
def test_an_image_of_20_megabytes_is_413_and_nothing_is_kept_on_disk(page, path, headers, before, after, chunked):
    def kept() -> set[Path]:
        folders = [private_folder(), *Path(tempfile.gettempdir()).glob("tmp*")]
        return {file for folder in folders for file in (folder, *folder.rglob("*"))}

    there = kept()
    body = before + b"A" * LARGE + after
    parts = (body[i : i + 2**20] for i in range(0, len(body), 2**20)) if chunked else body
    headers = headers | ({"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))})
    assert request_status(page, path, headers, parts) == 413
    assert kept() == there


def test_the_limit_of_a_request_is_an_option(colours):
    running = launch(colours, port=0, max_request=2**20)
    try:
        assert request_status(running, "/v1/predict", {"Content-Type": "image/png"}, b"x" * (2**20 + 1)) == 413
        assert request_status(running, "/v1/predict", {"Content-Type": "image/png"}, b"x" * 2**20) == 422
    finally:
        running.close()


def test_a_closed_page_stops_responding_and_frees_its_port(colours):
    running = launch(colours, port=0)
    assert health(running)["model"] == "colours"
    running.close()
    with pytest.raises(OSError):
        health(running)
    bind("127.0.0.1", urlsplit(running.url).port or 0).close()


PROXIES = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "socks5h://127.0.0.1:9", "ALL_PROXY": "socks://x"}


def test_a_proxy_in_the_environment_does_not_stop_the_page(colours, monkeypatch):
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "[::1]")
    running = launch(colours, port=0)
    assert request_status(running, "/health", {}) == 200
    assert PROXIES.items() <= os.environ.items(), "a store on a server is still reached through its proxy"
    running.close()


def test_sigterm_stops_the_page_and_deletes_the_uploads(published, tmp_path):
    code = (
        "import threading\nfrom vitcifar import tracking\nfrom vitcifar.registry.registry import Registry\n"
        "from vitcifar.serving.app import launch\n"
        f"tracking.connect({published.uri!r})\npage = launch(Registry('toy'), port=0)\n"
        "threading.Timer(0.5, lambda: print(page.url, flush=True)).start()\npage.wait()\n"
    )
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "VITCIFAR_CACHE": str(published.folder / "cache"),
        **PROXIES,  # Gradio reads them when it is imported
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("vitcifar-page-*"))
        process.terminate()
        assert process.wait(30) == 0
    assert not list(tmp_path.glob("vitcifar-page-*"))


SERVING = """
import sys
import mlflow, numpy
import vitcifar.serving.engines
from vitcifar.registry.registry import Registry
from vitcifar.serving.app import launch
from vitcifar.serving.loaded_model import open_version, predict_files

assert next(predict_files(open_version(Registry("toy"), "champion"), ["red.png"]))["label"]
launch(Registry("toy"), port=0, page=False).close()
model = mlflow.pyfunc.load_model("models:/toy@champion")
assert model.predict({"image": numpy.zeros((2, 9, 8, 3), "uint8")})[1]["version"] == 1
assert "gradio" not in sys.modules, "without the page"
launch(Registry("toy"), port=0).close()
assert "gradio" in sys.modules
"""


def test_nothing_that_serves_loads_torch_and_only_the_page_loads_gradio(registry, tmp_path):
    """One process predicts from files, as an engine's worker, behind REST, through MLflow, and with the page."""
    (tmp_path / "red.png").write_bytes(make_image("red"))
    assert not {"torch", "torchvision"} & loaded_modules(SERVING, tmp_path)


def test_gradio_has_no_route_that_the_page_does_not_need(page):
    """Among others, some forward requests to other machines, record sessions, or write code."""
    closed = ["proxy=http://127.0.0.1/", "vibe-edit", "run-history/connect", "process_recording"]
    closed += ["monitoring", "profiling/traces", "stream/a/b/c/playlist.m3u8", "deep_link", "custom_component/a/b/c/d"]
    for path in [*(f"/gradio_api/{route}" for route in closed), "/monitoring", "/mcp", "/dev/reload", "/pwa_icon"]:
        for body in (None, b"{}"):
            assert request_status(page, path, {"Content-Type": "application/json"}, body) in (404, 405), path


def test_a_foreign_web_page_reads_nothing_and_sends_nothing(page):
    for path, body in (("/config", None), ("/gradio_api/upload", b"x"), ("/v1/predict", b"x"), ("/login", b"x")):
        for origin in ("http://evil.example", "null", "http://localhost:3000"):
            assert request_status(page, path, {"Origin": origin}, body) == 403


def test_an_event_that_does_not_exist_is_one_line_of_the_log(page, caplog):
    assert request_status(page, "/gradio_api/call/predict/forged", {}) == 200  # and then the answer is broken off
    wait_until(lambda: "An answer was broken off: 404" in caplog.text, "nothing was logged")
    assert "Traceback" not in caplog.text
