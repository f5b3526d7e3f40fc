"""Connections and calls made by hand: which address they come from, and when they were answered or closed."""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass

from stand import Gateway

BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hello"}]}).encode()


def chat(key: str) -> bytes:
    """The bytes of a chat call."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    sent: float
    """Seconds on the monotonic clock."""
    heard: float


class Caller:
    """One connection of HTTP/1.1 that stays, from an address of our choice."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, gateway: Gateway, source: str, tls: bool = False) -> "Caller":
        context = ssl.create_default_context(cafile=str(gateway.ca)) if tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.secure_port if tls else gateway.port, local_addr=(source, 0), ssl=context,
            server_hostname="localhost" if tls else None,
        )
        return cls(reader, writer)

    async def call(self, request: bytes) -> Answer:
        sent = time.monotonic()
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split(" ")[1]), headers, sent, time.monotonic())

    def close(self) -> None:
        self.writer.transport.abort()
