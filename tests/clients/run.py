#!/usr/bin/env python3
"""Runs the client tests: one stack per store, every SDK version, Node, side by side.

`run.sh` is the way in. What may run at once does; what a job printed is shown
when it ends. Whatever happens, nothing that was started here stays behind.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import postgres
import stack

HERE = stack.HERE
ROOT = stack.ROOT
JOB_SECONDS = 600
AT_ONCE = 4


@dataclass
class Job:
    """One test process against one stack."""

    name: str
    store: str
    command: list[str]
    cwd: Path = HERE
    passed: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What the whole run has come to so far; an interruption does not lose it."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)


# The jobs that run now, so that an interruption can end them and what they started.
_running: set[subprocess.Popen] = set()


def pytest_job(venv: str, store: str, *arguments: str) -> Job:
    """pytest under one of the venvs; the name says which SDK is in it."""
    sdk = {".venv": "openai 3", ".venv-openai1": "openai 1", ".venv-openai2": "openai 2"}[venv]
    what = "seeds" if "test_seeds.py" in arguments else sdk
    command = [str(ROOT / venv / "bin" / "python"), "-m", "pytest", *arguments]
    return Job(f"{what} on {store}", store, command)


def node_job(store: str) -> Job:
    node = shutil.which("node")
    bundled = ROOT / ".venv-node" / "bin" / "node"
    tests = sorted(str(path) for path in (HERE / "node").glob("*.test.mjs"))
    command = [str(bundled if bundled.exists() else node), "--test", "--test-reporter=tap", *tests]
    return Job(f"node on {store}", store, command, HERE / "node")


def jobs() -> list[Job]:
    # The programs that only an SDK of another age can be asked need one store;
    # whatever touches keys and the ledger needs both. Long ones come first.
    seeds = "--ignore=test_seeds.py"
    sdk = (seeds, "-m", "sdk", "--ignore=test_passthrough.py")
    return [
        pytest_job(".venv", "sqlite", "-n2", seeds),
        pytest_job(".venv", "postgres", "-n2", seeds),
        pytest_job(".venv", "postgres", "-n2", "test_seeds.py"),
        pytest_job(".venv-openai1", "sqlite", *sdk),
        pytest_job(".venv-openai2", "postgres", *sdk),
        node_job("sqlite"),
    ]


def run(job: Job, facts: Path, scratch: Path) -> Job:
    report = scratch / f"{job.name.replace(' ', '-')}.xml"
    command = list(job.command)
    if "pytest" in command:
        command.append(f"--junitxml={report}")
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=job.cwd,
        env=os.environ | {"CLIENTS_FACTS": str(facts), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
        preexec_fn=stack.dies_with_us,
    )
    _running.add(process)
    try:
        printed, _ = process.communicate(timeout=JOB_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        job.failed.append(f"{job.name}: not done after {JOB_SECONDS} s")
    finally:
        _running.discard(process)
    if report.exists():
        count_junit(job, report)
    else:
        count_tap(job, printed)
    if process.returncode != 0 and not job.failed:
        job.failed.append(f"{job.name}: exit status {process.returncode}")
    seconds = time.monotonic() - started
    verdict = "ok" if not job.failed else "FAILED"
    print(
        f"--- {job.name}: {verdict}, {job.passed} passed, {len(job.failed)} failed, "
        f"{seconds:.0f} s",
        flush=True,
    )
    if job.failed:
        print(printed, flush=True)
    return job


def count_junit(job: Job, report: Path) -> None:
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        if bad:
            job.failed.append(f"{job.name}: {case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is None:
            job.passed += 1


def count_tap(job: Job, printed: str) -> None:
    for outcome, name in re.findall(r"^\s*(ok|not ok) \d+ - (.*)$", printed, re.M):
        # A file is reported as a test of its own around those it holds.
        if name.endswith(".test.mjs"):
            continue
        if outcome == "ok":
            job.passed += 1
        else:
            job.failed.append(f"{job.name}: {name}")


def run_all(only: list[str], tally: Tally) -> None:
    """Runs the jobs whose name holds one of `only` (all without)."""
    wanted = [job for job in jobs() if not only or any(word in job.name for word in only)]
    stores = sorted({job.store for job in wanted})

    def ended(_name: str, status: int) -> None:
        # A clean end is a test like any other; an unclean one is raised with its log.
        tally.passed += status == 0

    with contextlib.ExitStack() as open_things:
        scratch = Path(tempfile.mkdtemp(prefix="tollkeeper-clients-run-"))
        open_things.callback(shutil.rmtree, scratch, ignore_errors=True)
        if "postgres" in stores and not os.environ.get("DATABASE_URL"):
            os.environ["DATABASE_URL"] = open_things.enter_context(postgres.throw_away())
        facts = {}
        for store in stores:
            known = open_things.enter_context(stack.running(store, on_exit=ended))
            facts[store] = scratch / f"{store}.json"
            facts[store].write_text(json.dumps(known))
        pool = open_things.enter_context(ThreadPoolExecutor(AT_ONCE))
        for job in pool.map(lambda job: run(job, facts[job.store], scratch), wanted):
            tally.passed += job.passed
            tally.failed += job.failed


def interrupted(*_arguments: object) -> None:
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    raise KeyboardInterrupt


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    started = time.monotonic()
    tally = Tally()
    try:
        run_all(sys.argv[1:], tally)
    except stack.StackError as cause:
        tally.failed.append(str(cause))
    except KeyboardInterrupt:
        tally.failed.append("interrupted")
    for name in tally.failed:
        print(f"FAILED {name}")
    print(f"client tests took {time.monotonic() - started:.0f} s")
    print(f"{tally.passed} passed, {len(tally.failed)} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
