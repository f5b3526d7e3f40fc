"""New configs and new binaries while clients are at work, and the end of the process: tests of `tests/it`, run on
the binary that is looked at here. They print their figures."""

import functools
import json
import os
import subprocess
from pathlib import Path

from report import Check
from stand import ROOT, Stand, stack

TESTS = [
    "upgrade::twenty_reloads_and_three_upgrades_under_load_fail_nobody",
    "upgrade::sigterm_under_load_cuts_nothing",
    "upgrade::an_idle_process_leaves_within_a_second",
]
# Each of them gives up by itself long before.
SECONDS = 240


@functools.cache
def build() -> Path:
    """Builds the tests, if need be, and says where they are."""
    command = ["cargo", "test", "--locked", "--test", "it", "--no-run", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"edge: {' '.join(command)} failed")
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    built = [one["executable"] for one in said if one.get("executable") and one["target"]["name"] == "it"]
    if not built:
        raise SystemExit("edge: cargo names no tests that it built")
    return Path(built[-1])


def checks(stand: Stand) -> list[Check]:
    found, failed = [], []
    for test in TESTS:
        # One after the other: each has the machine for itself.
        done = subprocess.run(
            [build(), "--exact", test, "--nocapture"], env=os.environ | {"TOLLKEEPER_BIN": str(stand.binary)},
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=SECONDS, preexec_fn=stack.dies_with_us,
        )
        figures = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("figure | ")]
        if done.returncode or not figures:
            print(done.stdout[-4000:])
            failed.append(test.partition("::")[2])
            continue
        for n, (_, what, figure, bar) in enumerate(figures):
            found.append(Check(what if n == 0 else f"  {what}", figure.strip(), bar.strip(), True))
    return found + [Check(test.replace("_", " "), "it failed", "it passes", False) for test in failed]
