"""Refusals and failures as the SDK's exception classes, each with a request id and a sentence."""

from http.client import HTTPConnection

import openai
import pytest
from openai import OpenAI

from conftest import wait_for

pytestmark = pytest.mark.sdk

HELLO = [{"role": "user", "content": "Hello world"}]


def chat(sdk: OpenAI, model: str = "fake-chat", **more: object):
    return sdk.chat.completions.create(model=model, messages=HELLO, **more)


def well_formed(refusal: openai.APIStatusError, status: int) -> dict:
    """Checks what every refusal has; returns the error object."""
    assert refusal.status_code == status, refusal
    assert refusal.request_id, "a request id to report"
    error = refusal.response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["code"], str), "the code is text, as LiteLLM writes it"
    assert isinstance(error["type"], str)
    assert len(error["message"]) > 10
    return error


def sdk(base: str, key: str, **more: object) -> OpenAI:
    return OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, **more)


# --- who may ask ---


def test_no_key(http):
    answer = http.post("/v1/chat/completions", json={"model": "fake-chat", "messages": HELLO})
    assert answer.status_code == 401
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert error["type"] == "auth_error"


def test_unknown_key(facts):
    with pytest.raises(openai.AuthenticationError) as refusal:
        chat(sdk(facts.base, "sk-nobody-ever-made-this-one"))
    error = well_formed(refusal.value, 401)
    assert error["type"] == "token_not_found_in_db"
    assert "nobody-ever-made" not in error["message"], "a key is never repeated"


def test_expired_key(facts, new_key):
    short = sdk(facts.base, new_key(models=[], duration="1s")["key"])

    def expired():
        try:
            chat(short)
        except openai.AuthenticationError as refusal:
            return refusal
        return None

    error = well_formed(wait_for("the key to expire", expired), 401)
    assert error["type"] == "expired_key"


def test_deleted_key(facts, master, new_key):
    made = new_key(models=[])["key"]
    chat(sdk(facts.base, made))
    answer = master.post("/key/delete", json={"keys": [made]})
    assert answer.status_code == 200, answer.text
    with pytest.raises(openai.AuthenticationError) as refusal:
        chat(sdk(facts.base, made))
    well_formed(refusal.value, 401)


def test_model_not_allowed(facts, new_key):
    narrow = sdk(facts.base, new_key(models=["tts-1", "gpt-4"])["key"])
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        chat(narrow)
    error = well_formed(refusal.value, 403)
    assert error["type"] == "key_model_access_denied"
    assert error["param"] == "model"
    chat(narrow, "gpt-4", max_tokens=2)


def test_model_that_nobody_has(facts):
    with pytest.raises(openai.NotFoundError) as refusal:
        chat(sdk(facts.strict, facts.master_key), "fake-chatt")
    error = well_formed(refusal.value, 404)
    assert "fake-chat" in error["message"].replace("fake-chatt", ""), "it names the near match"


def test_two_different_keys_are_refused_by_name(http, facts, key):
    headers = {"authorization": f"Bearer {key}", "x-api-key": facts.master_key}
    answer = http.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    message = answer.json()["error"]["message"].lower()
    assert "authorization" in message and "x-api-key" in message
    same = {"authorization": f"Bearer {key}", "x-api-key": key, "api-key": key}
    assert http.get("/v1/models", headers=same).status_code == 200


@pytest.mark.parametrize("header", ["x-litellm-api-key", "x-api-key", "api-key"])
def test_key_headers(http, key, header):
    assert http.get("/v1/models", headers={header: key}).status_code == 200
    assert http.get("/v1/models", headers={header: "sk-wrong-one-altogether"}).status_code == 401


def test_litellm_s_own_header_wins(http, key):
    headers = {"x-litellm-api-key": f"Bearer {key}", "authorization": "Bearer sk-of-the-provider"}
    assert http.get("/v1/models", headers=headers).status_code == 200


