#!/usr/bin/env python3
"""Measures Tollkeeper beside a bare Pingora proxy, in one run and on one machine, so that ratios hold
where absolute figures move.

  run.py --bin DIR            three rounds, medians; writes results.json and results.md beside this file
  run.py --bin DIR quick      one short round, nothing written
  run.py --bin DIR edge       what the edge costs alone, nothing written; BENCH_ROUNDS and BENCH_SECONDS change how long,
                              --before FILE measures a tollkeeper from before a change beside it
  run.py --bin DIR watched    what traces and the log's lines cost alone, nothing written; as many rounds
  run.py --bin DIR profile    where the governed gateway spends its time (perf, else callgrind)

DIR holds `tollkeeper` and `examples/{mock_upstream,bare_proxy}`. Python's standard library, wrk, and a
Postgres server are all it needs. `scripts/bench.sh` builds, installs and calls this.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass

import edge
import load
import profiler
import report
import watched
from processes import Postgres, Process, free_port

CONNECTIONS = 64
CHUNKS = 50
# One a second, so that thousands of streams can be open before the first one ends.
SLOW_CHUNKS = 30
MODEL = """
model_list:
  - model_name: mock
    litellm_params: &upstream
      model: openai/mock
      api_base: http://127.0.0.1:{mock}/v1
      api_key: sk-of-the-upstream
      input_cost_per_token: 0.0000005
      output_cost_per_token: 0.0000015
  - model_name: slow
    litellm_params:
      <<: *upstream
      model: openai/slow
