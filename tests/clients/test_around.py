"""Health, metrics, request ids, CORS, and what the log must not say."""

from pathlib import Path

import httpx
import pytest

METRICS = (
    "litellm_requests_total",
    "litellm_request_duration_seconds",
    "litellm_tokens_total",
    "litellm_errors_total",
)


def test_health_is_open(http):
    health = http.get("/health").json()
    assert health["status"] == "healthy"
    assert health["version"] and health["timestamp"]


@pytest.mark.parametrize("path", ["/health/liveliness", "/health/liveness"])
def test_liveness(http, path):
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.json()["status"] == "healthy"


def test_readiness(http):
    answer = http.get("/health/readiness")
    assert answer.status_code == 200
    assert answer.json()["status"]


def test_metrics_have_the_names_that_dashboards_know(http, key):
    headers = {"authorization": f"Bearer {key}"}
    call = {"model": "fake-chat", "messages": [{"role": "user", "content": "hi"}]}
    assert http.post("/v1/chat/completions", json=call, headers=headers).status_code == 200
    call["model"] = "fake-status-500"
    assert http.post("/v1/chat/completions", json=call, headers=headers).status_code >= 500
    text = http.get("/metrics").text
    for name in METRICS:
        assert f"# TYPE {name} " in text, name
    assert any(
        line.startswith("litellm_tokens_total{") and "fake-chat" in line
        for line in text.splitlines()
    )


def test_labels_are_bounded(http, facts):
    headers = {"authorization": f"Bearer {facts.master_key}"}
    for number in range(40):
        call = {"model": f"made-up-{number}", "messages": [{"role": "user", "content": "hi"}]}
        strict = httpx.post(f"{facts.strict}/v1/chat/completions", json=call, headers=headers)
        assert strict.status_code == 404
    assert "made-up-" not in httpx.get(f"{facts.strict}/metrics").text


def test_every_answer_has_a_request_id(http, key):
    headers = {"authorization": f"Bearer {key}"}
    answers = [
        http.get("/health"),
        http.get("/metrics"),
        http.get("/v1/models"),
        http.get("/v1/models", headers=headers),
        http.get("/nowhere"),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


def test_a_browser_may_ask_first(http):
    answer = http.options(
        "/v1/chat/completions",
        headers={
            "origin": "http://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] in ("*", "http://app.example")
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"].lower()


def test_the_log_holds_no_secret_and_no_prompt(http, facts, key):
    secret = "a prompt that nobody should find in a log"
    headers = {"authorization": f"Bearer {key}"}
    call = {"model": "fake-chat", "messages": [{"role": "user", "content": secret}]}
    assert http.post("/v1/chat/completions", json=call, headers=headers).status_code == 200
    log = Path(facts.log).read_text()
    for forbidden in (secret, key, facts.master_key, facts.upstream_key):
        assert forbidden not in log
