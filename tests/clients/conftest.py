"""What every client test starts from: a running stack, keys of its own, and a way to wait.

$CLIENTS_FACTS names a file with the facts of a stack that is already running
(run.sh starts one and shares it); without it this session starts its own.
"""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from openai import OpenAI

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent.parent / ".venv" / "bin" / "python"
WAIT_SECONDS = 60


def wait_for(what: str, probe: Callable[[], object]) -> object:
    """The first truthy answer of `probe`; fails with `what` when none came in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s in vain: {what}"
        time.sleep(0.05)
    return answer


def parse_time(text: str) -> datetime:
    """An ISO time with a zone, spelled `Z` or `+00:00`."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert moment.tzinfo is not None, f"{text} names its zone"
    return moment


@pytest.fixture(scope="session")
def facts() -> Iterator[SimpleNamespace]:
    if shared := os.environ.get("CLIENTS_FACTS"):
        yield SimpleNamespace(**json.loads(Path(shared).read_text()))
        return
    store = "postgres" if os.environ.get("DATABASE_URL") else "sqlite"
    stack = subprocess.Popen(
        [PYTHON, HERE / "stack.py", "--store", store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = stack.stdout.readline()
    if not line:
        pytest.exit(stack.communicate()[1], returncode=1)
    yield SimpleNamespace(**json.loads(line))
    _, complaint = stack.communicate()
    assert stack.returncode == 0, complaint


@pytest.fixture
def unique() -> str:
    """A name that no other test, run or SDK version uses."""
    return f"t-{uuid.uuid4().hex}"


@pytest.fixture
def http(facts) -> Iterator[httpx.Client]:
    """Plain HTTP to the gateway, no key."""
    with httpx.Client(base_url=facts.base, timeout=60) as client:
        yield client


@pytest.fixture
def master(facts) -> Iterator[httpx.Client]:
    """Plain HTTP to the gateway with the master key."""
    headers = {"authorization": f"Bearer {facts.master_key}"}
    with httpx.Client(base_url=facts.base, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def strict_master(facts) -> Iterator[httpx.Client]:
    """As `master`, to the gateway that has no wildcard."""
    headers = {"authorization": f"Bearer {facts.master_key}"}
    with httpx.Client(base_url=facts.strict, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def new_key(master) -> Callable[..., dict]:
    """Makes a virtual key from the fields given; returns the whole answer."""

    def make(**fields: object) -> dict:
        answer = master.post("/key/generate", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return make


@pytest.fixture
def key(new_key, unique) -> str:
    """A virtual key for every model, owned by the user `unique`."""
    return new_key(models=[], user_id=unique)["key"]


@pytest.fixture
def client(facts, key) -> Iterator[OpenAI]:
    """The SDK on a virtual key, without retries of its own."""
    with OpenAI(base_url=f"{facts.base}/v1", api_key=key, max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture
def direct(facts) -> Callable[[str], OpenAI]:
    """The SDK on an upstream itself, around the gateway."""

    def make(upstream: str) -> OpenAI:
        base = getattr(facts, upstream)
        return OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0, timeout=60)

    return make


@pytest.fixture
def spend_rows(master, unique) -> Callable[..., list[dict]]:
    """Waits until the ledger has exactly `count` rows of the user `unique`."""

    def rows(count: int = 1, user: str = unique) -> list[dict]:
        def probe() -> list[dict] | None:
            answer = master.get("/spend/logs", params={"user_id": user})
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert len(found) <= count, f"more rows than calls: {found}"
            return found if len(found) == count else None

        return wait_for(f"{count} spend rows of {user}", probe)

    return rows


@pytest.fixture
def stats(facts) -> Callable[[], dict]:
    """What the scripted upstream has seen."""
    return lambda: httpx.get(f"{facts.fake}/__stats").raise_for_status().json()


@pytest.fixture(scope="session")
def sound(facts) -> Callable[..., bytes]:
    """Speech made by the upstream itself: the same bytes for the same words."""

    def speak(text: str = "one two three", kind: str = "wav", speed: float = 0.8) -> bytes:
        call = {"model": "tts-1", "input": text, "voice": "alloy", "speed": speed}
        answer = httpx.post(
            f"{facts.audio}/v1/audio/speech", json=call | {"response_format": kind}, timeout=60
        )
        return answer.raise_for_status().content

    return speak
