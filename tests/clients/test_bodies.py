"""Bodies of awkward size and order reach the upstream as they were sent, but for the model."""

import base64
import hashlib
import json
import subprocess

import httpx

PICTURE_BYTES = 30_000_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def picture_call(model: str, user: str) -> bytes:
    """A chat body of 30 MB, most of it one image; spaced as no serialiser would."""
    room = PICTURE_BYTES * 3 // 4 - 300
    picture = base64.b64encode(hashlib.shake_256(b"picture").digest(room)).decode()
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    messages = json.dumps([{"role": "user", "content": content}])
    return f'{{ "messages" :{messages},\n  "model":\t"{model}" , "user": "{user}"}}'.encode()


def test_30_mb_pass_byte_for_byte(http, key, unique, stats):
    body = picture_call("fake-chat", unique)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert (
        answer.json()["choices"][0]["message"]["content"] == "You said: What is this? [image_url]"
    )
    seen = stats()["last"][f"fake-chat/{unique}"]
    assert (seen["body_bytes"], seen["body_sha256"]) == (len(body), sha256(body))


def test_30_mb_pass_with_only_the_model_changed(http, key, unique, stats):
    body = picture_call("renamed", unique)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    seen = stats()["last"][f"fake-chat/{unique}"]
    wanted = body.replace(b'"renamed"', b'"fake-chat"')
    assert (seen["body_bytes"], seen["body_sha256"]) == (len(wanted), sha256(wanted))


def test_a_chunked_body(http, key, unique, stats):
    body = json.dumps(
        {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "x" * 200_000}],
            "user": unique,
        }
    ).encode()
    pieces = (body[start : start + 777] for start in range(0, len(body), 777))
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=pieces, headers=headers)
    assert answer.status_code == 200, answer.text
    assert stats()["last"][f"fake-chat/{unique}"]["body_sha256"] == sha256(body)


def curl(*arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_curl_with_the_file_first(facts, key, sound, tmp_path):
    (tmp_path / "speech.wav").write_bytes(sound())
    for order in (["file", "model"], ["model", "file"]):
        fields = {"file": f"file=@{tmp_path}/speech.wav", "model": "model=whisper-1"}
        answer = curl(
            f"{facts.base}/v1/audio/transcriptions",
            *("-H", f"Authorization: Bearer {key}"),
            *(word for name in order for word in ("-F", fields[name])),
        )
        assert json.loads(answer) == {"text": "one two three"}


def test_curl_waits_for_100_continue_and_gets_through(facts, key, unique, tmp_path):
    (tmp_path / "body.json").write_bytes(picture_call("fake-chat", unique)[:-1] + b"}")
    answer = curl(
        f"{facts.base}/v1/chat/completions",
        *("-H", f"Authorization: Bearer {key}"),
        *("-H", "Content-Type: application/json"),
        *("-H", "Expect: 100-continue"),
        *("--data-binary", f"@{tmp_path}/body.json"),
    )
    assert json.loads(answer)["choices"][0]["finish_reason"] == "stop"


def test_a_form_without_a_model_is_refused(http, key, sound):
    answer = http.post(
        "/v1/audio/transcriptions",
        headers={"authorization": f"Bearer {key}"},
        files={"file": ("speech.wav", sound(), "audio/wav")},
    )
    assert answer.status_code == 400, answer.text
    assert "model" in answer.json()["error"]["message"]


def test_connections_are_kept_and_not_mixed_up(facts, key):
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=facts.base, headers=headers, timeout=60) as client:
        for number in range(30):
            messages = [{"role": "user", "content": f"number {number}"}]
            answer = client.post(
                "/v1/chat/completions",
                json={"model": "fake-chat", "messages": messages, "stream": bool(number % 2)},
            )
            if number % 2:
                assert answer.text.endswith("data: [DONE]\n\n")
                assert f" {number}" in answer.text
            else:
                said = answer.json()["choices"][0]["message"]["content"]
                assert said == f"You said: number {number}"
