"""The list of models in its three shapes, and one model by name."""

import httpx
import pytest
from openai import NotFoundError, OpenAI

NAMES = {"qwen3-30b-a3b", "gpt-4", "tts-1", "whisper-1", "fake-chat"}


@pytest.mark.sdk
def test_openai_shape_in_the_sdk(client):
    listed = {model.id: model for model in client.models.list()}
    assert NAMES <= set(listed)
    assert all(model.object == "model" for model in listed.values())
    assert all(model.created and model.owned_by for model in listed.values())
    assert client.models.retrieve("gpt-4").id == "gpt-4"


@pytest.mark.sdk
def test_a_model_that_is_not_there(facts):
    sdk = OpenAI(base_url=f"{facts.strict}/v1", api_key=facts.master_key, max_retries=0)
    with pytest.raises(NotFoundError) as refusal:
        sdk.models.retrieve("no-such-model-anywhere")
    assert refusal.value.request_id


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_openai_shape(http, key, path):
    answer = http.get(path, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert answer.json()["object"] == "list"
    for model in answer.json()["data"]:
        assert {"id", "object", "created", "owned_by"} <= set(model)
    assert "models" not in answer.json()


def test_anthropic_shape(http, key):
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    listed = http.get("/v1/models", headers=headers).json()
    assert {"data", "has_more", "first_id", "last_id"} <= set(listed)
    assert listed["first_id"] == listed["data"][0]["id"]
    assert listed["last_id"] == listed["data"][-1]["id"]
    for model in listed["data"]:
        assert model["type"] == "model"
        assert {"id", "display_name", "created_at"} <= set(model)
    assert NAMES <= {model["id"] for model in listed["data"]}


def test_codex_shape(http, key):
    headers = {"authorization": f"Bearer {key}"}
    listed = http.get("/v1/models?client_version=0.169.0", headers=headers).json()
    assert isinstance(listed["models"], list)
    assert NAMES <= {model["id"] for model in listed["data"]}


def test_a_key_sees_what_it_may_use(http, new_key):
    narrow = new_key(models=["gpt-4", "tts-1"])["key"]
    listed = http.get("/v1/models", headers={"authorization": f"Bearer {narrow}"}).json()
    assert {model["id"] for model in listed["data"]} == {"gpt-4", "tts-1"}


def test_the_list_needs_a_key_and_never_redirects(facts):
    answer = httpx.get(f"{facts.base}/v1/models", follow_redirects=False)
    assert answer.status_code == 401
