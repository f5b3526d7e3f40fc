#!/usr/bin/env python3
"""Compares what the gateway tells Langfuse with what Langfuse's own SDK does.

Both send to a receiver here. Every attribute that the gateway writes must be one
that the SDK knows, in the SDK's type; every attribute that the SDK exports for a
generation must be there from the gateway as well. The events for older servers
are read by an SDK that still has their schema.
"""

import contextlib
import gzip
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).resolve().parent.parent.parent
LEGACY = ROOT / ".venv-langfuse-legacy" / "bin" / "python"
WAIT_SECONDS = 60

# What the SDK writes of itself, and what only a caller of it can know.
SDKS_OWN = {"langfuse.internal.as_root", "langfuse.trace.public"}


class Receiver(BaseHTTPRequestHandler):
    """A Langfuse that keeps what it is sent, and a model that always answers."""

    protocol_version = "HTTP/1.1"
    version = "3.100.0"
    taken: list[tuple[str, dict[str, str], bytes]] = []

    def do_GET(self) -> None:
        self.reply({"status": "OK", "version": self.version})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/v1/"):
            self.reply(
                {
                    "id": "c1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
                }
            )
            return
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        Receiver.taken.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.path.endswith("/ingestion"):
            ids = [event["id"] for event in json.loads(body)["batch"]]
            self.reply({"successes": [{"id": i, "status": 201} for i in ids], "errors": []}, 207)
        else:
            self.reply({})

    def reply(self, body: dict, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


_steps = itertools.count(os.getpid() % 200 * 100)


def free_port() -> int:
    """One below those that the kernel gives to outgoing connections, so that none of these takes it; each once."""
    while True:
        port = 10_000 + next(_steps) % 20_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(what: str, so) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not so():
        if time.monotonic() > deadline:
            raise SystemExit(f"it did not happen: {what}")
        time.sleep(0.02)


def spans() -> list:
    found = []
    for path, _, body in Receiver.taken:
        if path.endswith("/v1/traces"):
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            found += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    return found


def attributes(all_spans: list) -> dict[str, str]:
    """Names, and the type of the value: `string_value`, `array_value`…"""
    return {a.key: a.value.WhichOneof("value") for span in all_spans for a in span.attributes}


def by_sdk(host: str) -> tuple[dict[str, str], dict[str, str]]:
    """What the SDK exports for one generation with everything in it; and all names that it knows."""
    from langfuse import Langfuse, propagate_attributes
    from langfuse._client.attributes import LangfuseOtelSpanAttributes as Names

    client = Langfuse(public_key="pk", secret_key="sk", host=host, environment="test", release="r1")
    with propagate_attributes(
        user_id="u", session_id="s", tags=["a"], version="v1", trace_name="t", metadata={"customer": "c"}
    ):
        with client.start_as_current_observation(name="root", as_type="span", input="i", output="o"):
            with client.start_as_current_observation(
                name="step",
                as_type="generation",
                model="m",
                model_parameters={"temperature": 0.5},
                input={"messages": []},
                output={"role": "assistant"},
                usage_details={"input": 1, "output": 2, "total": 3},
                cost_details={"total": 0.1},
                metadata={"k": "v"},
                level="ERROR",
                status_message="why",
            ) as step:
                from datetime import datetime, timezone

                step.update(completion_start_time=datetime.now(timezone.utc))
    client.flush()
    until("the SDK has sent its spans", lambda: len(spans()) >= 2)
    exported = attributes(spans())
    known = {value: "" for name, value in vars(Names).items() if not name.startswith("_")}
    client.shutdown()
    return exported, known


def gateway(host: str, calls) -> None:
    """Runs a gateway that tells `host`, makes the calls, and waits until it has told of them."""
    binary = os.environ.get("TOLLKEEPER_BIN")
    if not binary:
        target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
        built = [p for p in (target / "debug/tollkeeper", target / "release/tollkeeper") if p.exists()]
        if not built:
            raise SystemExit(f"no tollkeeper under {target}: build it or set TOLLKEEPER_BIN")
        binary = str(max(built, key=lambda p: p.stat().st_mtime))
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        deployment = {
            "model": "openai/m",
            "api_base": f"{host}/v1",
            "api_key": "x",
            "input_cost_per_token": 0.001,
            "output_cost_per_token": 0.001,
        }
        dead = {"model": "openai/m", "api_base": "http://127.0.0.1:1/v1", "api_key": "x"}
        config = {
            "model_list": [
                {"model_name": "good", "litellm_params": deployment},
                {"model_name": "dead", "litellm_params": dead},
            ],
            "general_settings": {"master_key": "sk-master-key-of-the-tests"},
            "litellm_settings": {"callbacks": ["langfuse"]},
        }
        path = Path(scratch) / "config.yaml"
        path.write_text(json.dumps(config))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": scratch,
            "TOLLKEEPER_DATA_DIR": f"{scratch}/data",
            "LANGFUSE_PUBLIC_KEY": "pk",
            "LANGFUSE_SECRET_KEY": "sk",
            "LANGFUSE_HOST": host,
            "LANGFUSE_TRACING_ENVIRONMENT": "test",
            "LANGFUSE_RELEASE": "r1",
        }
        log = open(Path(scratch) / "log", "w+b")
        process = subprocess.Popen(
            [binary, "-c", str(path), "--host", "127.0.0.1", "--port", str(port)], env=env, stderr=log, cwd=scratch
        )
        try:

            def ready() -> bool:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the gateway ended: {log.read().decode()}")
                try:
                    return urllib.request.urlopen(f"http://127.0.0.1:{port}/health/readiness", timeout=10).status == 200
                except OSError:
                    return False

            until("the gateway is ready", ready)
            for body in calls:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json.dumps(body).encode(),
                    {"authorization": "Bearer sk-master-key-of-the-tests", "content-type": "application/json"},
                )
                try:
                    urllib.request.urlopen(request, timeout=WAIT_SECONDS).read()
                except urllib.error.HTTPError as refused:
                    refused.read()
        finally:
            # On its way out it tells what is left.
            process.send_signal(signal.SIGTERM)
            if process.wait(WAIT_SECONDS) != 0:
                raise SystemExit("the gateway did not end well")
            log.close()


