"""The ledger as `/spend/logs` tells it, and the figures a caller sees on its answer."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from conftest import parse_time

HELLO = [{"role": "user", "content": "Hello world"}]


def chat(facts, key: str, model: str, **more: object) -> httpx.Response:
    call = {"model": model, "messages": HELLO, "max_tokens": 8, "temperature": 0} | more
    answer = httpx.post(
        f"{facts.base}/v1/chat/completions",
        json=call,
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


def test_a_row_has_both_spellings(facts, key, unique, spend_rows):
    usage = chat(facts, key, "qwen3-30b-a3b").json()["usage"]
    row = spend_rows()[0]
    cost = usage["prompt_tokens"] * facts.price_in + usage["completion_tokens"] * facts.price_out
    assert row["request_id"]
    assert row["model"]
    assert row["tokens"] == row["total_tokens"] == usage["total_tokens"]
    assert row["prompt_tokens"] == usage["prompt_tokens"]
    assert row["completion_tokens"] == usage["completion_tokens"]
    assert abs(row["cost"] - cost) < 1e-9 and abs(row["spend"] - cost) < 1e-9
    assert row["user_id"] == row["user"] == unique
    assert parse_time(row["timestamp"]) and parse_time(row["startTime"])
    assert key not in str(row), "the ledger holds a hash, not the key"


def test_the_answer_s_headers_name_the_row(facts, key, spend_rows):
    answer = chat(facts, key, "qwen3-30b-a3b")
    usage = answer.json()["usage"]
    cost = usage["prompt_tokens"] * facts.price_in + usage["completion_tokens"] * facts.price_out
    assert abs(float(answer.headers["x-litellm-response-cost"]) - cost) < 1e-9
    assert answer.headers["x-litellm-call-id"]
    assert answer.headers["x-litellm-model-id"]
    assert answer.headers["x-request-id"]
    spend_rows()


def test_filters(facts, master, key, unique, spend_rows):
    chat(facts, key, "fake-chat")
    row = spend_rows()[0]
    by_key = master.get("/spend/logs", params={"api_key": key}).json()
    by_id = master.get("/spend/logs", params={"request_id": row["request_id"]}).json()
    assert [found["request_id"] for found in by_key] == [row["request_id"]]
    assert [found["request_id"] for found in by_id] == [row["request_id"]]
    everything = master.get("/spend/logs").json()
    assert isinstance(everything, list) and everything


def test_a_caller_sees_only_its_own(facts, http, new_key, unique):
    mine = new_key(models=[], user_id=unique)["key"]
    theirs = new_key(models=[], user_id=f"not-{unique}")["key"]
    chat(facts, mine, "fake-chat")
    answer = http.get(
        "/spend/logs", params={"user_id": unique}, headers={"authorization": f"Bearer {theirs}"}
    )
    assert answer.status_code in (401, 403) or answer.json() == []


def test_many_at_once_are_each_written_once(facts, key, spend_rows):
    # The upstream gives every one of them the same id.
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: chat(facts, key, "fake-chat"), range(60)))
    assert len(answers) == 60
    rows = spend_rows(60)
    assert len({row["request_id"] for row in rows}) == 60
    assert sum(row["total_tokens"] for row in rows) == 60 * 18


def test_spend_adds_up_on_the_key(facts, http, key, spend_rows):
    for _ in range(3):
        chat(facts, key, "qwen3-30b-a3b")
    total = sum(row["spend"] for row in spend_rows(3))
    info = http.get("/key/info", headers={"authorization": f"Bearer {key}"}).json()
    assert abs(info["spend"] - total) < 1e-9
