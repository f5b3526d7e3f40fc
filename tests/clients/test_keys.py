"""Virtual keys over plain HTTP: making, looking up, limiting, deleting."""

import hashlib
from datetime import datetime, timedelta, timezone

import httpx
import pytest

from conftest import parse_time, wait_for

DAY = 86_400
HELLO = [{"role": "user", "content": "Hello world"}]


def chat(facts, key: str, model: str = "fake-chat") -> httpx.Response:
    return httpx.post(
        f"{facts.base}/v1/chat/completions",
        json={"model": model, "messages": HELLO, "max_tokens": 8, "temperature": 0},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )


@pytest.mark.parametrize(
    "duration, least, most",
    [
        ("45s", 45, 45),
        ("20m", 1200, 1200),
        ("30min", 1800, 1800),
        ("1h", 3600, 3600),
        ("30d", 30 * DAY, 30 * DAY),
        ("2w", 14 * DAY, 14 * DAY),
        ("1mo", 28 * DAY, 31 * DAY),
    ],
)
def test_durations(new_key, duration, least, most):
    now = datetime.now(timezone.utc)
    lasts = parse_time(new_key(models=[], duration=duration)["expires"]) - now
    assert timedelta(seconds=least - 5) < lasts < timedelta(seconds=most + 60)


def test_without_duration_a_key_does_not_expire(new_key):
    assert new_key(models=[]).get("expires") is None


@pytest.mark.parametrize("duration", ["soon", "-1d", "1 fortnight", "99999999999999999999d"])
def test_a_duration_that_is_none(master, duration):
    answer = master.post("/key/generate", json={"duration": duration})
    assert 400 <= answer.status_code < 500, answer.text
    assert "duration" in answer.text.lower()


def test_generate_answers_what_was_asked_and_more(new_key, unique):
    made = new_key(
        models=["gpt-4", "tts-1"],
        user_id=unique,
        key_alias=f"alias-{unique}",
        max_budget=50.0,
        duration="30d",
        metadata={"project": "my-app", "team": "engineering"},
    )
    assert made["key"].startswith("sk-")
    assert made["user_id"] == unique
    assert made["models"] == ["gpt-4", "tts-1"]
    assert made["max_budget"] == 50.0
    assert made["key_alias"] == f"alias-{unique}"
    assert made["metadata"]["project"] == "my-app"
    assert made["key_name"] == f"sk-...{made['key'][-4:]}"
    assert made["token"] == hashlib.sha256(made["key"].encode()).hexdigest()


def test_only_the_master_makes_keys(facts, key):
    answer = httpx.post(
        f"{facts.base}/key/generate", json={}, headers={"authorization": f"Bearer {key}"}
    )
    assert answer.status_code in (401, 403), answer.text


def test_info_is_flat_and_nested(http, master, new_key, unique):
    made = new_key(models=["gpt-4"], user_id=unique, max_budget=5.0, duration="1h")
    own = http.get("/key/info", headers={"authorization": f"Bearer {made['key']}"})
    asked = master.get("/key/info", params={"key": made["key"]})
    hashed = master.get("/key/info", params={"key": made["token"]})
    for answer in (own, asked, hashed):
        assert answer.status_code == 200, answer.text
        facts = answer.json()
        for view in (facts, facts["info"]):
            assert view["models"] == ["gpt-4"]
            assert view["user_id"] == unique
            assert view["max_budget"] == 5.0
            assert view["spend"] == 0
            assert parse_time(view["expires"])
    assert made["key"] not in own.text, "a key is shown once, when it is made"


def test_info_of_others_and_of_nobody(http, master, new_key, key):
    other = new_key(models=[], user_id="somebody-else")["key"]
    headers = {"authorization": f"Bearer {key}"}
    assert http.get("/key/info", params={"key": other}, headers=headers).status_code == 403
    unknown = master.get("/key/info", params={"key": "sk-nobody-ever-made-this-one"})
    assert unknown.status_code == 404


@pytest.mark.parametrize("by", ["key", "token", "alias"])
def test_delete(facts, master, new_key, unique, by):
    made = new_key(models=[], key_alias=unique)
    assert chat(facts, made["key"]).status_code == 200
    wanted = {
        "key": {"keys": [made["key"]]},
        "token": {"keys": [made["token"]]},
        "alias": {"key_aliases": [unique]},
    }[by]
    answer = master.post("/key/delete", json=wanted)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["deleted_keys"]) == 1
    assert chat(facts, made["key"]).status_code == 401
    assert master.post("/key/delete", json=wanted).status_code == 404


def test_aliases_of_a_key(facts, new_key):
    made = new_key(models=[], aliases={"my-favourite": "fake-chat"})["key"]
    answer = chat(facts, made, "my-favourite")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "You said: Hello world"


def test_a_taken_alias(master, new_key, unique):
    new_key(key_alias=unique)
    assert master.post("/key/generate", json={"key_alias": unique}).status_code == 400


def test_budget_is_kept(facts, http, new_key, unique):
    # One call costs tens of micro-dollars: some fit into this budget, many do not.
    made = new_key(models=[], user_id=unique, max_budget=0.0005)["key"]
    assert chat(facts, made, "qwen3-30b-a3b").status_code == 200

    def refused() -> httpx.Response | None:
        answer = chat(facts, made, "qwen3-30b-a3b")
        return answer if answer.status_code != 200 else None

    answer = wait_for("the budget to be used up", refused)
    assert answer.status_code in (422, 429), answer.text
    assert answer.json()["error"]["type"] == "budget_exceeded"
    info = http.get("/key/info", headers={"authorization": f"Bearer {made}"}).json()
    assert info["spend"] > 0


def test_user_info(master, new_key, unique):
    new_key(models=[], user_id=unique, key_alias=f"one-{unique}")
    new_key(models=[], user_id=unique, key_alias=f"two-{unique}")
    answer = master.get("/user/info", params={"user_id": unique})
    assert answer.status_code == 200, answer.text
    user = answer.json()
    assert user["user_id"] == unique
    aliases = {key["key_alias"] for key in user["keys"]}
    assert aliases == {f"one-{unique}", f"two-{unique}"}


def test_user_info_of_oneself(http, key, unique):
    answer = http.get("/user/info", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["user_id"] == unique
