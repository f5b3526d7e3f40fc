"""What the checks run against: gateways with TLS of the local authority, and an upstream behind them."""

import contextlib
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import stack  # noqa: E402

# The slowest attack holds this many connections, and each has a file here and one in the gateway.
LEAST_FILES = 16_384


@dataclass
class Gateway:
    """A running gateway."""

    name: str
    process: subprocess.Popen
    port: int
    secure_port: int
    """With TLS; certificates are for `localhost` and 127.0.0.1."""
    ca: Path
    """What a client has to trust."""
    key: str
    """A virtual key for every model."""

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secure(self) -> str:
        return f"https://localhost:{self.secure_port}"

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, of those that hold `label`."""
        with urllib.request.urlopen(f"{self.plain}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}\b", line) and label in line)


class Stand:
    """Gateways with the settings that a check asks for; all are gone afterwards."""

    def __init__(self) -> None:
        self.binary = stack.default_binary()
        self.open_things = contextlib.ExitStack()
        self.scratch = Path(self.open_things.enter_context(tempfile.TemporaryDirectory(prefix="tollkeeper-edge-")))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
            raise SystemExit(f"edge: {hard} files may be open, {LEAST_FILES} are needed: raise `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.upstream = self._upstream()

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *exc: object) -> None:
        self.open_things.__exit__(*exc)

    def _upstream(self) -> int:
        process = subprocess.Popen(
            [sys.executable, HERE / "upstream.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=stack.dies_with_us,
        )

        def end() -> None:
            process.stdin.close()
            stack._wait(process)

        self.open_things.callback(end)
        return int(process.stdout.readline())

    @contextlib.contextmanager
    def gateway(self, name: str, **own: object) -> Iterator[Gateway]:
        """A gateway with `own` below `tollkeeper:`; what is not named has its default."""
        home = self.scratch / name
        home.mkdir()
        master, secure_port = f"sk-{secrets.token_hex(16)}", stack.free_port()
        upstream = f"http://127.0.0.1:{self.upstream}"
        config = {
            "model_list": [{
                "model_name": "mock",
                "litellm_params": {"model": "openai/mock", "api_base": f"{upstream}/v1", "api_key": "sk-upstream"},
            }],
            "general_settings": {
                "master_key": "os.environ/LITELLM_MASTER_KEY",
                "pass_through_endpoints": [
                    {"path": "/big", "target": f"{upstream}/big", "include_subpath": True, "auth": False},
                ],
            },
            "tollkeeper": {
                # The command line gives the first one its port.
                "listeners": [{"address": "127.0.0.1:4000"}, {"address": f"127.0.0.1:{secure_port}", "tls": True}],
                "tls": {"local": {"hosts": ["localhost", "127.0.0.1"]}, "hsts": {"max_age": "365d"}},
                **own,
            },
        }
        # JSON is YAML.
        conf = home / "config.yaml"
        conf.write_text(json.dumps(config, indent=1))
        kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "TOLLKEEPER_MASTER_KEY")}
        kept |= {"LITELLM_MASTER_KEY": master, "TOLLKEEPER_DATA_DIR": str(home / "data")}
        (home / "data").mkdir(mode=0o700)
        process, base = stack._start_gateway(self.binary, conf, home / "log", kept)
        try:
            ca = home / "ca.pem"
            ca.write_text(stack._authority(self.binary, conf, kept))
            asked = urllib.request.Request(
                f"{base}/key/generate", b"{}",
                {"content-type": "application/json", "authorization": f"Bearer {master}"},
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                key = json.load(answer)["key"]
            yield Gateway(name, process, int(base.rsplit(":", 1)[1]), secure_port, ca, key)
            if process.poll() is not None:
                raise SystemExit(f"edge: gateway {name} ended with {process.returncode}: {(home / 'log').read_text()[-2000:]}")
        finally:
            process.terminate()
            stack._wait(process)
