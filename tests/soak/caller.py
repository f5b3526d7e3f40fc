"""One call over a connection that stays, and what the client saw of it. Knows HTTP/1.1 and nothing of the trade
but what an event of a stream looks like."""

import asyncio
import json
from dataclasses import dataclass, field


@dataclass
class Seen:
    """What a client knows of a call. Times are of the loop's clock, seconds."""

    status: int = 0
    """0 = no head came."""
    id: str = ""
    whole: bool = False
    """The answer came to the end that HTTP gives it; a stream also to its `[DONE]`."""
    left: bool = False
    """The client itself went away."""
    events: int = 0
    """Content deltas of a stream."""
    body: bytes = b""
    """Of answers that are no streams."""
    begun: float = 0.0
    ended: float = 0.0
    headers: dict = field(default_factory=dict)


class Caller:
    """A client that calls one after the other."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    async def connect(self):
        # Closed by the other side while it lay idle: a sound client looks before it sends.
        if self.writer is not None and (self.reader.at_eof() or self.reader.exception() or self.writer.is_closing()):
            self.close()
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def close(self):
        if self.writer is not None:
            # No lingering: the gateway is to learn of it now.
            self.writer.transport.abort()
            self.reader = self.writer = None

    async def call(self, key, path, body=None, leave_after=None, patience=60.0):
        """Never raises for what the network does. `leave_after`: hang up after so many events, or, below zero,
        after so many seconds before there is an answer."""
        loop = asyncio.get_running_loop()
        seen = Seen(begun=loop.time())
        try:
            async with asyncio.timeout(patience):
                await self.connect()
                text = b"" if body is None else json.dumps(body).encode()
                self.writer.write(
                    f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: soak\r\n"
                    f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(text)}\r\n\r\n".encode() + text)
                if leave_after is not None and leave_after < 0:
                    await asyncio.sleep(-leave_after)
                    seen.left = True
                else:
                    await self._answer(seen, leave_after)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        seen.ended = loop.time()
        if not seen.whole or seen.headers.get("connection", "").lower() == "close":
            self.close()
        return seen

    async def _answer(self, seen, leave_after):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        seen.status = int(head[0].split(" ")[1])
        seen.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        seen.id = seen.headers.get("x-litellm-call-id", "")
        if "content-length" in seen.headers:
            seen.body = await self.reader.readexactly(int(seen.headers["content-length"]))
            seen.whole = True
            return
        text, done, mark = b"", False, b'"content"'
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            chunk = (await self.reader.readexactly(size + 2))[:-2]
            if not size:
                break
            *lines, text = (text + chunk).split(b"\n")
            for line in lines:
                seen.events += line.startswith(b"data: ") and mark in line
                done |= line == b"data: [DONE]"
            if leave_after is not None and seen.events >= leave_after:
                seen.left = True
                return
        seen.whole = done or "event-stream" not in seen.headers.get("content-type", "")


def chat(model, told, **more):
    return {"model": model, "messages": [{"role": "user", "content": json.dumps(told)}], **more}


def embedding(model, told, **more):
    return {"model": model, "input": json.dumps(told), **more}
