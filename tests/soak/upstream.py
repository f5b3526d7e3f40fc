"""The model server that counts: it does what the prompt tells it to, and remembers for each call what it gave.

The prompt of a call is a JSON object:

  n       the number of the call, which is how its bookings are found again
  prompt  tokens it says it has read
  tokens  tokens it answers with; in a stream, one per event
  pause   seconds before a whole answer, or between two events of a stream
  fails   how it fails on its first so many tries: a list of statuses, 0 = hangs up without a word
  breaks  break off after so many events of a stream

What the deployment is called stands first in the path, `/first/v1/chat/completions`. `GET /counted` gives
all bookings and forgets nothing. Run as a program it prints its port and ends with its standard input.
"""

import asyncio
import collections
import json
import sys

# A delta of three bytes: whoever counts by bytes, at four a token, comes to one for each delta.
WORD = "ab "


class Upstream:
    def __init__(self):
        # n -> one [deployment, status, prompt, tokens given, whole] for each try
        self.booked = collections.defaultdict(list)

    async def connection(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b" ", 2)
                length = 0
                for line in head.split(b"\r\n"):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    elif name.lower() == b"expect":
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(length)
                if method == b"GET":
                    await self._say(writer, 200, self._facts(path.decode()))
                elif not await self._call(path.decode(), json.loads(body), reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _facts(self, path):
        return self.booked if path == "/counted" else {"tries": sum(map(len, self.booked.values()))}

    async def _call(self, path, body, reader, writer):
        """False = the connection is of no use any more."""
        embedding = path.endswith("/embeddings")
        told = json.loads(body["input"] if embedding else body["messages"][0]["content"])
        tries = self.booked[told["n"]]
        booking = [path.split("/")[1], 200, told["prompt"], 0, False]
        tries.append(booking)
        fails = told.get("fails", [])
        if len(tries) <= len(fails):
            booking[1] = status = fails[len(tries) - 1]
            if not status:
                return False
            await self._say(writer, status, {"error": {"message": "as told", "type": "told"}})
            return True
        if body.get("stream"):
            return await self._stream(told, body, booking, writer)
        if told.get("pause"):
            await asyncio.sleep(told["pause"])
            if reader.at_eof() or writer.is_closing():
                return False
        if embedding:
            usage = {"prompt_tokens": told["prompt"], "total_tokens": told["prompt"]}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            answer = {"object": "list", "model": body["model"], "data": data, "usage": usage}
        else:
            booking[3] = told["tokens"]
            message = {"role": "assistant", "content": WORD * told["tokens"]}
            answer = {"id": f"chatcmpl-{told['n']}", "object": "chat.completion", "created": 1, "model": body["model"],
                      "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": _usage(told)}
        await self._say(writer, 200, answer)
        booking[4] = True
        return True

    async def _stream(self, told, body, booking, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        head = {"id": f"chatcmpl-{told['n']}", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

        async def event(fields):
            data = fields if isinstance(fields, str) else json.dumps(head | fields)
            text = f"data: {data}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(text), text))
            await writer.drain()

        for at in range(told["tokens"]):
            if at == told.get("breaks"):
                return False
            # Booked before it is sent: what somebody has seen is booked for certain.
            booking[3] += 1
            await event({"choices": [{"index": 0, "delta": {"content": WORD}, "finish_reason": None}]})
            if told.get("pause"):
                await asyncio.sleep(told["pause"])
        await event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await event({"choices": [], "usage": _usage(told)})
        await event("[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        booking[4] = True
        return True

    async def _say(self, writer, status, answer):
        body = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d Told\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                     % (status, len(body), body))
        await writer.drain()


def _usage(told):
    return {"prompt_tokens": told["prompt"], "completion_tokens": told["tokens"],
            "total_tokens": told["prompt"] + told["tokens"]}


async def main():
    upstream = Upstream()
    server = await asyncio.start_server(upstream.connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