"""
# What a call costs when nobody asks for a key, counts, or writes anything down.
OPEN = """
tollkeeper:
  data_dir: {data}
  metrics: {{enabled: false}}
  lanes:
    - name: openai
      paths: [/*]
      driver: call
      auth: open
      filters: [translate]
"""
# Everything on: key, budgets and limits shared through Redis, a row for each call in Postgres, metrics.
GOVERNED = """
general_settings:
  database_url: {database}
tollkeeper:
  data_dir: {data}
  redis: {{url: "redis://127.0.0.1:{redis}"}}
"""


@dataclass
class Plan:
    rounds: int
    seconds: int
    held: int
    crowd: int
    """Streams held to the end; 0 = none."""
    watched: int
    """Rounds of what being watched costs: more than others, for these differences are small."""


FULL = Plan(rounds=3, seconds=6, held=2000, crowd=5000, watched=5)
QUICK = Plan(rounds=1, seconds=3, held=500, crowd=0, watched=1)


class Stand:
    """Everything that runs during a benchmark, on free ports, and gone afterwards."""

    def __init__(self, binaries, directory):
        self.bin, self.dir = binaries, directory
        self.master = "sk-" + secrets.token_hex(16)
        self.stack = contextlib.ExitStack()
        self.mock = None
        self.postgres = None

    def __enter__(self):
        self.postgres = self.stack.enter_context(Postgres(self.dir / "postgres"))
        self.database = self.postgres.database("bench")
        self.redis = self.stack.enter_context(self.start_redis("redis"))
        self.mock = self._start("mock_upstream", lambda port: [
            self.bin / "examples/mock_upstream", f"127.0.0.1:{port}", CHUNKS, SLOW_CHUNKS, 1000])
        self.stack.enter_context(self.mock)
        self.mock.first_answer(load.request(load.body()))
        return self

    def __exit__(self, *exc):
        return self.stack.__exit__(*exc)

    def _start(self, name, command, env=None, farewell=signal.SIGTERM):
        port = free_port()
        return Process(name, command(port), port, self.dir / f"{name}.log", env, farewell)

    def start_redis(self, name):
        return self._start(name, lambda port: [
            "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])

    def bare(self, *certificate):
        """`certificate` is the file of one and that of its key: then it speaks TLS."""
        return self._start("bare", lambda port: [
            self.bin / "examples/bare_proxy", f"127.0.0.1:{port}", f"127.0.0.1:{self.mock.port}", *certificate],
            farewell=signal.SIGINT)

    def gateway(self, name, wrapper=(), more="", binary=None, base=None, database=None, redis=None):
        """As its `base` is, else by its name: `governed`, else as `open`, with `more` below `tollkeeper:`; started
        with a data directory that stays from start to start."""
        if "  limits:" not in more:
            # The load comes from one address.
            more += "  limits: {connections_per_address: 20000}\n"
        text = MODEL + (GOVERNED if (base or name) == "governed" else OPEN) + more.replace("{", "{{").replace("}", "}}")
        data = self.dir / f"data-{name}"
        data.mkdir(mode=0o700, exist_ok=True)
        config = self.dir / f"{name}.yaml"
        config.write_text(text.format(mock=self.mock.port, data=data, database=database or self.database,
                                      redis=(redis or self.redis).port))
        return self._start(name, lambda port: [
            *wrapper, binary or self.bin / "tollkeeper", "--config", config, "--host", "127.0.0.1", "--port", port],
            {"TOLLKEEPER_MASTER_KEY": self.master})

    def proxy(self, name):
        return self.bare() if name == "bare" else self.gateway(name)

    def key(self, gateway):
        """A virtual key with a budget and limits that last."""
        # The gateway serves before its database is there, and makes no keys until it is.
        gateway.first_answer(b"GET /health/readiness HTTP/1.1\r\nHost: bench\r\n\r\n")
        asked = urllib.request.Request(
            f"http://127.0.0.1:{gateway.port}/key/generate",
            json.dumps({"models": ["mock", "slow"], "max_budget": 1_000_000, "rpm_limit": 100_000_000,
                        "tpm_limit": 100_000_000_000, "max_parallel_requests": 100_000,
                        "key_alias": f"bench-{secrets.token_hex(4)}"}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.master}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)["key"]

    def rows(self):
        """Calls that the ledger in Postgres has."""
        return int(self.postgres.sql("bench", "SELECT count(*) FROM tk_ledger WHERE status = 'success'"))


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure_memory(stand, plan, name):
    """Start, idle, and held streams, each of a process that did nothing before."""
    figures = {}
    key = None
    if name == "governed":
        # The tables are made and the key is known from here on: what counts is an ordinary start.
        with stand.gateway(name) as first:
            key = stand.key(first)
    starts = []
    for _ in range(3):
        with stand.proxy(name) as proxy:
            starts.append(proxy.first_answer(load.request(load.body(), key)))
    figures["start_ms"] = sorted(starts)[1]
    slow = load.request(load.body("slow", stream=True), key)
    with stand.proxy(name) as proxy:
        proxy.first_answer(load.request(load.body(), key))
        time.sleep(2)
        idle = proxy.rss()
        figures["idle_bytes"] = idle
        held = asyncio.run(load.hold(proxy.port, slow, plan.held, SLOW_CHUNKS, proxy.rss, finish=False))
        if held["alive"] < plan.held:
            raise SystemExit(f"{name}: only {held['alive']} of {plan.held} streams are held")
        figures["held"] = plan.held
        figures["bytes_per_stream"] = (held["measured"] - idle) / plan.held
    if plan.crowd:
        with stand.proxy(name) as proxy:
            proxy.first_answer(load.request(load.body(), key))
            crowd = asyncio.run(load.hold(proxy.port, slow, plan.crowd, SLOW_CHUNKS, proxy.rss, finish=True))
            figures["crowd"] = {k: crowd[k] for k in ("asked", "alive", "whole", "lost", "events")}
            figures["crowd"]["rss_bytes"] = crowd["measured"]
    return figures


def measure_load(stand, plan, name, process, port, key):
    """One round: calls, bursts, and calls one at a time. CPU is that of the proxy alone."""
    def go(text, connections, seconds):
        before = process.cpu_when_quiet() if process else 0
        figures = load.wrk(port, text, seconds, connections, stand.dir / "wrk.json", key)
        figures["rate"] = figures["calls"] / figures["seconds"]
        if process:
            figures["cpu_us"] = (process.cpu_when_quiet() - before) / figures["calls"] * 1e6
        say(f"{name:9} {connections:3} connections: {figures['rate']:8.0f}/s  p50 {figures['p50_us']} us"
            f"  p99 {figures['p99_us']} us  CPU {figures.get('cpu_us', 0):.1f} us")
        return figures

    call, burst = load.body(), load.body(stream=True)
    return {
        "call": go(call, CONNECTIONS, plan.seconds),
        "burst": go(burst, CONNECTIONS, plan.seconds),
        "alone": go(call, 1, max(2, plan.seconds // 2)),
    }


def measure(stand, plan, before=None):
    results = {"memory": {}, "rounds": []}
    for name in ("bare", "open", "governed"):
        say(f"{name}: start and memory")
        results["memory"][name] = measure_memory(stand, plan, name)
    with contextlib.ExitStack() as running:
        proxies = {name: running.enter_context(stand.proxy(name)) for name in ("bare", "open", "governed")}
        key = stand.key(proxies["governed"])
        targets = [("direct", None, stand.mock.port, None)]
        for name, proxy in proxies.items():
            targets.append((name, proxy, proxy.port, key if name == "governed" else None))
            proxy.first_answer(load.request(load.body(), targets[-1][3]))
        for _, _, port, secret in targets:
            load.wrk(port, load.body(), 1, CONNECTIONS, stand.dir / "wrk.json", secret)
        proxies["governed"].cpu_when_quiet()
        rows, counted = stand.rows(), 0
        for at in range(plan.rounds):
            say(f"round {at + 1} of {plan.rounds}")
            figures = {name: measure_load(stand, plan, name, proxy, port, secret)
                       for name, proxy, port, secret in targets}
            counted += sum(figures["governed"][kind]["calls"] for kind in figures["governed"])
            results["rounds"].append(figures)
        proxies["governed"].cpu_when_quiet()
        results["ledger"] = {"answered": counted, "rows": stand.rows() - rows}
    results["edge"] = edge.measure(stand, plan, CONNECTIONS, say, before)
    results["watched"] = watched.measure(stand, plan.watched, plan.seconds, CONNECTIONS, say)
    return results


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--bin", required=True, type=pathlib.Path)
    ask.add_argument("--profile", default="", help="the cargo profile the programs were built with")
    ask.add_argument("--before", type=pathlib.Path, help="a tollkeeper from before a change, for what the edge costs")
    ask.add_argument("mode", nargs="?", choices=["full", "quick", "edge", "watched", "profile"], default="full")
    options = ask.parse_args()
    # Two sockets per stream in the proxy, one each here and in the mock.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tollkeeper-bench-"))
    # Postgres runs as its own user and has to get to its own directory.
    directory.chmod(0o711)
    done = False
    try:
        with Stand(options.bin.resolve(), directory) as stand:
            if options.mode == "profile":
                profiler.profile(stand)
            elif options.mode in ("edge", "watched"):
                rounds, seconds = int(os.environ.get("BENCH_ROUNDS", "5")), int(os.environ.get("BENCH_SECONDS", "6"))
                if options.mode == "watched":
                    watched.show(watched.measure(stand, rounds, seconds, CONNECTIONS, say))
                else:
                    plan = Plan(rounds, seconds, 0, 0, 0)
                    report.show_edge(edge.measure(stand, plan, CONNECTIONS, say, options.before))
            else:
                plan = FULL if options.mode == "full" else QUICK
                results = measure(stand, plan, options.before)
                report.write(results, plan, options.profile, keep=options.mode == "full")
        done = True
    finally:
        if done:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            say(f"logs are in {directory}")


if __name__ == "__main__":
    main()
