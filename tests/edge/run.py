#!/usr/bin/env python3
"""Looks at the gateway from outside, as scanners, crowds and attackers do; see run.sh.

  run.py          everything, within eight minutes
  run.py short    what needs no tools of others but h2load, within forty seconds
  run.py NAME…    some of: changes tls load rate heads slow schema

$EDGE_CALLS (20000), $EDGE_SLOW (1000) and $EDGE_PROBE_SECONDS (3) make it bearable on a busy machine. Writes
results.md and README.md, both or none, when everything ran to its end, with a release or dist build and all counts;
with EDGE_KEEP=1 whatever the build and the counts.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import changes
import rate
import report
import slow
import tools
from report import Check
from stand import ROOT, Stand

ALL_CALLS, ALL_SLOW = 20_000, 1_000
CALLS = int(os.environ.get("EDGE_CALLS", ALL_CALLS))
SLOW = int(os.environ.get("EDGE_SLOW", ALL_SLOW))
# As many as one address may have: each keeps megabytes in the kernel, on both sides of the gateway.
READERS = min(SLOW, 256)
LOAD_BEFORE = os.getloadavg()[0]


def change(stand: Stand) -> Iterator[list[Check]]:
    yield changes.checks(stand)


def tls(stand: Stand) -> Iterator[list[Check]]:
    with stand.gateway("tls") as gateway:
        yield tools.testssl(stand, gateway)
        yield tools.sslyze(gateway)


def load(stand: Stand, calls: int = CALLS) -> Iterator[list[Check]]:
    with stand.gateway("load") as gateway:
        yield tools.h2load(gateway, calls, http2=True)
        yield tools.h2load(gateway, calls, http2=False)


def limit(stand: Stand) -> Iterator[list[Check]]:
    yield rate.check(stand, calls=600, plateau=5.0, bar=1.0)


def heads(stand: Stand) -> Iterator[list[Check]]:
    # All settings are the defaults.
    yield slow.all_heads(stand, SLOW, bar=60.0)


def attacks(stand: Stand) -> Iterator[list[Check]]:
    """Three attacks at once on one gateway. One address is all that slowhttptest has, so that it may have
    more connections than the default; and slow readers are given up earlier."""
    own = {
        "limits": {"connections": 20_000, "connections_per_address": 5 * SLOW},
        "timeouts": {"write": "20s"},
        "lanes": [{"name": "openai", "paths": ["/*"], "driver": "call", "auth": "open", "filters": ["translate"]}],
    }
    with stand.gateway("attacks", **own) as gateway:
        running = [
            tools.SlowHttpTest(stand, gateway, "-H", "slowhttptest, slow heads", "/health/liveliness", 90, SLOW),
            tools.SlowHttpTest(stand, gateway, "-B", "slowhttptest, slow bodies", "/v1/chat/completions", 90, SLOW,
                               "-f", "application/json", "-s", 8192),
            tools.SlowHttpTest(stand, gateway, "-X", "slowhttptest, slow readers", "/big", 60, READERS,
                               "-w", 512, "-y", 1024, "-n", 5, "-z", 32),
        ]
        # The readers are asked after first: what the gateway counts has to be seen in time.
        for attack in reversed(running):
            yield attack.checks(bar=75.0)


def schema(stand: Stand) -> Iterator[list[Check]]:
    began = time.monotonic()
    env = os.environ | {"TOLLKEEPER_BIN": str(stand.binary)}
    done = subprocess.run([ROOT / "tests" / "schema" / "run.sh"], env=env, capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).strip().splitlines() if line.strip()]
    if done.returncode:
        print(*said[-40:], sep="\n")
    yield [Check("schemathesis: answers that break their description", "0" if done.returncode == 0 else said[-1],
                 "0", done.returncode == 0),
           Check("  in", f"{time.monotonic() - began:.0f} s", "", True)]


WHOLE: dict[str, Callable[[Stand], Iterator[list[Check]]]] = {
    "changes": change, "tls": tls, "load": load, "rate": limit, "heads": heads, "slow": attacks, "schema": schema,
}
SHORT: dict[str, Callable[[Stand], Iterator[list[Check]]]] = {
    "load": lambda stand: load(stand, calls=2_000),
    # Two seconds are 400 calls: a machine that tests are crowded on measures time less finely.
    "rate": lambda stand: iter([rate.check(stand, calls=600, plateau=2.0, bar=5.0)]),
    "heads": lambda stand: iter([slow.all_heads(stand, 300, bar=15.0, timeouts={"header": "4s"})]),
}


def main() -> int:
    names = sys.argv[1:]
    some = SHORT if names == ["short"] else {name: WHOLE[name] for name in names or WHOLE if name in WHOLE}
    if names and names != ["short"] and len(some) < len(names):
        print(f"usage: run.py [short | {' '.join(WHOLE)}]", file=sys.stderr)
        return 64
    if "changes" in some:
        # It may take minutes and measures nothing.
        changes.build()
    began = time.monotonic()
    checks: list[Check] = []
    with Stand() as stand:
        kind = stand.binary.parent.name
        print(f"{stand.binary} ({kind} build)", flush=True)
        for name, part in some.items():
            at = time.monotonic()
            for found in part(stand):
                checks += found
                for one in found:
                    print(one.line(), flush=True)
            print(f"       ({name}: {time.monotonic() - at:.0f} s)", flush=True)
    seconds = time.monotonic() - began
    is_whole = kind in ("release", "dist") and CALLS >= ALL_CALLS and SLOW >= ALL_SLOW
    if not names and (is_whole or os.environ.get("EDGE_KEEP")):
        report.keep(report.markdown(checks, kind, seconds, LOAD_BEFORE))
    barred = [one for one in checks if one.bar]
    failed = [one for one in barred if not one.good]
    for one in failed:
        print(one.line())
    print(f"the edge from outside took {seconds:.0f} s\n{len(barred) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not barred else 0


if __name__ == "__main__":
    sys.exit(main())
