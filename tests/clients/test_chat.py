"""Chat and completions through the SDK: whole, streamed, with tools, as JSON, metered."""

import json

import httpx
import pytest
from openai import AzureOpenAI, OpenAI

from conftest import wait_for

pytestmark = pytest.mark.sdk

HELLO = [{"role": "user", "content": "Hello world"}]
GREEDY = {"temperature": 0, "seed": 7, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}
# What differs between two equal calls whether or not a gateway stands between,
# and the model, which a gateway may give back under the caller's name.
VOLATILE = ("id", "created", "timings", "model")


def bare(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name not in VOLATILE}


def events(text: str) -> list[str]:
    """The data of each server-sent event."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def test_chat_answers_and_counts(client):
    answer = client.chat.completions.create(model="qwen3-30b-a3b", messages=HELLO, **GREEDY)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 12
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("model", ["gpt-4", "gpt-3.5-turbo", "a-name-only-the-wildcard-has"])
def test_alias_and_wildcard_answer(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, **GREEDY)
    assert answer.choices[0].message.content


def test_equal_calls_get_equal_bodies(facts, key):
    call = {"model": "qwen3-30b-a3b", "messages": HELLO, **GREEDY}
    url = "/v1/chat/completions"
    direct = httpx.post(facts.llama + url, json=call, timeout=60)
    headers = {"authorization": f"Bearer {key}"}
    through = httpx.post(facts.base + url, json=call, headers=headers, timeout=60)
    assert through.status_code == direct.status_code == 200
    assert bare(through.json()) == bare(direct.json())
    assert through.json()["model"] in (call["model"], direct.json()["model"])


def test_an_answer_passes_byte_for_byte(facts, key):
    call = {"model": "fake-chat", "messages": HELLO}
    url = "/v1/chat/completions"
    headers = {"authorization": f"Bearer {key}"}
    through = httpx.post(facts.base + url, json=call, headers=headers, timeout=60)
    direct = httpx.post(facts.fake + url, json=call, timeout=60)
    assert through.content == direct.content
    assert through.headers["content-type"] == direct.headers["content-type"]


def test_equal_streams_have_equal_events(facts, key):
    call = {"model": "qwen3-30b-a3b", "messages": HELLO, "stream": True, **GREEDY}
    call["stream_options"] = {"include_usage": True}
    url = "/v1/chat/completions"
    direct = events(httpx.post(facts.llama + url, json=call, timeout=60).text)
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(facts.base + url, json=call, headers=headers, timeout=60)
    through = events(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert through[-1] == direct[-1] == "[DONE]"
    assert [bare(json.loads(event)) for event in through[:-1]] == [
        bare(json.loads(event)) for event in direct[:-1]
    ]


def test_stream_arrives_piece_by_piece(facts, client, unique):
    stream = client.chat.completions.create(
        model="fake-gated",
        messages=[{"role": "user", "content": "one two three four"}],
        stream=True,
        user=unique,
    )
    first = next(stream)
    assert first.choices[0].delta.content == "You", "the first piece comes before the rest exists"
    httpx.post(f"{facts.fake}/__release/{unique}").raise_for_status()
    rest = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in rest)
    assert text == " said: one two three four"
    assert rest[-1].choices[0].finish_reason == "stop"


def test_usage_chunk_comes_when_asked(client, unique, spend_rows):
    stream = client.chat.completions.create(
        model="qwen3-30b-a3b",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks].index(True) == len(chunks) - 1
    assert chunks[-1].choices == []
    row = spend_rows()[0]
    assert row["prompt_tokens"] == chunks[-1].usage.prompt_tokens
    assert row["completion_tokens"] == chunks[-1].usage.completion_tokens


def test_usage_is_metered_though_not_asked(facts, client, unique, spend_rows):
    stream = client.chat.completions.create(
        model="qwen3-30b-a3b", messages=HELLO, stream=True, **GREEDY
    )
    chunks = list(stream)
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for a usage chunk"
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    call = {"model": "qwen3-30b-a3b", "messages": HELLO, **GREEDY}
    whole = httpx.post(f"{facts.llama}/v1/chat/completions", json=call, timeout=60).json()
    row = spend_rows()[0]
    assert row["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert row["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_tools_are_called_and_answered(client):
    question = [{"role": "user", "content": "Rain in Oslo?"}]
    answer = client.chat.completions.create(
        model="fake-chat", messages=question, tools=[WEATHER], tool_choice="auto"
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    call = message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"query": "Rain in Oslo?"}
    question += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Dry"},
    ]
    answer = client.chat.completions.create(model="fake-chat", messages=question, tools=[WEATHER])
    assert answer.choices[0].message.content == "You said: Dry"


def test_streamed_tool_arguments_add_up(client):
    stream = client.chat.completions.create(
        model="fake-chat",
        messages=[{"role": "user", "content": "Rain in Oslo?"}],
        tools=[WEATHER],
        stream=True,
    )
    chunks = list(stream)
    pieces = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert pieces[0].name == "weather"
    arguments = "".join(piece.arguments or "" for piece in pieces)
    assert json.loads(arguments) == {"query": "Rain in Oslo?"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["fake-chat", "qwen3-30b-a3b"])
def test_json_mode_answers_json(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hi"}],
        response_format={"type": "json_object"},
        temperature=0,
        seed=7,
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_completions_whole_and_streamed(client, direct):
    call = {"model": "qwen3-30b-a3b", "prompt": "hello", **GREEDY}
    answer = client.completions.create(**call)
    around = direct("llama").completions.create(**call)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == around.choices[0].text != ""
    assert answer.usage.total_tokens == around.usage.total_tokens > answer.usage.prompt_tokens
    chunks = list(client.completions.create(stream=True, **call))
    expected = list(direct("llama").completions.create(stream=True, **call))
    assert [chunk.choices for chunk in chunks] == [chunk.choices for chunk in expected]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_base_url_without_v1(facts, key):
    with OpenAI(base_url=facts.base, api_key=key, max_retries=0) as sdk:
        answer = sdk.chat.completions.create(model="fake-chat", messages=HELLO)
        assert answer.choices[0].message.content == "You said: Hello world"
        chunks = list(sdk.chat.completions.create(model="fake-chat", messages=HELLO, stream=True))
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_azure_paths_and_header(facts, key):
    with AzureOpenAI(
        azure_endpoint=facts.base, api_key=key, api_version="2024-02-01", max_retries=0
    ) as sdk:
        answer = sdk.chat.completions.create(model="renamed", messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello world"


def test_engines_path_names_the_model(facts, key):
    answer = httpx.post(
        f"{facts.base}/engines/renamed/chat/completions",
        json={"messages": HELLO},
        headers={"authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "You said: Hello world"


def test_a_caller_that_hangs_up_ends_the_upstream_and_pays(client, unique, stats, spend_rows):
    stream = client.chat.completions.create(
        model="fake-endless", messages=HELLO, stream=True, user=unique
    )
    for _ in range(3):
        next(stream)
    stream.close()
    wait_for(
        "the upstream to be told that its caller is gone",
        lambda: stats()["marks"].get(f"endless-ended/{unique}"),
    )
    row = spend_rows()[0]
    assert row["completion_tokens"] > 0, "what was produced is billed"


def test_the_upstream_sees_its_own_name_and_key(facts, key, unique, stats):
    headers = {
        "authorization": f"Bearer {key}",
        "cookie": "session=secret-of-the-caller",
        "x-litellm-api-key": key,
    }
    call = {"model": "renamed", "messages": HELLO, "user": unique}
    answer = httpx.post(f"{facts.base}/v1/chat/completions", json=call, headers=headers)
    assert answer.status_code == 200, answer.text
    seen = stats()["last"][f"fake-chat/{unique}"]
    assert seen["headers"]["authorization"] == f"Bearer {facts.upstream_key}"
    assert not any(key in value for value in seen["headers"].values())
