#!/usr/bin/env python3
"""Starts everything a client test talks to: the upstreams, and Tollkeeper in front of them.

Usable as a module (`with running(...) as facts`) or as a command that prints the
facts as one JSON line, waits for SIGTERM or the end of its standard input, takes
everything down and exits 0 only if each Tollkeeper exited 0.
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
# Longer than either takes on a busy machine.
READY_SECONDS = 60
STOP_SECONDS = 60
PRICE_IN, PRICE_OUT = 0.000001, 0.000002
UPSTREAM_KEY = "sk-upstream-known-to-the-gateway-only"
PR_SET_PDEATHSIG = 1


class StackError(Exception):
    """Something did not start or did not stop; the message says what it printed."""


def default_binary() -> Path:
    """$TOLLKEEPER_BIN, else the newer of the debug and the release build."""
    if named := os.environ.get("TOLLKEEPER_BIN"):
        return Path(named).resolve()
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    built = [target / kind / "tollkeeper" for kind in ("debug", "release")]
    built = [path for path in built if path.exists()]
    if not built:
        raise StackError(f"no tollkeeper under {target}: build it or set TOLLKEEPER_BIN")
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


# --- upstreams ---

UPSTREAMS = {
    "llama": ["llama.py"],
    "embedder": ["llama.py", "--embedding"],
    "audio": ["audio.py"],
    "fake": ["fake_openai.py"],
    "ws": ["ws_echo.py"],
}


@contextlib.contextmanager
def upstreams(scratch: Path) -> Iterator[dict[str, str]]:
    """Each upstream's name -> its base URL without /v1."""
    running: dict[str, subprocess.Popen] = {}
    try:
        for name, (script, *arguments) in UPSTREAMS.items():
            running[name] = subprocess.Popen(
                [PYTHON, HERE / "upstream" / script, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(scratch / f"{name}.log").open("w"),
                preexec_fn=dies_with_us,
            )
        urls = {}
        for name, process in running.items():
            line = process.stdout.readline()
            if not line:
                log = (scratch / f"{name}.log").read_text()
                raise StackError(f"upstream {name} did not start:\n{log[-2000:]}")
            urls[name] = f"http://127.0.0.1:{json.loads(line)['port']}"
        yield urls
    finally:
        for process in running.values():
            process.stdin.close()
        for process in running.values():
            _wait(process)


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -signal.SIGKILL


# --- configuration ---


def _deployment(name: str, model: str, base: str, **more: object) -> dict:
    info = more.pop("model_info", None)
    params = {"model": model, "api_base": f"{base}/v1", "api_key": UPSTREAM_KEY, **more}
    entry: dict = {"model_name": name, "litellm_params": params}
    if info:
        entry["model_info"] = info
    return entry


def config(urls: dict[str, str], wildcard: bool, secure_port: int) -> dict:
    """What an operator of LiteLLM would write for these upstreams, and a listener with TLS.

    Without `wildcard` unknown names have nowhere to go, the second deployment of
    `spread` is alive while its first is not, and calls to `fake-slow` time out.
    """
    llama, fake, audio = urls["llama"], urls["fake"], urls["audio"]
    priced = {"input_cost_per_token": PRICE_IN, "output_cost_per_token": PRICE_OUT}
    models = [
        _deployment("qwen3-30b-a3b", "openai/qwen3-30b-a3b", llama, **priced),
        _deployment("qwen2.5-14b-instruct", "openai/qwen2.5-14b-instruct", llama),
        # Aliases, as LiteLLM users write them: a second entry for the same model.
        _deployment("gpt-4", "openai/qwen3-30b-a3b", llama, **priced),
        _deployment("gpt-4-turbo", "openai/qwen3-30b-a3b", llama),
        _deployment("gpt-3.5-turbo", "openai/qwen2.5-14b-instruct", llama),
        _deployment("tiny-embedding", "openai/tiny-embedding", urls["embedder"]),
        _deployment("fake-embedding", "openai/fake-embedding", fake),
        _deployment("moderation", "openai/omni-moderation-latest", fake),
        _deployment("image", "openai/gpt-image-1", fake),
        _deployment("rerank", "openai/rerank-1", fake),
        _deployment("responder", "openai/fake-responder", fake),
    ]
    # The multi-provider guide's names, each to a stand-in of that provider.
    models += [
        _deployment("openai-gpt41", "gpt-4.1", fake),
        _deployment("openai-gpt35", "gpt-3.5-turbo", fake),
        _deployment("mistral-large-3", "mistral/mistral-large-latest", fake),
        _deployment("openai-embedding-large", "text-embedding-3-large", fake),
        _deployment("mistral-embedding", "mistral/mistral-embed", fake),
        _deployment("openai-whisper", "whisper-1", audio),
    ]
    behaviours = ["chat", "gated", "drop", "endless", "slow"]
    models += [_deployment(f"fake-{name}", f"openai/fake-{name}", fake) for name in behaviours]
    # The SDK's own retries are what these two are for, so the gateway adds none.
    models += [
        _deployment(name, f"openai/{name}", fake, max_retries=0)
        for name in ("fake-flaky", "fake-status-500", "fake-status-400", "fake-status-429")
    ]
    # A name the caller uses and the upstream does not know: the splice shows.
    models.append(_deployment("renamed", "openai/fake-chat", fake))
    speech = {"model_info": {"mode": "audio_speech"}}
    hearing = {"model_info": {"mode": "audio_transcription"}}
    for name in ("tts-1", "tts-1-hd", "styletts2"):
        models.append(_deployment(name, f"openai/{name}", audio, **speech))
    for name in ("whisper-1", "whisper-large-v3"):
        models.append(_deployment(name, f"openai/{name}", audio, **hearing))
    if wildcard:
        models.append(_deployment("*", "openai/*", llama))
    else:
        for entry in models:
            if entry["model_name"] == "fake-slow":
                entry["litellm_params"]["timeout"] = 0.5
        dead = f"http://127.0.0.1:{free_port()}"
        models.append(_deployment("spread", "openai/fake-chat", dead))
        models.append(_deployment("spread", "openai/fake-chat", fake))
        models.append(_deployment("unreachable", "openai/fake-chat", dead, max_retries=0))

    def passed(path: str, target: str, auth: bool = False) -> dict:
        return {"path": path, "target": target, "include_subpath": True, "auth": auth}

    return {
        "model_list": models,
        "litellm_settings": {"drop_params": True, "request_timeout": 120},
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "pass_through_endpoints": [
                passed("/tts", audio),
                passed("/styletts2", audio),
                passed("/stt", audio),
                passed("/raw", fake),
                passed("/echo", urls["ws"]),
                passed("/guarded", fake, auth=True),
            ],
        },
        "tollkeeper": {
            "listeners": [
                # The command line gives the first one its port.
                {"address": "127.0.0.1:4000"},
                {"address": f"127.0.0.1:{secure_port}", "tls": True},
            ],
            "tls": {"local": {"hosts": ["localhost", "127.0.0.1"]}},
        },
    }


