"""Clients that take their time: heads and TLS handshakes that never end, and more connections than one address may have.

The slow ones come from several addresses, so that what ends them is the deadline and not the limit of
connections; normal calls go on meanwhile, on old connections and on new ones.
"""

import asyncio
import time

from calls import Caller, chat
from report import Check
from stand import Gateway, Stand

# The limit of one address is 256.
PER_ADDRESS = 100
# How often a slow client sends one more byte, seconds.
PACE = 1.0
NORMAL_PAUSE = 0.05
HEAD = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-slow: " + b"a" * 4096
# A handshake record that announces more than ever comes.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 400


async def _slow(gateway: Gateway, source: str, tls: bool, patience: float) -> float | None:
    """Seconds from connecting until the gateway ended it; `None` = it did not."""
    begun = time.monotonic()
    port = gateway.secure_port if tls else gateway.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    begun = time.monotonic()
    closed = asyncio.ensure_future(_ended(reader))
    try:
        for byte in HELLO if tls else HEAD:
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait([closed], timeout=PACE)
            if done:
                return time.monotonic() - begun
            if time.monotonic() - begun > patience:
                return None
        return None
    finally:
        closed.cancel()
        writer.transport.abort()


async def _ended(reader: asyncio.StreamReader) -> None:
    """Returns when the other side is done, whatever it says before that."""
    try:
        while await reader.read(4096):
            pass
    except OSError:
        pass


async def _normal(gateway: Gateway, over: asyncio.Event) -> tuple[list[float], int]:
    """Seconds that each call took, and how many failed. Every other call has a connection of its own."""
    request = chat(gateway.key)
    took, failed, number = [], 0, 0
    kept = await Caller.connect(gateway, "127.0.0.1", tls=True)
    while not over.is_set():
        number += 1
        begun = time.monotonic()
        try:
            caller = kept if number % 2 else await Caller.connect(gateway, "127.0.0.1", tls=number % 4 == 0)
            async with asyncio.timeout(10):
                answer = await caller.call(request)
            failed += answer.status != 200
            if caller is not kept:
                caller.close()
        except (OSError, EOFError, TimeoutError):
            failed += 1
            kept = await Caller.connect(gateway, "127.0.0.1", tls=True)
        took.append(time.monotonic() - begun)
        await asyncio.sleep(NORMAL_PAUSE)
    kept.close()
    return took, failed


async def _both(gateway: Gateway, count: int, patience: float):
    over = asyncio.Event()
    normal = asyncio.ensure_future(_normal(gateway, over))
    slow = [
        _slow(gateway, f"127.0.1.{1 + number // PER_ADDRESS}", number % 2 == 1, patience) for number in range(count)
    ]
    lives = await asyncio.gather(*slow, return_exceptions=True)
    over.set()
    return lives, *await normal


def heads(gateway: Gateway, count: int, bar: float) -> list[Check]:
    """Half of them speak plain HTTP, half begin a TLS handshake; all have to be gone after `bar` seconds."""
    lives, took, failed = asyncio.run(_both(gateway, count, patience=bar + 5))
    ended = sorted(life for life in lives if isinstance(life, float))
    took.sort()
    last = f", the last one after {ended[-1]:.1f} s" if ended else ""
    return [
        Check(f"{count:,} slow heads and handshakes: closed", f"{len(ended):,}{last}", f"all in {bar:g} s",
              len(ended) == count and ended[-1] <= bar),
        Check("  normal calls that failed meanwhile", f"{failed} of {len(took):,}", "0",
              failed == 0 and len(took) >= 20),
        Check("  their time, 99th of 100", f"{took[len(took) * 99 // 100] * 1000:.1f} ms", "", True),
    ]


async def _crowd(gateway: Gateway, asked: int, limit: int) -> tuple[int, int]:
    """Of so many idle connections of one address, how many stay; and is another address served?"""
    pairs = []
    for _ in range(asked):
        pairs.append(await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=("127.0.0.9", 0)))
    ended = [asyncio.ensure_future(_ended(reader)) for reader, _ in pairs]
    # Those over the limit are closed at once; the others wait for the deadline of their head.
    until = time.monotonic() + 15.0
    while sum(one.done() for one in ended) < asked - limit and time.monotonic() < until:
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    stay = sum(not one.done() for one in ended)
    other = await Caller.connect(gateway, "127.0.0.10")
    status = (await other.call(chat(gateway.key))).status
    other.close()
    for one, (_, writer) in zip(ended, pairs, strict=True):
        one.cancel()
        writer.transport.abort()
    return stay, status


def crowd(gateway: Gateway, asked: int, limit: int) -> list[Check]:
    """More connections of one address than it may have."""
    stay, status = asyncio.run(_crowd(gateway, asked, limit))
    return [
        Check(f"of {asked} connections of one address stay", f"{stay}", f"{limit}", stay == limit),
        Check("  a call of another address", f"{status}", "200", status == 200),
    ]


def all_heads(stand: Stand, count: int, bar: float, **own: object) -> list[Check]:
    with stand.gateway("slow-heads", **own) as gateway:
        checks = heads(gateway, count, bar)
    # Whose heads have all the time there is by default.
    with stand.gateway("crowd") as gateway:
        return checks + crowd(gateway, asked=400, limit=256)
