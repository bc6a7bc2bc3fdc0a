"""A reverse proxy before a server, which can be told to fail as servers and proxies do."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("refuse", "hang", "garbage", "413", "429", "500", "503")


class FaultyProxy(ThreadingHTTPServer):
    """`fault` is "" or one of FAULTS; `uri` is where it answers."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target.removeprefix("http://")
        self.fault = ""
        self.upload_seconds = 0.0
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_) -> None:
        """A client that gave up waiting is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault
        if fault == "refuse":
            self.close_connection = True
            self.connection.close()
        elif fault == "hang":
            while self.server.fault == "hang":
                time.sleep(0.05)
            self.close_connection = True
        elif fault:
            self.reply(200 if fault == "garbage" else int(fault), [], b"<html>not what you asked for</html>")
        else:
            if self.command == "PUT":  # of a file
                time.sleep(self.server.upload_seconds)
            upstream = http.client.HTTPConnection(self.server.target, timeout=60)
            headers = {**self.headers, "Host": self.server.target}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            self.reply(response.status, response.getheaders(), response.read())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Quiet."""