# --- the gateway ---


def _start_gateway(
    binary: Path, conf: Path, log: Path, environment: dict[str, str]
) -> tuple[subprocess.Popen, str]:
    port = free_port()
    process = subprocess.Popen(
        [binary, "--config", conf, "--host", "127.0.0.1", "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env=environment,
        preexec_fn=dies_with_us,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, base, log)
    except StackError:
        process.kill()
        process.wait()
        raise
    return process, base


def _wait_until_ready(process: subprocess.Popen, base: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    last = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = f"it exited with {process.returncode}"
            break
        try:
            with urllib.request.urlopen(f"{base}/health/readiness", timeout=10) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as refusal:
            last = f"/health/readiness says {refusal.code}"
        except OSError as cause:
            last = str(cause)
        time.sleep(0.02)
    raise StackError(f"tollkeeper did not get ready ({last}):\n{log.read_text()[-3000:]}")


def _authority(binary: Path, conf: Path, environment: dict[str, str]) -> str:
    """The certificate that clients have to trust, as an operator gets it."""
    command = [binary, "tls", "ca", "--config", conf]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    if told.returncode != 0:
        raise StackError(f"tls ca exited with {told.returncode}:\n{told.stderr[-2000:]}")
    return told.stdout


@contextlib.contextmanager
def running(
    store: str, binary: Path | None = None, on_exit: Callable[[str, int], None] | None = None
) -> Iterator[dict]:
    """The facts a test needs. `store` is `sqlite`, or `postgres` to use $DATABASE_URL.

    `on_exit` hears how each gateway ended: its name and its exit status.
    """
    binary = binary or default_binary()
    scratch = Path(tempfile.mkdtemp(prefix="tollkeeper-clients-"))
    master_key = f"sk-master-{secrets.token_hex(16)}"
    gateways: dict[str, tuple[subprocess.Popen, str]] = {}
    try:
        with upstreams(scratch) as urls:
            for name, wildcard in (("main", True), ("strict", False)):
                data = scratch / f"data-{name}"
                data.mkdir()
                conf = scratch / f"{name}.yaml"
                secure_port = free_port()
                text = yaml.safe_dump(config(urls, wildcard, secure_port), sort_keys=False)
                conf.write_text(text)
                environment = {
                    key: value
                    for key, value in os.environ.items()
                    if key not in ("DATABASE_URL", "TOLLKEEPER_MASTER_KEY")
                }
                environment["LITELLM_MASTER_KEY"] = master_key
                environment["TOLLKEEPER_DATA_DIR"] = str(data)
                if store == "postgres" and name == "main":
                    environment["DATABASE_URL"] = os.environ["DATABASE_URL"]
                log = scratch / f"{name}.log"
                gateways[name] = _start_gateway(binary, conf, log, environment)
                if name == "main":
                    secure = f"https://localhost:{secure_port}"
                    ca = scratch / "ca.pem"
                    ca.write_text(_authority(binary, conf, environment))
            yield {
                "base": gateways["main"][1],
                "strict": gateways["strict"][1],
                "https": secure,
                "ca": str(ca),
                "master_key": master_key,
                "upstream_key": UPSTREAM_KEY,
                "price_in": PRICE_IN,
                "price_out": PRICE_OUT,
                "store": store,
                "log": str(scratch / "main.log"),
                **urls,
            }
            for process, _ in gateways.values():
                process.send_signal(signal.SIGTERM)
            complaints = []
            for name, (process, _) in list(gateways.items()):
                status = _wait(process)
                del gateways[name]
                if on_exit:
                    on_exit(name, status)
                if status != 0:
                    log = (scratch / f"{name}.log").read_text(errors="replace")
                    complaints.append(
                        f"tollkeeper ({name}, {store}): {status} on SIGTERM:\n{log[-3000:]}"
                    )
            if complaints:
                raise StackError("\n".join(complaints))
    finally:
        for process, _ in gateways.values():
            process.kill()
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    arguments.add_argument(
        "--bin", type=Path, help="default: $TOLLKEEPER_BIN, else the newer build"
    )
    options = arguments.parse_args()
    sys.path.insert(0, str(HERE / "upstream"))
    from lifetime import announce, wait_for_end

    try:
        with running(options.store, options.bin) as facts:
            announce(facts)
            wait_for_end()
    except StackError as cause:
        print(f"stack: {cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
