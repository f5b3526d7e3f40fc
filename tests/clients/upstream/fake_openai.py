#!/usr/bin/env python3
"""A scripted model server: what the tiny llama cannot do, and every way to misbehave on demand.

The model's name picks the behaviour. `GET /__stats` tells what arrived;
`POST /__release/NAME` lets a stream that waits under NAME go on.

  fake-chat      answers, streams, calls tools, speaks JSON
  fake-flaky     429 twice for each value of `user`, then answers
  fake-status-N  always answers with status N
  fake-slow      sends nothing until the caller is gone, then marks `slow-ended/USER`
  fake-gated     streams one chunk, waits for its release (by `user`), streams the rest
  fake-drop      streams two chunks, then cuts the connection
  fake-endless   streams until the caller is gone, then marks `endless-ended/USER`
"""

import base64
import json
import select
import socket
import struct
import threading

from http_service import Service, serve

WAIT_SECONDS = 30
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
RESPONSE_USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
CREATED = 1700000000

_gates: dict[str, threading.Event] = {}
_gates_lock = threading.Lock()


def gate(name: str) -> threading.Event:
    with _gates_lock:
        return _gates.setdefault(name, threading.Event())


def said(call: dict) -> str:
    """The last user text, for the echo; an image counts as the word [image]."""
    content = call["messages"][-1].get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", f"[{part['type']}]") for part in content)


