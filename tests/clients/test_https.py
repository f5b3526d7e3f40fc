"""The SDK over HTTPS, with the authority for the local network as `tollkeeper tls ca` gives it.

Each test runs over HTTP/1.1 and over HTTP/2, and looks afterwards whether that was spoken.
"""

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

pytestmark = pytest.mark.sdk

HELLO = [{"role": "user", "content": "Hello world"}]
SPOKEN = ["HTTP/1.1", "HTTP/2"]
# Over HTTP/2 all of them are on one connection.
AT_ONCE = 20


@pytest.fixture
def trust(facts) -> ssl.SSLContext:
    """Trusts that authority and no other."""
    return ssl.create_default_context(cafile=facts.ca)


@pytest.fixture(params=SPOKEN)
def secure(request, facts, key, trust) -> Iterator[OpenAI]:
    """The SDK over HTTPS on a virtual key."""
    heard = set()
    http = DefaultHttpxClient(
        verify=trust,
        http2=request.param == "HTTP/2",
        event_hooks={"response": [lambda answer: heard.add(answer.http_version)]},
    )
    base = f"{facts.https}/v1"
    with OpenAI(base_url=base, api_key=key, max_retries=0, timeout=60, http_client=http) as sdk:
        yield sdk
    assert heard == {request.param}


def test_chat(secure):
    answer = secure.chat.completions.create(model="fake-chat", messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello world"
    assert answer.usage.total_tokens == 18


def test_a_real_model(secure):
    answer = secure.chat.completions.create(model="qwen3-30b-a3b", messages=HELLO, max_tokens=8)
    assert 0 < answer.usage.completion_tokens <= 8


def test_a_stream_arrives_piece_by_piece(secure, facts, unique):
    stream = secure.chat.completions.create(
        model="fake-gated", messages=HELLO, stream=True, user=unique
    )
    pieces = []
    for chunk in stream:
        if not pieces:
            # The rest does not exist before the first piece is here.
            httpx.post(f"{facts.fake}/__release/{unique}").raise_for_status()
        pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == "You said: Hello world"
    assert len(pieces) > 3


def test_models(secure):
    names = {model.id for model in secure.models.list()}
    assert {"gpt-4", "tts-1", "fake-chat"} <= names


def test_embeddings(secure):
    answer = secure.embeddings.create(model="fake-embedding", input=["hello", "world"])
    assert [one.embedding for one in answer.data] == [[5.0, 0.25, -0.5, 1.0]] * 2


def test_speech_is_heard(secure, sound):
    answer = secure.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound()))
    assert answer.text == "one two three"


def test_a_large_body(secure):
    text = "word " * 200_000
    answer = secure.chat.completions.create(
        model="fake-chat", messages=[{"role": "user", "content": text}]
    )
    assert answer.choices[0].message.content == f"You said: {text}"


def test_errors(secure):
    wrong = secure.with_options(api_key="sk-nobody-ever-made-this-one")
    with pytest.raises(openai.AuthenticationError) as refusal:
        wrong.chat.completions.create(model="fake-chat", messages=HELLO)
    assert refusal.value.request_id
    with pytest.raises(openai.BadRequestError):
        secure.chat.completions.create(model="fake-status-400", messages=HELLO)
    with pytest.raises(openai.RateLimitError):
        secure.chat.completions.create(model="fake-status-429", messages=HELLO)
    # The connection is as good as before.
    assert secure.models.list().data


def test_a_stream_that_the_upstream_cuts(secure):
    stream = secure.chat.completions.create(model="fake-drop", messages=HELLO, stream=True)
    seen = []
    # Before 2.x the SDK let through what its HTTP client says.
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert len(seen) == 2
    assert secure.models.list().data


@pytest.mark.parametrize("spoken", SPOKEN)
def test_many_streams_side_by_side(facts, key, trust, spoken):
    """That none waits for another is a test of the Node SDK: httpx hands a piece that is there to its
    stream only when the next one comes, if others wait for theirs."""

    async def all_of_them() -> list[str]:
        http = DefaultAsyncHttpxClient(verify=trust, http2=spoken == "HTTP/2")

        async def one(number: int) -> str:
            stream = await sdk.chat.completions.create(
                model="fake-chat",
                messages=[{"role": "user", "content": f"this is {number}"}],
                stream=True,
            )
            assert stream.response.http_version == spoken
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return "".join(pieces)

        base = f"{facts.https}/v1"
        async with AsyncOpenAI(
            base_url=base, api_key=key, max_retries=0, timeout=60, http_client=http
        ) as sdk:
            return await asyncio.gather(*(one(number) for number in range(AT_ONCE)))

    whole = asyncio.run(all_of_them())
    assert whole == [f"You said: this is {number}" for number in range(AT_ONCE)]


def test_who_does_not_trust_the_authority_gets_nowhere(facts, key):
    sdk = OpenAI(base_url=f"{facts.https}/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.APIConnectionError) as refusal:
        sdk.models.list()
    assert "CERTIFICATE_VERIFY_FAILED" in str(refusal.value.__cause__)


def test_the_way_that_tls_ca_tells(facts, key):
    """`export SSL_CERT_FILE=…` is all that a script needs."""
    script = "from openai import OpenAI; print(len(OpenAI(max_retries=0).models.list().data))"
    named = {"SSL_CERT_FILE": facts.ca, "OPENAI_BASE_URL": f"{facts.https}/v1", "OPENAI_API_KEY": key}
    run = [sys.executable, "-c", script]
    told = subprocess.run(run, env=os.environ | named, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) > 5
