"""Embeddings, moderations, images, rerank and responses through the SDK."""

import base64

import httpx
import pytest

pytestmark = pytest.mark.sdk


def test_real_embeddings_equal_direct_ones(client, direct):
    call = {"model": "tiny-embedding", "input": ["hello", "world"], "encoding_format": "float"}
    through = client.embeddings.create(**call)
    around = direct("embedder").embeddings.create(**call)
    assert [item.embedding for item in through.data] == [item.embedding for item in around.data]
    assert len(through.data[0].embedding) == 64
    assert through.usage.total_tokens == around.usage.total_tokens > 0


def test_embeddings_in_the_sdk_s_own_encoding(client):
    # Without encoding_format the SDK asks for base64 and unpacks it itself.
    answer = client.embeddings.create(model="fake-embedding", input="four")
    assert answer.data[0].embedding == [4.0, 0.25, -0.5, 1.0]


@pytest.mark.parametrize("model", ["openai-embedding-large", "mistral-embedding"])
def test_embeddings_by_provider_name(client, model):
    answer = client.embeddings.create(model=model, input="Test embedding")
    assert answer.data[0].embedding[0] == len("Test embedding")


def test_embeddings_are_metered(client, spend_rows):
    client.embeddings.create(model="fake-embedding", input=["a", "b"])
    assert spend_rows()[0]["prompt_tokens"] == 6


def test_moderations(client):
    answer = client.moderations.create(model="moderation", input="attack at dawn")
    assert answer.results[0].flagged is True
    assert client.moderations.create(model="moderation", input="tea").results[0].flagged is False


def test_images(client):
    answer = client.images.generate(model="image", prompt="a toll house", n=2)
    assert [base64.b64decode(item.b64_json) for item in answer.data] == [
        b"picture of a toll house"
    ] * 2


def test_rerank(facts, key):
    call = {
        "model": "rerank",
        "query": "toll bridge",
        "documents": ["a cat", "the toll bridge", "a bridge"],
        "top_n": 2,
    }
    answer = httpx.post(
        f"{facts.base}/v1/rerank", json=call, headers={"authorization": f"Bearer {key}"}
    )
    assert answer.status_code == 200, answer.text
    assert [result["index"] for result in answer.json()["results"]] == [1, 2]


def test_responses_whole_and_streamed(client, spend_rows):
    if not hasattr(client, "responses"):
        # An SDK from before the endpoint still reaches it, by path.
        answer = client.post(
            "/responses", body={"model": "responder", "input": "hi"}, cast_to=httpx.Response
        ).json()
        assert answer["output"][0]["content"][0]["text"] == "You said: hi"
        return
    answer = client.responses.create(model="responder", input="hi")
    assert answer.output_text == "You said: hi"
    assert answer.usage.total_tokens == 18
    events = list(client.responses.create(model="responder", input="hi", stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas).strip() == "You said: hi"
    assert events[-1].type == "response.completed"
    for row in spend_rows(2):
        assert (row["prompt_tokens"], row["completion_tokens"]) == (11, 7)
