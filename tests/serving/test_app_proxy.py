"""The server behind Debian's nginx, with the lines of the guide: at a sub-path, with https, with and without a Host."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.project import ROOT
from support.serving import CHROMIUM, FLAGS, in_chromium, wait_until
from support.toys import make_image, settle

from vitcifar.serving.app import Page, launch

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")
pytestmark = pytest.mark.skipif(not NGINX or not shutil.which("openssl"), reason="there is no nginx or no openssl here")
NAME = "photos.example"
PNG = {"Content-Type": "image/png"}

CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} {ssl};
    server_name {name};
    location = /favicon.ico {{ return 204; }}
    {lines}
  }}
}}
"""
SSL = "ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;"


def guide() -> str:
    """The lines for nginx in the guide."""
    (lines,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/serve.md").read_text(), flags=re.DOTALL)
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def serve(published) -> Iterator[Callable[[str], Page]]:
    """`serve(root_path)` starts the server for the host name of the proxy, once for each."""
    from vitcifar.registry.registry import Registry

    started: dict[str, Page] = {}
    with pytest.MonkeyPatch.context() as patch:
        settle(published.folder, patch)

        def start(root_path: str) -> Page:
            if root_path not in started:
                options = {"port": 0, "allowed_hosts": (NAME,), "poll_seconds": 0.2}
                started[root_path] = launch(Registry("toy"), root_path=root_path, **options)
            return started[root_path]

        yield start
        for page in started.values():
            page.close()


@pytest.fixture
def proxy(serve, tmp_path) -> Iterator[Callable[..., str]]:
    """`proxy(lines, https, whole)` starts nginx and returns the URL of the server, which may know it `whole`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(lines: str, https: bool = False, whole: bool = False) -> str:
        port = free_port()
        url = f"{'https' if https else 'http'}://{NAME}:{port}/cifar"
        page = serve(url if whole else "/cifar")
        lines = lines.replace("127.0.0.1:7860", urlsplit(page.url).netloc)
        if https:
            lines = SSL.format(folder=tmp_path) + lines
            command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN={NAME}"
            subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
        config = CONFIG.format(folder=tmp_path, port=port, name=NAME, lines=lines, ssl="ssl" if https else "")
        (tmp_path / "nginx.conf").write_text(config)
        assert NGINX is not None
        started.append(subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]))

        def answers() -> bool:
            assert started[-1].poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, "nginx did not start")
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def in_browser(url: str, digit: Path) -> tuple[str, list[str], list[str]]:
    """Classify an image on the page at a URL: what the page shows, its requests, its errors."""
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS, f"--host-resolver-rules=MAP {NAME} 127.0.0.1", "--ignore-certificate-errors"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)  # the page's files come over TLS, on a machine that may be busy
        requested: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: requested.append(request.url))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"{url}/")
        tab.wait_for_selector(".card.empty")
        tab.locator("input[type=file]").first.set_input_files(str(digit))
        tab.wait_for_selector(".card:not(.empty)")
        text = tab.locator(".card").first.inner_text()
        browser.close()
    return text, requested, errors


def without_host(lines: str) -> str:
    """The lines of somebody who forgets the Host header; nginx then sends that of `proxy_pass`."""
    return re.sub(r".*proxy_set_header Host .*\n", "", lines)


@in_chromium
def test_the_page_classifies_behind_nginx_and_asks_the_proxy_alone(proxy, digit):
    url = proxy(guide(), https=True)
    text, requested, errors = in_browser(url, digit)
    assert errors == []
    assert {urlsplit(one)[:2] for one in requested if one.startswith("http")} == {urlsplit(url)[:2]}
    assert "%" in text


def test_a_server_that_knows_its_whole_url_needs_no_host_header(proxy):
    url = urlsplit(proxy(without_host(guide()), https=True, whole=True))
    address = f"https://127.0.0.1:{url.port}/cifar/config"
    config = httpx.get(address, headers={"Host": url.netloc}, trust_env=False, timeout=20, verify=False)
    assert config.json()["root"] == url.geturl()


@pytest.mark.parametrize("https", [False, True], ids=["http", "https"])
def test_programs_reach_rest_and_its_documentation_behind_nginx(proxy, https):
    url = urlsplit(proxy(guide(), https))
    with httpx.Client(
        base_url=f"{url.scheme}://127.0.0.1:{url.port}/cifar",
        headers={"Host": url.netloc},
        trust_env=False,
        timeout=20,
        verify=False,
    ) as client:
        assert client.post("/v1/predict", files={"image": make_image()}).status_code == 200
        assert client.post("/v1/predict", content=bytes(15 * 2**20), headers=PNG).status_code == 422, "it passes"
        assert "/cifar/docs/files/swagger-ui.css" in client.get("/docs").text
        assert client.get("/config").json()["root"] == f"{url.scheme}://{url.netloc}/cifar"


def test_a_name_that_is_not_allowed_is_refused_behind_nginx_too(proxy):
    url = urlsplit(proxy(guide().replace("$http_host", "other.example")))
    assert httpx.get(f"http://127.0.0.1:{url.port}/cifar/health", trust_env=False).status_code == 400
