#!/usr/bin/env python3
"""The model server behind the gateway: answers every call at once, and `/big` with more than buffers take.

Prints its port as one line and lives until its standard input ends.
"""

import asyncio
import json
import sys

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HEAD = {"id": "chatcmpl-edge", "created": 1, "model": "mock"}
WHOLE = json.dumps(HEAD | {
    "object": "chat.completion", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
}).encode()
SLICE = b"x" * (64 << 10)
SLICES = 64


def head_of(kind: str, length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            if lengths:
                await reader.readexactly(int(lengths[0]))
            if head.startswith(b"get /big"):
                writer.write(head_of("application/octet-stream", SLICES * len(SLICE)))
                for _ in range(SLICES):
                    writer.write(SLICE)
                    # A thousand readers that take nothing must not fill the memory here.
                    await writer.drain()
            else:
                writer.write(head_of("application/json", len(WHOLE)) + WHOLE)
                await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