# --- what may be asked ---


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model": "fake-chat", "messages": [', id="cut short"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"model": "fake-chat"}', id="no messages"),
        pytest.param(b'{"model": 7, "messages": []}', id="model is a number"),
        pytest.param(b'{"model": "fake-chat", "model": "x", "messages": []}', id="model twice"),
        pytest.param(b'{"mod\\u0065l": "fake-chat", "messages": []}', id="model escaped"),
        pytest.param(
            b'{"model": "fake-chat", "temperature": NaN, "messages": [{"role": "user", '
            b'"content": "x"}]}',
            id="NaN",
        ),
        pytest.param(
            b'{"model": "fake-chat", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            id="nested without end",
        ),
    ],
)
def test_bodies_that_make_no_sense(http, key, body):
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.headers["x-request-id"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_too_large_is_told_so(facts, key):
    # The SDK writes the whole body before it looks for an answer, so this also
    # shows that an early one survives.
    with pytest.raises(openai.APIStatusError) as refusal:
        sdk(facts.base, key).chat.completions.create(
            model="fake-chat", messages=[{"role": "user", "content": "x" * (33 << 20)}]
        )
    well_formed(refusal.value, 413)


def test_a_compressed_body_is_refused(http, key):
    headers = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "content-encoding": "gzip",
    }
    answer = http.post("/v1/chat/completions", content=b"\x1f\x8b\x08\x00", headers=headers)
    assert answer.status_code == 415, answer.text
    assert answer.headers["x-request-id"]


def test_unknown_path_and_wrong_method(http, key):
    headers = {"authorization": f"Bearer {key}"}
    for answer, status in (
        (http.post("/v1/nowhere", json={}, headers=headers), 404),
        (http.get("/v1/chat/completions", headers=headers), 405),
        (http.post("/v1/models", json={}, headers=headers), 405),
    ):
        assert answer.status_code == status, answer.text
        assert answer.headers["x-request-id"]
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/%2e%2e/models",
        "/v1%2fmodels",
        "/v1/models;a=b",
        "/v1\\models",
    ],
)
def test_odd_spellings_of_a_path(facts, key, path):
    host = facts.base.removeprefix("http://")
    connection = HTTPConnection(host, timeout=60)
    connection.putrequest("GET", path)
    connection.putheader("authorization", f"Bearer {key}")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


# --- when the upstream fails ---


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, openai.BadRequestError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_upstream_errors_keep_their_class(client, status, kind):
    with pytest.raises(kind) as refusal:
        chat(client, f"fake-status-{status}")
    assert refusal.value.request_id
    assert f"scripted {status}" in str(refusal.value)


def test_the_sdk_retries_and_gets_through(client, unique, stats):
    answer = chat(client.with_options(max_retries=2), "fake-flaky", user=unique)
    assert answer.choices[0].message.content == "You said: Hello world"
    assert stats()["counts"][f"fake-flaky/{unique}"] == 3


def test_without_retries_a_429_is_a_rate_limit_error(client, unique):
    with pytest.raises(openai.RateLimitError) as refusal:
        chat(client, "fake-flaky", user=unique)
    assert refusal.value.request_id


def test_the_caller_s_patience_ends(client, unique, stats):
    def ends() -> bool:
        with pytest.raises(openai.APITimeoutError):
            chat(client.with_options(timeout=0.5), "fake-slow", user=unique)
        # On a busy machine it may end before the upstream has heard of it.
        return bool(stats()["counts"].get(f"fake-slow/{unique}"))

    wait_for("a call to reach the upstream in that time", ends)
    wait_for(
        "the upstream to be told that its caller is gone",
        lambda: stats()["marks"].get(f"slow-ended/{unique}"),
    )


def test_the_configured_patience_ends(facts):
    with pytest.raises(openai.APIStatusError) as refusal:
        chat(sdk(facts.strict, facts.master_key), "fake-slow")
    assert refusal.value.status_code in (408, 504)
    assert refusal.value.request_id


def test_a_stream_cut_by_the_upstream_is_an_error(client):
    stream = chat(client, "fake-drop", stream=True)
    seen = []
    with pytest.raises(openai.APIError):
        for chunk in stream:
            seen.append(chunk.choices[0].finish_reason)
    assert len(seen) == 2, "what came before the cut is delivered"
    assert seen == [None, None], "a cut is never dressed up as an end"


def test_a_dead_deployment_hands_over_to_its_neighbour(facts):
    strict = sdk(facts.strict, facts.master_key)
    for _ in range(8):
        assert chat(strict, "spread").choices[0].message.content == "You said: Hello world"


def test_an_upstream_that_is_down(facts):
    with pytest.raises(openai.InternalServerError) as refusal:
        chat(sdk(facts.strict, facts.master_key), "unreachable")
    assert refusal.value.status_code in (502, 503)
    assert "127.0.0.1" not in str(refusal.value), "the address is nobody's business"
    assert facts.upstream_key not in str(refusal.value)
    assert "unreachable" in str(refusal.value), "the deployment is named"
