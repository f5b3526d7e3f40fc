#!/usr/bin/env python3
"""Runs every expression of contrib/grafana and contrib/prometheus on a real Prometheus; see run.sh."""

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PR_SET_PDEATHSIG = 1
MASTER = "sk-master-key-of-the-observing-tests"
# How long anything may take before the run has failed.
PATIENCE = 40
# Seconds of load that rates and increases look back on.
WINDOW = 10
PRICE = {"input_cost_per_token": 0.00001, "output_cost_per_token": 0.00002}
USAGE = {
    "prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
HEAD = {"id": "x", "created": 1, "model": "m"}


class Failed(Exception):
    pass


class Upstream(BaseHTTPRequestHandler):
    """Answers by the model's name: `up-broken` fails, everything else is well."""

    # Else the kernel may keep all but the first piece of a stream until they are one.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path in ("/v1/traces", "/hook"):
            return self.answer(200, "application/x-protobuf", b"")
        call = json.loads(body)
        if call["model"] == "up-broken":
            error = {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
            return self.answer(500, "application/json", json.dumps(error).encode())
        if call.get("stream"):
            return self.stream()
        text = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        whole = {**HEAD, "object": "chat.completion", "choices": [text], "usage": USAGE}
        if call["model"] == "up-silent":
            del whole["usage"]
        return self.answer(200, "application/json", json.dumps(whole).encode())

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chunk = {**HEAD, "object": "chat.completion.chunk"}
        words = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in "abc"]
        events = [{**chunk, "choices": [word]} for word in words]
        events.append({**chunk, "choices": [], "usage": USAGE})
        for text in [*(json.dumps(event) for event in events), "[DONE]"]:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(0.005)  # A model takes its time; between tokens there is some.
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def default_binary() -> Path:
    """$TOLLKEEPER_BIN, else the newer of the debug and the release build."""
    if named := os.environ.get("TOLLKEEPER_BIN"):
        return Path(named).resolve()
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    built = [path for kind in ("debug", "release") if (path := target / kind / "tollkeeper").exists()]
    if not built:
        raise Failed(f"no tollkeeper under {target}: build it or set TOLLKEEPER_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


def dies_with_us() -> None:
    # If this process is killed outright, its children must not stay behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


_steps = itertools.count(os.getpid() % 200 * 100)


def free_port() -> int:
    """One below those that the kernel gives to outgoing connections, so that none of these takes it; each once."""
    while True:
        port = 10_000 + next(_steps) % 20_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def config(upstream: int, data: Path, port: int, tls_port: int) -> dict:
    """A gateway in which everything that a panel shows can happen."""

    def deployment(name: str, model: str, **more: object) -> dict:
        params = {"model": f"openai/{model}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "sk-none"}
        return {"model_name": name, "litellm_params": {**params, **more}}

    return {
        "model_list": [
            deployment("good", "up-good", **PRICE),
            # The first one fails, steps back, is tried again, and the second one answers.
            deployment("shaky", "up-broken", order=1, cooldown_time=1, **PRICE),
            deployment("shaky", "up-good", order=2, **PRICE),
            deployment("dead", "up-broken", max_retries=1),
            deployment("unpriced", "up-silent"),
            # Its calls go on to another model.
            deployment("tired", "up-broken", **PRICE),
        ],
        "general_settings": {"master_key": MASTER},
        "litellm_settings": {"callbacks": ["prometheus"]},
        "router_settings": {"fallbacks": [{"tired": ["dead", "good"]}]},
        "tollkeeper": {
            "data_dir": str(data),
            "ledger": {"flush_every": "100ms"},
            "listeners": [
                {"address": f"127.0.0.1:{port}"},
                {"address": f"127.0.0.1:{tls_port}", "tls": True},
            ],
            "tls": {"local": {"hosts": ["localhost"]}},
            "tracing": {"otlp": {"endpoint": f"http://127.0.0.1:{upstream}/v1/traces"}, "flush_every": "100ms"},
            "alerts": {"webhook_url": f"http://127.0.0.1:{upstream}/hook"},
        },
    }


@contextlib.contextmanager
def process(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen]:
    with log.open("w") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=log.parent,
            # Nothing of this machine's own: no database, no keys.
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(log.parent)},
            preexec_fn=dies_with_us,
        )
    try:
        until(f"{command[0]} is ready", lambda: child.poll() is not None or ready())
        if child.poll() is not None:
            raise Failed(f"{command[0]} ended: {log.read_text()[-3000:]}")
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def until(what: str, so: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not so():
        if time.monotonic() > deadline:
            raise Failed(f"still not so: {what}")
        time.sleep(0.05)


def ask(url: str, body: object = None, key: str = "") -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def answers(url: str) -> bool:
    try:
        return ask(url)[0] == 200
    except OSError:
        return False


def keys(base: str) -> list[str]:
    """A key of a team with a budget, and one that is refused most of the time."""

    def made(path: str, fields: dict) -> dict:
        status, body = ask(f"{base}{path}", fields, MASTER)
        if status != 200:
            raise Failed(f"{path}: {status} {body!r}")
        return json.loads(body)

    budget = {"max_budget": 1000, "budget_duration": "30d"}
    team = made("/team/new", {"team_alias": "builders", **budget, "soft_budget": 0.001})
    of_team = {"team_id": team["team_id"], "key_alias": "ci", **budget, "soft_budget": 0.001, "tpm_limit": 10_000_000}
    narrow = {"key_alias": "narrow", "rpm_limit": 5, "max_parallel_requests": 2}
    return [made("/key/generate", fields)["key"] for fields in (of_team, narrow)]


def load(base: str, who: list[str], stop: threading.Event) -> None:
    """Calls of all kinds until it is told to stop."""
    calls = [
        ("good", False, who[0]), ("good", True, who[0]), ("shaky", False, who[0]), ("dead", False, MASTER),
        ("unpriced", False, MASTER), ("tired", False, MASTER), ("good", False, who[1]), ("invented", False, MASTER), ("good", True, MASTER),
    ]
    while not stop.is_set():
        for model, stream, key in calls:
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
            ask(f"{base}/v1/chat/completions", body, key)
        stop.wait(0.05)


class Prometheus:
    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str, **query: str) -> dict:
        status, body = ask(f"{self.base}{path}?{urllib.parse.urlencode(query)}")
        found = json.loads(body)
        if status != 200 or found["status"] != "success":
            raise Failed(f"{query or path}: {found.get('error', body)}")
        return found["data"]

    def names(self) -> set[str]:
        return set(self.get("/api/v1/label/__name__/values"))

    def values(self, expression: str) -> list[dict]:
        return self.get("/api/v1/query", query=expression)["result"]

    def shows(self, expression: str) -> bool:
        """Something other than nothing and NaN."""
        return any(result["value"][1] != "NaN" for result in self.values(expression))


def dashboards() -> Iterator[tuple[str, str]]:
    """Where it stands, and the expression as Grafana would send it."""
    for path in sorted((ROOT / "contrib" / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        if not (board["schemaVersion"] and board["__inputs"][0]["name"] == "DS_PROMETHEUS" and board["id"] is None):
            raise Failed(f"{path.name}: inputs, schemaVersion and no id")
        sources = re.findall(r'"uid": "([^"]*)"', path.read_text())
        if not sources or set(sources) != {"${DS_PROMETHEUS}"}:
            raise Failed(f"{path.name} names a data source of its own: {set(sources)}")
        ids = [panel["id"] for panel in board["panels"]]
        if len(ids) != len(set(ids)):
            raise Failed(f"{path.name}: two panels with one id")
        variables = [variable["name"] for variable in board["templating"]["list"]]
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", filled(target["expr"], variables)


def filled(expression: str, variables: list[str]) -> str:
    for name in variables:
        expression = expression.replace(f'"${name}"', '".*"')
    expression = expression.replace("$__rate_interval", f"{WINDOW}s").replace("$__range", f"{WINDOW}s")
    if "$" in expression:
        raise Failed(f"a variable that nobody knows: {expression}")
    return expression


def metrics_in(expression: str) -> set[str]:
    # Labels may look like metrics: what stands in braces, and what is grouped by.
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\b(?:by|on|without|ignoring) \([^)]*\)", "", bare)
    return set(re.findall(r"\b(?:tollkeeper|litellm|process)_\w+|\bup\b", bare))


def lint(page: str) -> None:
    """LiteLLM's own names break Prometheus' rules for names; ours do not."""
    seeds = ("litellm_requests_total", "litellm_request_duration_seconds", "litellm_tokens_total", "litellm_errors_total")

    def ours(line: str) -> bool:
        name = line.split(" ")[2] if line.startswith("#") else re.split(r"[{ ]", line)[0]
        return not name.startswith("litellm_") or name.startswith(seeds)

    text = "\n".join(filter(ours, page.splitlines())) + "\n"
    run = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    if run.returncode:
        raise Failed(f"promtool check metrics: {run.stdout}{run.stderr}")
    whole = subprocess.run(["promtool", "check", "metrics"], input=page, text=True, capture_output=True)
    if "error while linting" in whole.stderr:
        raise Failed(f"promtool cannot read the page: {whole.stderr}")


def check(prometheus: Prometheus, base: str) -> int:
    """Every expression; how many there were."""
    wrong: list[str] = []
    lint(ask(f"{base}/metrics")[1].decode())
    known = prometheus.names()
    checked = 0
    for place, expression in dashboards():
        checked += 1
        try:
            until(expression, lambda e=expression: prometheus.shows(e), 8)
        except Failed as cause:
            wrong.append(f"{place}: {cause}")
        wrong += [f"{place}: there is no {name}" for name in metrics_in(expression) - known]
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        checked += 1
        prometheus.values(rule["query"])
        if rule["health"] == "err":
            wrong.append(f"alert {rule['name']}: {rule['lastError']}")
        missing = metrics_in(rule["query"]) - known
        wrong += [f"alert {rule['name']}: there is no {name}" for name in missing]
        if not rule["annotations"].get("summary") or not rule["labels"].get("severity"):
            wrong.append(f"alert {rule['name']}: no summary or no severity")
    # What this run brings about has to be seen.
    for name in ("TollkeeperDeploymentDown", "TollkeeperModelDown", "TollkeeperManyErrors", "TollkeeperUnpriced"):
        rule = next(rule for rule in rules if rule["name"] == name)
        if not prometheus.values(rule["query"]):
            wrong.append(f"alert {name} does not see what happens")
    # As does what takes its time.
    cools = next(rule for rule in rules if rule["name"] == "TollkeeperDeploymentCools")
    until("alert TollkeeperDeploymentCools sees what happens", lambda: bool(prometheus.values(cools["query"])))
    # And what does not happen, not.
    quiet = ("Down", "LedgerLost", "ConfigRefused", "FilesRunOut")
    quiet += ("TracesLost", "TracesReceiverAway", "AlertsFail", "LogLinesLost")
    for name in (f"Tollkeeper{name}" for name in quiet):
        rule = next(rule for rule in rules if rule["name"] == name)
        if found := prometheus.values(rule["query"]):
            wrong.append(f"alert {name} rings for nothing: {found}")
    if wrong:
        raise Failed("\n  ".join(["", *wrong]))
    return checked


def promtool(*arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    if run.returncode:
        raise Failed(f"promtool {' '.join(arguments)}: {run.stdout}{run.stderr}")


def main() -> int:
    started = time.monotonic()
    contrib = ROOT / "contrib" / "prometheus"
    try:
        promtool("check", "config", str(contrib / "prometheus.yml"))
        promtool("check", "rules", str(contrib / "alerts.yml"))
        with tempfile.TemporaryDirectory(prefix="tk-observe-") as scratch:
            checked = observed(Path(scratch), contrib / "alerts.yml")
    except Failed as cause:
        print(f"observe: FAILED: {cause}", file=sys.stderr)
        return 1
    print(f"observe: {checked} expressions hold, {time.monotonic() - started:.0f} s")
    return 0


def observed(scratch: Path, alerts: Path) -> int:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, tls_port, watcher = free_port(), free_port(), free_port()
    base = f"http://127.0.0.1:{port}"
    (scratch / "config.json").write_text(
        json.dumps(config(upstream.server_address[1], scratch / "data", port, tls_port))
    )
    (scratch / "prometheus.json").write_text(json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(alerts)],
        "scrape_configs": [
            {"job_name": "tollkeeper", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        ],
    }))
    gateway = [str(default_binary()), "-c", str(scratch / "config.json")]
    watching = [
        "prometheus", f"--config.file={scratch / 'prometheus.json'}", f"--storage.tsdb.path={scratch / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{watcher}",
    ]
    ready = f"http://127.0.0.1:{watcher}/-/ready"
    stop = threading.Event()
    with (
        process(gateway, scratch / "gateway.log", lambda: answers(f"{base}/health/readiness")),
        process(watching, scratch / "prometheus.log", lambda: answers(ready)),
    ):
        who = keys(base)
        callers = [threading.Thread(target=load, args=(base, who, stop)) for _ in range(2)]
        try:
            for caller in callers:
                caller.start()
            prometheus = Prometheus(f"http://127.0.0.1:{watcher}")
            # Two scrapes of everything before anything is asked of it.
            until("calls are seen", lambda: prometheus.shows('rate(tollkeeper_requests_total{model="dead"}[10s])'))
            return check(prometheus, base)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
            upstream.shutdown()


if __name__ == "__main__":
    sys.exit(main())
