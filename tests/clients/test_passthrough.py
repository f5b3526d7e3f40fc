"""Paths that are forwarded untouched, with and without a key, and WebSocket through one of them."""

import hashlib

import httpx
import pytest
from websockets.sync.client import connect


@pytest.mark.parametrize("path", ["/tts", "/styletts2"])
def test_speech_without_a_key(http, facts, path):
    call = {"model": "tts-1", "input": "one two", "voice": "nova"}
    through = http.post(f"{path}/v1/audio/speech", json=call)
    around = httpx.post(f"{facts.audio}/v1/audio/speech", json=call, timeout=60)
    assert through.status_code == 200, through.text
    assert hashlib.sha256(through.content).digest() == hashlib.sha256(around.content).digest()
    assert through.headers["content-type"] == around.headers["content-type"]
    assert through.headers["x-request-id"]


def test_recognition_without_a_key(http, sound):
    answer = http.post(
        "/stt/v1/audio/transcriptions",
        files={"file": ("speech.wav", sound(), "audio/wav")},
        data={"model": "whisper-1"},
    )
    assert answer.json() == {"text": "one two three"}


def test_the_body_is_not_touched(http, unique, stats):
    # Neither the model is renamed nor usage asked for, and the spacing survives.
    body = (
        '{"model":  "renamed", "stream": true, '
        f'"messages": [{{"role":"user","content":"a b"}}], "user": "{unique}"}}'
    )
    answer = http.post(
        "/raw/v1/chat/completions?trace=a%20b",
        content=body.encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200, answer.text
    seen = stats()["last"][f"renamed/{unique}"]
    assert seen["body_sha256"] == hashlib.sha256(body.encode()).hexdigest()
    assert seen["path"] == "/v1/chat/completions?trace=a%20b"
    assert '"usage"' not in answer.text


def test_an_upstream_s_error_is_not_touched(http, facts):
    call = {"model": "fake-status-418", "messages": []}
    through = http.post("/raw/v1/chat/completions", json=call)
    around = httpx.post(f"{facts.fake}/v1/chat/completions", json=call)
    assert through.status_code == 418
    assert through.content == around.content


def test_a_caller_s_key_stays_here(http, key, unique, stats):
    call = {"model": "fake-chat", "messages": [{"role": "user", "content": "hi"}], "user": unique}
    headers = {"authorization": f"Bearer {key}"}
    answer = http.post("/raw/v1/chat/completions", json=call, headers=headers)
    assert answer.status_code == 200, answer.text
    seen = stats()["last"][f"fake-chat/{unique}"]
    assert not any(key in value for value in seen["headers"].values())


def test_a_guarded_path_needs_a_key(http, key):
    call = {"model": "fake-chat", "messages": [{"role": "user", "content": "hi"}]}
    refused = http.post("/guarded/v1/chat/completions", json=call)
    assert refused.status_code == 401
    headers = {"authorization": f"Bearer {key}"}
    answer = http.post("/guarded/v1/chat/completions", json=call, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hi"


def test_a_neighbouring_path_is_another_path(http):
    assert http.post("/ttsx/v1/audio/speech", json={}).status_code in (401, 404)


def test_websocket(facts):
    url = facts.base.replace("http://", "ws://") + "/echo/deep/path?x=1"
    with connect(url, open_timeout=60, close_timeout=60, max_size=4 << 20) as socket:
        assert socket.recv(timeout=60) == "/deep/path?x=1"
        for message in ("hello", "ä€😀", b"\x00\xff" * 500_000, "x" * 70_000):
            socket.send(message)
            assert socket.recv(timeout=60) == message
        assert socket.ping().wait(10)
