"""A Langfuse that is dead for ten minutes while calls go on: what that costs them, how much memory it takes, and
whether everything is told once it is back. It is dead in every way in turn: nobody listens, nobody answers, and
somebody answers that it cannot."""

import asyncio
import gzip
import json
import os
import pathlib
import random
import re
import time
import urllib.request
from collections import Counter

from caller import Caller, chat
from stand import Gateway, say

CALLS_PER_SECOND = 50
CALLERS = 32
# With Langfuse well: before, for comparison.
WELL = 30.0
MOST_MEMORY = 64 << 20
# What a question is made of: texts that do not pack much better than real ones.
WORDS = [f"{a}{b}{c}" for a in ("ga", "tol", "kee", "mar", "sil", "ro", "ven", "qui") for b in
         ("", "ri", "no", "stu", "bel", "ka") for c in ("t", "per", "den", "x", "mo", "ling", "ce", "y")]


class Langfuse:
    """Takes spans, remembers whose, and can be dead."""

    def __init__(self):
        self.server = self.port = None
        self.away = ""
        """Empty = well; `silent` = never answers; `unable` = 503."""
        self.spans = Counter()
        self.posts = self.refused = 0
        self.open = set()

    async def up(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port or 0, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]

    async def down(self):
        self.server.close()
        for writer in self.open:
            writer.transport.abort()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        self.open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"\r\ncontent-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if self.away == "silent":
                    self.refused += 1
                    await asyncio.sleep(3600)
                if self.away:
                    self.refused += 1
                    status, answer = b"503 Away", b"{}"
                elif head.startswith(b"get"):
                    status, answer = b"200 OK", b'{"status":"OK","version":"3.100.0"}'
                else:
                    self.posts += 1
                    packed = b"\r\ncontent-encoding: gzip" in head
                    self.spans.update(span_ids(gzip.decompress(body) if packed else body))
                    status, answer = b"200 OK", b""
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(answer), answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()


def fields(message):
    """Number and content of the length-delimited fields of a protobuf message; others are passed over."""
    at, end = 0, len(message)

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < end:
        tag = varint()
        if tag & 7 == 2:
            length = varint()
            yield tag >> 3, message[at:at + length]
            at += length
        elif tag & 7 == 0:
            varint()
        else:
            at += 8


def span_ids(body):
    """Ids of all spans of an export request."""
    for _, resource in (f for f in fields(memoryview(body)) if f[0] == 1):
        for _, scope in (f for f in fields(resource) if f[0] == 2):
            for _, span in (f for f in fields(scope) if f[0] == 2):
                yield next(bytes(value).hex() for number, value in fields(span) if number == 2)