CALL = {
    "model": "good",
    "temperature": 0.5,
    "messages": [{"role": "user", "content": "Hi"}],
    "user": "u",
    "metadata": {
        "session_id": "s",
        "tags": ["a"],
        "version": "v1",
        "trace_name": "t",
        "trace_metadata": {"customer": "c"},
        "prompt": {"name": "p", "version": 2},
    },
}


def without_keys(names: dict[str, str]) -> dict[str, str]:
    """Metadata has keys of everybody's own: only that there is some is compared."""
    out = {}
    for name, kind in names.items():
        for prefix in ("langfuse.observation.metadata", "langfuse.trace.metadata"):
            if name.startswith(prefix):
                name = prefix
                kind = ""
        out[name] = kind
    return out


def main() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    wrong = []

    exported, known = by_sdk(host)
    exported, known = without_keys(exported), without_keys(known)
    basic = {taken[1].get("authorization") for taken in Receiver.taken}
    Receiver.taken.clear()

    streamed = {**CALL, "stream": True}
    gateway(host, [CALL, streamed, {**CALL, "model": "dead"}])
    ours = without_keys(attributes(spans()))
    if {taken[1].get("authorization") for taken in Receiver.taken} != basic:
        wrong.append("the SDK presents itself in another way")
    if {taken[0] for taken in Receiver.taken} != {"/api/public/otel/v1/traces"}:
        wrong.append(f"sent to {[taken[0] for taken in Receiver.taken]}")
    for name, kind in sorted(ours.items()):
        if name not in known and name not in exported:
            wrong.append(f"the SDK knows no {name}")
        elif kind and exported.get(name, kind) != kind:
            wrong.append(f"{name} is a {kind}; the SDK writes a {exported[name]}")
    for name in sorted(exported):
        if name.startswith(("langfuse.", "user.", "session.")) and name not in ours and name not in SDKS_OWN:
            wrong.append(f"the SDK writes {name}, and the gateway does not")
    print(f"{len(ours)} attributes of the gateway's, {len(exported)} of the SDK's, {len(known)} that it knows")

    Receiver.taken.clear()
    Receiver.version = "3.21.0"
    gateway(host, [CALL, {**CALL, "model": "dead"}])
    batches = [body.decode() for path, _, body in Receiver.taken if path == "/api/public/ingestion"]
    read = subprocess.run(
        [LEGACY, ROOT / "tests/traces/legacy.py"], input=json.dumps(batches), text=True, capture_output=True
    )
    print(read.stdout, end="")
    if read.returncode != 0:
        wrong.append(f"events: {read.stdout}{read.stderr}")

    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
