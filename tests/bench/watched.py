"""What it costs to be watched: CPU per call of the governed gateway with each call told to OpenTelemetry, told to
Langfuse with all that was said, and with a line in the log, beside the same without."""

import contextlib
import json
import os
import re
import statistics
import time
import urllib.request

import load
from processes import PATIENCE
from receiver import Receiver

# No line is left out, and by default none is written: who writes them is asked to, while it runs.
LOG = "  log: {requests: all, most_per_second: 10000000, format: json}\n"
MUTE = {"filter": "info,tollkeeper::request=off"}
AS_CONFIGURED = {"level": "configured"}

# Limit in us of CPU per call, and how it is told.
AIMS = {
    "traced": (5, "a call told to OpenTelemetry adds ≤ 5 µs CPU to a governed one"),
    "captured": (15, "a call told to Langfuse with 1 KB of question and answer adds ≤ 15 µs CPU"),
    "logged": (2, "a call's line in the log adds ≤ 2 µs CPU"),
}


class Watched:
    """A governed gateway with a database and a Redis of its own: no other one has a part in its figures."""

    def __init__(self, stand, running, name, tracing=""):
        redis = running.enter_context(stand.start_redis(f"redis-{name}"))
        self.stand, self.name = stand, name
        self.gateway = running.enter_context(stand.gateway(
            name, base="governed", more=LOG + tracing, database=stand.postgres.database(name), redis=redis))
        self.key = stand.key(self.gateway)
        self.gateway.first_answer(load.request(load.body(), self.key))

    def log(self, wish):
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway.port}/admin/v1/log", json.dumps(wish).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.stand.master}"})
        urllib.request.urlopen(asked, timeout=10).close()

    def told(self):
        """Calls that receivers have taken, and such that were let go of."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway.port}/metrics", headers={"Authorization": f"Bearer {self.stand.master}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            page = answer.read().decode()

        def total(name):
            return sum(int(n) for n in re.findall(rf"^tollkeeper_traces_{name}_total{{.*}} (\d+)$", page, re.M))
        return total("sent"), total("lost")

    def run(self, seconds, connections, lines=False):
        """CPU per call, everything that is done behind the answers included."""
        gateway = self.gateway
        self.log(AS_CONFIGURED if lines else MUTE)
        os.truncate(gateway.log.name, 0)
        before, told = gateway.cpu_when_quiet(), self.told()
        figures = load.wrk(gateway.port, load.body(), seconds, connections, self.stand.dir / "wrk.json", self.key)
        wanted = figures["calls"] if lines or self.name != "quiet" else 0
        # The last batch waits to be filled, and packing it takes too little CPU to be seen by a look at that.
        deadline = time.monotonic() + PATIENCE
        while True:
            sent, lost = (now - then for now, then in zip(self.told(), told))
            if lines or sent + lost >= wanted or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        cpu = gateway.cpu_when_quiet() - before
        if lines:
            with open(gateway.log.name, "rb") as log:
                sent = sum(b'"msg":"request"' in line for line in log)
        if sent < wanted or lost:
            raise SystemExit(f"{self.name}: {figures['calls']} calls, {sent} told, {lost} lost")
        return {"calls": figures["calls"], "rate": figures["calls"] / figures["seconds"],
                "cpu_us": cpu / figures["calls"] * 1e6}


def measure(stand, rounds, seconds, connections, say):
    """In turn, round by round: what is added is a difference within one round, where the machine was the same."""
    found = []
    with contextlib.ExitStack() as running:
        otlp, langfuse = running.enter_context(Receiver()), running.enter_context(Receiver())
        setups = {
            "quiet": Watched(stand, running, "quiet"),
            "traced": Watched(
                stand, running, "traced", f'  tracing: {{otlp: {{endpoint: "{otlp.host}/v1/traces"}}}}\n'),
            "captured": Watched(
                stand, running, "captured",
                f'  tracing: {{langfuse: {{host: "{langfuse.host}", public_key: pk-bench, secret_key: sk-bench}}}}\n'),
        }
        turns = [(name, name, False) for name in setups] + [("logged", "quiet", True)]
        for one in setups.values():
            one.run(1, connections)
        for at in range(rounds):
            # Nobody is always first.
            order = turns[at % len(turns):] + turns[:at % len(turns)]
            figures = {title: setups[name].run(seconds, connections, lines) for title, name, lines in order}
            found.append(figures)
            say(f"watched, round {at + 1}: " + ", ".join(
                f"{name} {figures[name]['rate']:.0f}/s {figures[name]['cpu_us']:.1f} us" for name, _, _ in turns))
        for name, receiver in (("traced", otlp), ("captured", langfuse)):
            calls = setups[name].told()[0]
            found[-1][name] |= {"bytes_per_call": receiver.bytes / calls, "calls_per_post": calls / receiver.posts}
    return {"rounds": found}


def added(results, name):
    """What it adds to a call, us of CPU: in each round against the same round's quiet one, the median of all."""
    return statistics.median(one[name]["cpu_us"] - one["quiet"]["cpu_us"] for one in results["rounds"])


def aims(results):
    return [{"aim": text, "measured": round(added(results, name), 2), "unit": "µs",
             "met": added(results, name) <= limit} for name, (limit, text) in AIMS.items()]


def text(results):
    """For the page."""
    def median(name):
        return statistics.median(one[name]["cpu_us"] for one in results["rounds"])
    last = results["rounds"][-1]
    return (
        f"Being watched: without traces and lines a governed call takes {median('quiet'):.1f} µs of CPU, told to "
        f"OpenTelemetry {median('traced'):.1f} µs ({last['traced']['bytes_per_call']:,.0f} bytes each, "
        f"{last['traced']['calls_per_post']:,.0f} calls a request), told to Langfuse with question and answer "
        f"{median('captured'):.1f} µs ({last['captured']['bytes_per_call']:,.0f} bytes each), with a line in the log "
        f"{median('logged'):.1f} µs; until everything is told, {len(results['rounds'])} rounds in turn.\n"
    )


def show(results):
    """For a terminal."""
    for name in ("quiet", *AIMS):
        own = [one[name]["cpu_us"] for one in results["rounds"]]
        more = [one[name]["cpu_us"] - one["quiet"]["cpu_us"] for one in results["rounds"]]
        print(f"{name:9} {statistics.median(own):6.1f} us per call, added {statistics.median(more):5.2f} us "
              f"(from {min(more):.2f} to {max(more):.2f}), {results['rounds'][-1][name]}")
    for one in aims(results):
        print(f"{'met   ' if one['met'] else 'MISSED'} {one['aim']}: {one['measured']:,} {one['unit']}")
