"""A small threaded HTTP/1.1 server for the stand-in upstreams: bodies, replies, counts.

It reads a body however it is framed, because a gateway may choose chunks where
the client had a length.
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from lifetime import announce, wait_for_end

MAX_BODY_BYTES = 128 * 1024 * 1024


class Recorder:
    """What arrived, so that a test can ask what the gateway really sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._last: dict[str, dict] = {}
        self._marks: dict[str, int] = {}

    def request(self, name: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1
            self._last[name] = {
                "path": path,
                "headers": {key.lower(): value for key, value in headers},
                "body_bytes": len(body),
                "body_sha256": hashlib.sha256(body).hexdigest(),
            }

    def mark(self, name: str) -> int:
        """Counts an event under a name of its own; returns how often it has happened."""
        with self._lock:
            self._marks[name] = self._marks.get(name, 0) + 1
            return self._marks[name]

    def report(self) -> dict:
        with self._lock:
            return {
                "counts": dict(self._counts),
                "last": dict(self._last),
                "marks": dict(self._marks),
            }


class Service(BaseHTTPRequestHandler):
    """One connection. Subclasses fill `routes` with path -> method name."""

    protocol_version = "HTTP/1.1"
    # Without this a small chunk waits for the ack of the one before it (Nagle).
    disable_nagle_algorithm = True
    recorder = Recorder()
    routes: dict[str, str] = {}

    def log_message(self, *_arguments) -> None:
        """Silence: a test run prints its own story."""

    def do_GET(self) -> None:
        self.path_only = urlsplit(self.path).path
        if self.path_only == "/__stats":
            self.reply_json(self.recorder.report())
        elif self.path_only == "/v1/models":
            self.reply_json({"object": "list", "data": []})
        else:
            self.reply_error(404, f"no route {self.path_only}")

    def do_POST(self) -> None:
        self.path_only = urlsplit(self.path).path
        self.body = self.read_body()
        if self.body is None:
            return
        route = self.routes.get(self.path_only.removeprefix("/v1"))
        if route is None:
            self.reply_error(404, f"no route {self.path_only}")
        else:
            getattr(self, route)()

    def read_body(self) -> bytes | None:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            length = int(self.headers.get("content-length", "0"))
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                self.reply_error(413, "body too large")
                return None
            return self.rfile.read(length)
        pieces, total = [], 0
        while size := int(self.rfile.readline(64).split(b";")[0], 16):
            total += size
            if total > MAX_BODY_BYTES:
                self.close_connection = True
                self.reply_error(413, "body too large")
                return None
            pieces.append(self.rfile.read(size))
            self.rfile.readline(8)
        while self.rfile.readline(8192).strip():
            pass
        return b"".join(pieces)

    def record(self, name: str) -> None:
        self.recorder.request(name, self.path, self.headers.items(), self.body)

    def reply(
        self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reply_json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.reply(status, "application/json", json.dumps(value).encode(), headers)

    def reply_error(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        error = {"message": message, "type": kind, "param": None, "code": None}
        self.reply_json({"error": error}, status, headers)

    def start_events(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def event(self, data: object, name: str | None = None) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        head = f"event: {name}\n" if name else ""
        self.chunk(f"{head}data: {text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end_events(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address) -> None:
        # A caller that hangs up is part of the tests, not news.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(handler: type[Service]) -> None:
    """Serves on a free loopback port until it is told to end."""
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    announce({"port": server.server_address[1]})
    wait_for_end()
    server.shutdown()
