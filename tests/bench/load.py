"""The load: wrk for calls and bursts, and our own generator for thousands of streams that are held."""

import asyncio
import json
import os
import pathlib
import subprocess
import time

HERE = pathlib.Path(__file__).parent

QUESTION = "Tell me about the gate and the toll and the keeper of both. " * 14


def body(model="mock", stream=False):
    """A chat call of about 1 KB."""
    call = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": QUESTION.strip()},
        ],
        "max_tokens": 64,
        "temperature": 0.2,
    }
    if stream:
        call["stream"] = True
    return json.dumps(call, separators=(",", ":"))


def request(text, key=None, path="/v1/chat/completions"):
    """The bytes of a POST."""
    secret = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{secret}"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


def wrk(port, text, seconds, connections, out, key=None):
    """Calls as fast as they are answered, over connections that stay. The figures of the run."""
    subprocess.run(
        ["wrk", "-t", "1" if connections == 1 else "2", "-c", str(connections), "-d", f"{seconds}s",
         "--timeout", "30s", "-s", HERE / "post.lua", f"http://127.0.0.1:{port}/v1/chat/completions"],
        env={**os.environ, "BENCH_BODY": text, "BENCH_KEY": key or "", "BENCH_OUT": str(out)},
        stdout=subprocess.DEVNULL, check=True,
    )
    figures = json.loads(pathlib.Path(out).read_text())
    if figures["bad_status"] or figures["socket_errors"]:
        raise SystemExit(f"port {port}: calls failed: {figures}")
    return figures


class _Stream(asyncio.Protocol):
    """One call whose events are counted as they come."""

    def __init__(self, message, held):
        self.message, self.held = message, held
        self.events, self.tail, self.last, self.over = 0, b"", b"", False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data):
        seen = self.tail + data
        self.events += seen.count(b"data: ")
        # What may be the beginning of the next mark.
        self.tail = seen[-5:]
        self.last = (self.last + data)[-64:]
        if b"data: [DONE]" in self.last and self.last.endswith(b"0\r\n\r\n"):
            self.over = True
            # The end mark is an event too.
            if self.events > self.held.chunks:
                self.held.whole += 1
            else:
                self.held.lost += 1
            self.transport.close()

    def connection_lost(self, _):
        if not self.over:
            self.held.lost += 1


class Held:
    """Streams held open at once."""

    def __init__(self, chunks):
        self.streams, self.chunks, self.whole, self.lost = [], chunks, 0, 0

    def alive(self, events):
        """Streams that are open and have had at least so many events."""
        return sum(1 for s in self.streams if not s.over and s.events >= events)


async def hold(port, message, count, chunks, measure, finish):
    """Opens `count` streams, waits until each has had three events, calls `measure`, and with `finish`
    stays until each has ended: whole if it brought all its `chunks` and said so."""
    loop = asyncio.get_running_loop()
    held = Held(chunks)

    async def open_one():
        for attempt in range(50):
            try:
                _, stream = await loop.create_connection(lambda: _Stream(message, held), "127.0.0.1", port)
                held.streams.append(stream)
                return
            except OSError:
                await asyncio.sleep(0.02 * (attempt + 1))
        held.lost += 1

    for first in range(0, count, 50):
        await asyncio.gather(*(open_one() for _ in range(min(50, count - first))))
    deadline = time.perf_counter() + 20
    while held.alive(3) < count and not held.lost and time.perf_counter() < deadline:
        await asyncio.sleep(0.1)
    figures = {"asked": count, "alive": held.alive(3), "measured": measure()}
    if finish:
        deadline = time.perf_counter() + 90
        while held.whole + held.lost < count and time.perf_counter() < deadline:
            await asyncio.sleep(0.2)
        figures |= {"whole": held.whole, "lost": held.lost,
                    "events": sum(s.events for s in held.streams)}
    for stream in held.streams:
        stream.transport.abort()
    await asyncio.sleep(0.5)
    return figures
