"""What stands while it is soaked: Postgres and Redis that can be killed and frozen, gateways that can be killed,
the upstream that counts. All on free ports, all gone afterwards."""

import contextlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "bench"))

import processes  # noqa: E402
from processes import PATIENCE  # noqa: E402

# Nano-dollars a token; of an embedding, what is read.
PRICE_IN, PRICE_OUT = 1_000, 2_000
# What a call against a budget costs: three tokens of the answer at this price.
DEAR_OUT = 1_000_000
PRICED = {"input_cost_per_token": PRICE_IN / 1e9, "output_cost_per_token": PRICE_OUT / 1e9}


def quiet_port():
    """A port below those that the kernel gives to outgoing connections, so that it is still free after a kill."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class Postgres(processes.Postgres):
    """A server with the settings it is installed with: what it has acknowledged survives a crash."""

    def _everybody(self):
        """The one who starts backends, then the backends."""
        pids = [self.child.pid]
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.child.pid:
                    pids.append(int(stat.parent.name))
        return pids

    def crash(self):
        """Immediate shutdown: no connection is ended properly, recovery follows."""
        self.child.send_signal(signal.SIGQUIT)
        self.child.wait(30)

    def freeze(self):
        self.child.send_signal(signal.SIGSTOP)
        self._signal(signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

    def _signal(self, what):
        for pid in self._everybody():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def __exit__(self, *exc):
        if self.child and self.child.poll() is None:
            self.thaw()
        super().__exit__(*exc)

    def rows(self, database, query):
        """The rows of a query, as dictionaries."""
        return [json.loads(line) for line in
                self.sql(database, f"SELECT row_to_json(r) FROM ({query}) r").splitlines()]


class Redis:
    """A server that keeps nothing."""

    def __init__(self, directory):
        self.port, self.dir, self.process = quiet_port(), directory, None

    def __enter__(self):
        self.process = processes.Process(
            "redis-server",
            ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", self.dir],
            self.port, self.dir / "redis.log")
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline:
                raise SystemExit("redis-server does not start: apt-get install redis-server")
            time.sleep(0.02)
        return self

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.sendall(b"PING\r\n")
                return s.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self):
        self.process.child.kill()
        self.process.child.wait()

    def __exit__(self, *_):
        self.process.end()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/"


class Gateway:
    """The built binary with a config and a data directory of its own; stays where it is over restarts."""

    def __init__(self, stand, name, config, database, redis=None, data=None):
        self.stand, self.name, self.port = stand, name, quiet_port()
        self.dir = stand.dir / name
        self.dir.mkdir()
        self.data = data or self.dir / "data"
        self.config = self.dir / "config.yaml"
        # JSON is YAML.
        # All callers are on this machine, and share its address.
        config.setdefault("tollkeeper", {}).setdefault("limits", {})["connections_per_address"] = 20_000
        self.config.write_text(json.dumps(config))
        self.env = {
            "PATH": os.environ.get("PATH", ""), "HOME": str(self.dir), "DATABASE_URL": database,
            "TOLLKEEPER_MASTER_KEY": stand.master, "TOLLKEEPER_DATA_DIR": str(self.data),
        } | ({"REDIS_URL": redis.url} if redis else {})
        self.log = self.dir / "log"
        self.child = None

    def __enter__(self):
        self.up()
        self.ready()
        return self

    def __exit__(self, *_):
        if self.child and self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def up(self):
        """Starts it and does not wait for it."""
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [self.stand.binary, "--config", self.config, "--host", "127.0.0.1", "--port", str(self.port)],
                env=self.env, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self):
        """As a service manager does; its exit status."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(120)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/readiness", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ready(self):
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not get ready, see {self.log}")
            time.sleep(0.02)

    def ask(self, path, body, key=None):
        """A call of the management API; its answer."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", None if body is None else json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {key or self.stand.master}"})
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            raise SystemExit(f"{path}: {refusal.code} {refusal.read().decode()}") from None

    def command(self, *args, **env):
        """Runs the binary with the gateway's own settings."""
        return subprocess.run([self.stand.binary, *args], env=self.env | env, cwd=self.dir,
                              capture_output=True, text=True)


class Stand:
    def __init__(self, binary, directory):
        self.binary, self.dir = binary, directory
        self.master = "sk-" + secrets.token_hex(16)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.postgres = self.stack.enter_context(Postgres(self.dir / "postgres"))
        self.upstream = subprocess.Popen([sys.executable, HERE / "upstream.py"], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)
        self.stack.callback(self._end_upstream)
        self.upstream_port = int(self.upstream.stdout.readline())
        return self

    def __exit__(self, *exc):
        return self.stack.__exit__(*exc)

    def _end_upstream(self):
        self.upstream.stdin.close()
        self.upstream.wait()

    def redis(self):
        return Redis(self.dir)

    def counted(self):
        """What the upstream has booked: number of the call -> its tries."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.upstream_port}/counted", timeout=60) as answer:
            return {int(n): tries for n, tries in json.load(answer).items()}

    def deployment(self, name, at="only", prices=PRICED, **more):
        """One more deployment of `name`; `at` is what the upstream calls it."""
        base = f"http://127.0.0.1:{self.upstream_port}/{at}/v1"
        return {"model_name": name, "litellm_params": {
            "model": f"openai/up-{name}", "api_base": base, "api_key": "sk-of-the-upstream", **prices, **more}}


class Verdict:
    """Promises, kept or broken, and the figures they were judged by."""

    def __init__(self):
        self.broken = []

    def figure(self, name, value):
        print(f"  {name:<58} {value}", flush=True)

    def promise(self, text, kept, why=""):
        print(f"  {'kept  ' if kept else 'BROKEN'} {text}{'' if kept else f': {why}'}", flush=True)
        if not kept:
            self.broken.append(text)


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