class Fake(Service):
    routes = {
        "/chat/completions": "chat",
        "/completions": "completions",
        "/embeddings": "embeddings",
        "/moderations": "moderations",
        "/images/generations": "images",
        "/rerank": "rerank",
        "/responses": "respond",
    }

    def do_POST(self) -> None:
        if self.path.startswith("/__release/"):
            self.path_only, self.body = self.path, self.read_body()
            gate(self.path.removeprefix("/__release/")).set()
            return self.reply_json({"released": True})
        super().do_POST()

    def call(self) -> dict | None:
        """The JSON body, recorded; None when an error has been answered already."""
        try:
            call = json.loads(self.body)
            model = call["model"]
        except (ValueError, KeyError, TypeError) as cause:
            self.reply_error(400, f"bad body: {cause!r}")
            return None
        self.record(model)
        if user := call.get("user"):
            # Tests run side by side; a name of their own keeps their figures apart.
            self.record(f"{model}/{user}")
        if model.startswith("fake-status-"):
            status = int(model.rsplit("-", 1)[1])
            self.reply_error(status, f"scripted {status}", "scripted_error")
            return None
        if model == "fake-slow":
            self.wait_until_caller_is_gone(call.get("user"))
            return None
        if model == "fake-flaky" and self.recorder.mark(f"flaky/{call.get('user')}") <= 2:
            # The header keeps the SDK's own retry quick.
            self.reply_error(429, "slow down, please", "rate_limit_error", {"retry-after-ms": "5"})
            return None
        return call

    def wait_until_caller_is_gone(self, user: str | None) -> None:
        readable, _, _ = select.select([self.connection], [], [], WAIT_SECONDS)
        if readable:
            self.recorder.mark(f"slow-ended/{user}")
        self.close_connection = True

    # --- chat ---

    def chat(self) -> None:
        call = self.call()
        if call is None:
            return
        if not isinstance(call.get("messages"), list) or not call["messages"]:
            return self.reply_error(400, "messages must not be empty")
        if call.get("stream"):
            return self.chat_stream(call)
        message: dict = {"role": "assistant", "content": self.content(call)}
        reason = "stop"
        if self.calls_tool(call):
            message = {"role": "assistant", "content": None, "tool_calls": [self.tool_call(call)]}
            reason = "tool_calls"
        self.reply_json(
            {
                "id": "chatcmpl-fake",
                "object": "chat.completion",
                "created": CREATED,
                "model": call["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": USAGE,
            },
            headers={"x-request-id": "upstream-request"},
        )

    def content(self, call: dict) -> str:
        if call.get("response_format", {}).get("type") == "json_object":
            return json.dumps({"ok": True, "said": said(call)})
        return f"You said: {said(call)}"

    def calls_tool(self, call: dict) -> bool:
        asked_back = call["messages"][-1].get("role") == "tool"
        return bool(call.get("tools")) and call.get("tool_choice") != "none" and not asked_back

    def tool_call(self, call: dict) -> dict:
        return {
            "id": "call_fake",
            "type": "function",
            "function": {
                "name": call["tools"][0]["function"]["name"],
                "arguments": json.dumps({"query": said(call)}),
            },
        }

    def chat_stream(self, call: dict) -> None:
        def chunk(delta: dict, reason: str | None = None) -> dict:
            return {
                "id": "chatcmpl-fake",
                "object": "chat.completion.chunk",
                "created": CREATED,
                "model": call["model"],
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }

        self.start_events()
        if self.calls_tool(call):
            whole = self.tool_call(call)
            arguments = whole["function"]["arguments"]
            whole["function"]["arguments"] = ""
            self.event(chunk({"role": "assistant", "tool_calls": [{"index": 0} | whole]}))
            for start in range(0, len(arguments), 5):
                piece = {"index": 0, "function": {"arguments": arguments[start : start + 5]}}
                self.event(chunk({"tool_calls": [piece]}))
            self.event(chunk({}, "tool_calls"))
        elif call["model"] == "fake-endless":
            return self.stream_until_caller_is_gone(chunk, call.get("user"))
        else:
            words = self.content(call).split(" ")
            self.event(chunk({"role": "assistant", "content": words[0]}))
            if call["model"] == "fake-gated":
                gate(str(call.get("user"))).wait(WAIT_SECONDS)
            for count, word in enumerate(words[1:], 2):
                if call["model"] == "fake-drop" and count == 3:
                    return self.cut()
                self.event(chunk({"content": f" {word}"}))
            self.event(chunk({}, "stop"))
        if (call.get("stream_options") or {}).get("include_usage"):
            self.event(chunk({}) | {"choices": [], "usage": USAGE})
        self.event("[DONE]")
        self.end_events()

    def stream_until_caller_is_gone(self, chunk, user: str | None) -> None:
        # Slow enough that nobody's buffers fill, quick enough for a test.
        pace = threading.Event()
        try:
            for _ in range(WAIT_SECONDS * 50):
                self.event(chunk({"role": "assistant", "content": "more "}))
                pace.wait(0.02)
        except OSError:
            self.recorder.mark(f"endless-ended/{user}")
        self.close_connection = True

    def cut(self) -> None:
        """Resets the connection: no last chunk, no orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    # --- the others ---

    def completions(self) -> None:
        call = self.call()
        if call is None:
            return
        choice = {"index": 0, "text": f"{call['prompt']}…", "logprobs": None}
        self.reply_json(
            {
                "id": "cmpl-fake",
                "object": "text_completion",
                "created": CREATED,
                "model": call["model"],
                "choices": [choice | {"finish_reason": "stop"}],
                "usage": USAGE,
            }
        )

    def embeddings(self) -> None:
        call = self.call()
        if call is None:
            return
        texts = call["input"] if isinstance(call["input"], list) else [call["input"]]
        data = []
        for index, text in enumerate(texts):
            values = [float(len(str(text))), 0.25, -0.5, 1.0]
            packed = base64.b64encode(struct.pack("<4f", *values)).decode()
            embedding = packed if call.get("encoding_format") == "base64" else values
            data.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": 3 * len(texts), "total_tokens": 3 * len(texts)}
        self.reply_json({"object": "list", "model": call["model"], "data": data, "usage": usage})

    def moderations(self) -> None:
        call = self.call()
        if call is None:
            return
        flagged = "attack" in str(call["input"])
        result = {
            "flagged": flagged,
            "categories": {"violence": flagged, "hate": False},
            "category_scores": {"violence": 0.9 if flagged else 0.01, "hate": 0.0},
        }
        self.reply_json({"id": "modr-fake", "model": call["model"], "results": [result]})

    def images(self) -> None:
        call = self.call()
        if call is None:
            return
        picture = base64.b64encode(f"picture of {call['prompt']}".encode()).decode()
        count = call.get("n") or 1
        self.reply_json({"created": CREATED, "data": [{"b64_json": picture}] * count})

    def rerank(self) -> None:
        call = self.call()
        if call is None:
            return
        query = set(call["query"].lower().split())
        scored = [
            {"index": index, "relevance_score": len(query & set(text.lower().split())) / len(query)}
            for index, text in enumerate(call["documents"])
        ]
        scored.sort(key=lambda result: -result["relevance_score"])
        self.reply_json({"id": "rerank-fake", "results": scored[: call.get("top_n")]})

    def respond(self) -> None:
        call = self.call()
        if call is None:
            return
        text = f"You said: {call['input']}"
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"type": "message", "id": "msg_fake", "role": "assistant", "status": "completed"}
        answer = {
            "id": "resp_fake",
            "object": "response",
            "created_at": CREATED,
            "status": "completed",
            "model": call["model"],
            "output": [item | {"content": [part]}],
            "usage": RESPONSE_USAGE,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        if not call.get("stream"):
            return self.reply_json(answer)
        self.start_events()
        begun = answer | {"status": "in_progress", "output": [], "usage": None}
        place = {"item_id": "msg_fake", "output_index": 0, "content_index": 0}
        events = [{"type": "response.created", "response": begun}]
        events += [
            {"type": "response.output_text.delta", "delta": f"{word} ", "logprobs": []} | place
            for word in text.split(" ")
        ]
        events.append({"type": "response.completed", "response": answer})
        for number, event in enumerate(events):
            self.event(event | {"sequence_number": number}, event["type"])
        self.end_events()


if __name__ == "__main__":
    serve(Fake)