def rss(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


async def call(gateway, key, seconds, rng, first, seen, watch):
    """Calls at an even pace, whatever becomes of each; `watch` is told the memory every second."""
    free = asyncio.Queue()
    for _ in range(CALLERS):
        free.put_nowait(Caller(gateway.port))
    loop, tasks, begun = asyncio.get_running_loop(), set(), time.monotonic()

    async def one(n, caller):
        text = " ".join(rng.choices(WORDS, k=170))
        told = {"n": n, "prompt": 200, "tokens": 300, "text": text}
        seen.append(await caller.call(key, "/v1/chat/completions", chat("watched", told)))
        free.put_nowait(caller)

    for at in range(int(seconds * CALLS_PER_SECOND)):
        await asyncio.sleep(begun + at / CALLS_PER_SECOND - time.monotonic())
        caller = await asyncio.wait_for(free.get(), 60)
        task = loop.create_task(one(first + at, caller))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if at % CALLS_PER_SECOND == 0:
            watch.append(rss(gateway.child.pid))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait().close()


def metric(gateway, name):
    return int(re.search(rf"^tollkeeper_traces_{name} (\d+)$", page(gateway), re.M)[1])


def page(gateway):
    asked = urllib.request.Request(f"http://127.0.0.1:{gateway.port}/metrics",
                                   headers={"authorization": f"Bearer {gateway.stand.master}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return answer.read().decode()


def millis(seen, share):
    times = sorted(s.ended - s.begun for s in seen)
    return times[int((len(times) - 1) * share)] * 1e3


async def run(stand, verdict, seed, minutes):
    rng, langfuse = random.Random(seed), Langfuse()
    await langfuse.up()
    config = {
        "model_list": [stand.deployment("watched")],
        "litellm_settings": {"success_callback": ["langfuse"], "failure_callback": ["langfuse"]},
        "tollkeeper": {"tracing": {"langfuse": {
            "host": f"http://127.0.0.1:{langfuse.port}", "public_key": "pk-soak", "secret_key": "sk-soak"}}},
    }
    gateway = Gateway(stand, "watched", config, stand.postgres.database("watched"))
    with gateway:
        made = await asyncio.to_thread(gateway.ask, "/key/generate", {"models": ["watched"]})
        before, during, well, memory = [], [], [], []
        await call(gateway, made["key"], WELL, rng, 0, before, well)
        say(f"Langfuse is well: {len(before)} calls, {len(langfuse.spans)} spans, {well[-1] >> 20} MiB")
        part, first = minutes * 60 / 3, len(before)
        for away in ("gone", "silent", "unable"):
            langfuse.away = away
            if away == "gone":
                await langfuse.down()
            elif langfuse.server is None or not langfuse.server.is_serving():
                await langfuse.up()
            await call(gateway, made["key"], part, rng, first, during, memory)
            first += int(part * CALLS_PER_SECOND)
            waiting = await asyncio.to_thread(metric, gateway, "queue_bytes")
            say(f"Langfuse is {away}: {first} calls, {memory[-1] >> 20} MiB, {waiting >> 10} KiB wait")
        langfuse.away = ""
        back, asked = time.monotonic(), langfuse.refused
        waited = await asyncio.to_thread(metric, gateway, "queue_bytes")
        deadline = back + 120
        while await asyncio.to_thread(metric, gateway, "queue_bytes") and time.monotonic() < deadline:
            await asyncio.sleep(0.25)
        took = time.monotonic() - back
        shown = await asyncio.to_thread(page, gateway)
        lost = sum(int(n) for n in re.findall(r"^tollkeeper_traces_lost_total\{.*\} (\d+)$", shown, re.M))
        memory.append(rss(gateway.child.pid))
    await langfuse.down()

    roots = Counter(s.headers.get("traceresponse", "--").split("-")[2] for s in before + during)
    told = Counter({root: langfuse.spans[root] for root in roots if langfuse.spans[root]})
    grown = max(memory) - well[-1]
    verdict.figure("calls, of which while Langfuse was dead", f"{len(before) + len(during):,}, {len(during):,}")
    verdict.figure("memory of the process before, at most, afterwards (MiB)",
                   f"{well[-1] / 2**20:.1f}, {max(memory) / 2**20:.1f}, {memory[-1] / 2**20:.1f}")
    verdict.figure("what waited at the end (MiB), and how long it took to be told (s)",
                   f"{waited / 2**20:.1f}, {took:.1f}")
    verdict.figure("requests that were refused or not answered", asked)
    verdict.figure("requests that were taken, spans in them", f"{langfuse.posts:,}, {langfuse.spans.total():,}")
    for name, seen in (("before", before), ("while dead", during)):
        verdict.figure(f"a call {name}: p50, p99, longest (ms)",
                       ", ".join(f"{millis(seen, share):.1f}" for share in (0.5, 0.99, 1)))
    bad = sum(s.status != 200 or not s.whole for s in before + during)
    verdict.promise("no call is lost", not bad, f"{bad} were")
    # What the load itself makes of a busy machine is in both.
    slower = millis(during, 0.5) - millis(before, 0.5)
    verdict.promise("no call is slowed: p50 within 2 ms of before", slower <= 2, f"{slower:.1f} ms")
    verdict.promise("the process grows by 64 MiB at most", grown <= MOST_MEMORY, f"{grown / 2**20:.1f} MiB")
    verdict.promise("every call that fitted is told", len(told) + lost == len(roots) == len(before) + len(during),
                    f"{len(told)} told, {lost} let go of, of {len(roots)}")
    verdict.promise("none is let go of", not lost, f"{lost} are")
    twice = sum(n > 1 for n in langfuse.spans.values())
    verdict.promise("none is told twice", not twice, f"{twice} spans are")


def soak(stand, verdict, seed):
    asyncio.run(run(stand, verdict, seed, float(os.environ.get("SOAK_MINUTES", "10"))))
