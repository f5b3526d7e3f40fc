#!/usr/bin/env python3
"""Runs schemathesis over a gateway with a scripted upstream; see run.sh."""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import stack  # noqa: E402

MASTER = "sk-master-key-of-the-schema-tests"
# Bounds of one run.
SECONDS = 60
EXAMPLES = 20
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Upstream(BaseHTTPRequestHandler):
    """Answers every model call as OpenAI would."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            call = json.loads(body)
        except ValueError:
            call = {}
        path = self.path.removeprefix("/v1")
        if path == "/audio/speech":
            return self.answer("audio/mpeg", b"ID3 nothing to hear")
        if isinstance(call, dict) and call.get("stream") is True and path == "/chat/completions":
            chunk = {
                "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE,
            }
            events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            return self.answer("text/event-stream", events.encode())
        return self.answer("application/json", json.dumps(self.good(path)).encode())

    def good(self, path: str) -> dict:
        head = {"id": "x", "created": 1, "model": "m", "usage": USAGE}
        match path:
            case "/chat/completions":
                message = {"role": "assistant", "content": "hello"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                return {**head, "object": "chat.completion", "choices": [choice]}
            case "/completions":
                choice = {"index": 0, "text": "hello", "finish_reason": "stop"}
                return {**head, "object": "text_completion", "choices": [choice]}
            case "/embeddings":
                data = [{"object": "embedding", "embedding": [0.5, 0.25], "index": 0}]
                return {"object": "list", "data": data, "model": "m", "usage": USAGE}
            case _:
                return {**head, "object": "thing", "data": [], "results": [], "output": [], "text": "hello"}

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def config(base: str) -> dict:
    names = ["gpt-4", "embed", "tts-1", "whisper-1", "*"]
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": base,
                    "api_key": "sk-upstream",
                    "input_cost_per_token": 1e-6,
                },
            }
            for name in names
        ],
        "general_settings": {"master_key": MASTER},
    }


def widened(document: dict) -> dict:
    """The plain description tells of few refusals: any 4xx is expected of it, as long as nothing else breaks."""
    for item in document["paths"].values():
        for operation in item.values():
            operation["responses"].setdefault("4XX", {"description": "A refusal"})
            # It says that a stream is a string; schemathesis would hold each event against that.
            for response in operation["responses"].values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    return document


def lacking(plain: dict, own: dict) -> list[str]:
    """What the plain description has and ours has not."""
    missing = []
    for path, item in plain["paths"].items():
        for method, operation in item.items():
            ours = own["paths"].get(path, {}).get(method)
            if ours is None:
                missing.append(f"{method} {path}")
                continue
            known = {(p["name"], p["in"]) for p in ours.get("parameters", [])}
            missing += [f"{method} {path} {p['name']}" for p in operation.get("parameters", [])
                        if (p["name"], p["in"]) not in known]
            missing += [f"{method} {path} {code}" for code in operation["responses"] if code not in ours["responses"]]
            missing += [f"{method} {path} tag {tag}" for tag in operation["tags"] if tag not in ours["tags"]]
            if operation["operationId"] != ours["operationId"]:
                missing.append(f"{method} {path} {operation['operationId']}")
    for kind in ("schemas", "responses", "securitySchemes"):
        for name, shape in plain["components"][kind].items():
            ours = own["components"][kind].get(name)
            if ours is None:
                missing.append(f"{kind} {name}")
                continue
            missing += [f"{name}.{field}" for field in shape.get("properties", {}) if field not in ours["properties"]]
    return missing


def run(name: str, document: dict, base: str, scratch: Path) -> bool:
    described = scratch / f"{name}.json"
    described.write_text(json.dumps(document))
    seen = scratch / f"{name}.har"
    command = [
        Path(sys.executable).parent / "st", "run", described, "--url", base, "--checks", CHECKS,
        "--header", f"Authorization: Bearer {MASTER}", "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--workers", "1", "--seed", "1",
        "--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "20",
        "--continue-on-failure", "--warnings", "off", "--no-color",
        "--report", "har", "--report-har-path", seen,
    ]
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=SECONDS * 3, cwd=scratch,
    )
    if done.returncode != 0:
        print(done.stdout[-20_000:])
    entries = json.loads(seen.read_text())["log"]["entries"]
    undocumented = collections.Counter()
    for entry in entries:
        path = urllib.parse.urlsplit(entry["request"]["url"]).path.removeprefix("/")
        path = path if f"/{path}" in document["paths"] else path.split("/")[0] + "/…"
        told = document["paths"].get(f"/{path}", {}).get(entry["request"]["method"].lower(), {})
        status = entry["response"]["status"]
        if str(status) not in told.get("responses", {str(status): 0}):
            undocumented[f"{entry['request']['method']} /{path} {status}"] += 1
    print(f"{name}: {len(entries)} requests, exit code {done.returncode}")
    for what, count in sorted(undocumented.items()):
        print(f"  not told of: {what} ({count} times)")
    if not entries:
        print(f"{name}: nothing was asked in {SECONDS} s")
    return done.returncode == 0 and bool(entries)


def main() -> int:
    plain = json.loads((HERE / "plain.json").read_text())
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("only", nargs="?", choices=("own", "plain"))
    only = arguments.parse_args().only
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-schema-") as place:
        scratch = Path(place)
        conf = scratch / "config.yaml"
        conf.write_text(json.dumps(config(f"http://127.0.0.1:{upstream.server_port}/v1")))
        kept = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"}
        kept["TOLLKEEPER_DATA_DIR"] = str(scratch / "data")
        log = scratch / "log"
        process, base = stack._start_gateway(stack.default_binary(), conf, log, kept)
        try:
            good = True
            if only != "plain":
                with urllib.request.urlopen(f"{base}/openapi.json", timeout=10) as answer:
                    own = json.load(answer)
                for what in lacking(plain, own):
                    print(f"/openapi.json does not describe {what}")
                    good = False
                good &= run("own", own, base, scratch)
            if only != "own":
                good &= run("plain", widened(plain), base, scratch)
            good &= process.poll() is None
            panics = [line for line in log.read_text(errors="replace").splitlines() if "panicked" in line]
            for line in panics:
                print(f"the gateway's log: {line}")
            return 0 if good and not panics else 1
        finally:
            process.terminate()
            try:
                process.wait(stack.STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
