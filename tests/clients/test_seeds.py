"""Runs the snippets of `seeds/` as a user would: pasted, with the host and the key filled in.

They are the commands and programs of the guides that people run against LiteLLM
today. `$BASE`, `$API_KEY` and `$MASTER_KEY` stand where a guide has its own host
and keys; nothing else was changed.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

SEEDS = Path(__file__).resolve().parent / "seeds"
ROOT = SEEDS.parent.parent.parent
# Its own Node is there only where the machine's is missing or too old.
NODE = next(iter(ROOT.glob(".venv-node/bin/node")), None) or shutil.which("node") or "node"
NODE_MODULES = SEEDS.parent / "node" / "node_modules"
# The programs index into words and segments (`word["start"]`), as the early SDK allowed.
EARLY_SDK = ROOT / ".venv-openai1" / "bin" / "python"
HEARD = "one two three"
FILES = {
    "wav": ["audio", "interview", "japanese_audio"],
    "mp3": [
        *("audio", "episode_42", "french_speech", "podcast", "recording", "spanish_audio"),
        *("spanish_podcast", "user_recording", "video", "video_audio", "webinar"),
    ],
}

Check = Callable[[SimpleNamespace], None]


@pytest.fixture
def run(facts, key, sound, tmp_path) -> Callable[[str], SimpleNamespace]:
    """Runs one snippet in a directory that has the sound files it asks for."""
    for kind, names in FILES.items():
        for name in names:
            (tmp_path / f"{name}.{kind}").write_bytes(sound(kind=kind))
    values = {"BASE": facts.base, "API_KEY": key, "MASTER_KEY": facts.master_key}

    def go(name: str) -> SimpleNamespace:
        text = (SEEDS / name).read_text()
        kind = name.rsplit(".", 1)[1]
        if kind != "sh":
            for variable, value in values.items():
                text = text.replace(f"${variable}", value)
        script = tmp_path / f"snippet.{kind}"
        script.write_text(text)
        if kind == "mjs":
            (tmp_path / "node_modules").symlink_to(NODE_MODULES)
        command = {
            "sh": ["bash", "-euo", "pipefail"],
            "py": [str(EARLY_SDK)],
            "mjs": [str(NODE)],
        }[kind]
        before = set(tmp_path.iterdir())
        done = subprocess.run(
            [*command, str(script)],
            cwd=tmp_path,
            env=os.environ | values,
            capture_output=True,
            timeout=90,
        )
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        assert done.returncode == 0, f"{name}: {out}{err}"
        made = {path.name: path.read_bytes() for path in set(tmp_path.iterdir()) - before}
        return SimpleNamespace(out=out, text=text, made=made, facts=facts, key=key)

    return go


# --- what each kind of snippet must have brought ---


def chat(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["total_tokens"] > 0


def stream(result: SimpleNamespace) -> None:
    events = [line[6:] for line in result.out.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) > 2
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def json_mode(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


def jq_text(result: SimpleNamespace) -> None:
    assert json.loads(result.out)


def jq_models(result: SimpleNamespace) -> None:
    assert {'"qwen3-30b-a3b"', '"gpt-4"', '"tts-1"'} <= set(result.out.split())


def models(result: SimpleNamespace) -> None:
    assert {"qwen3-30b-a3b", "gpt-4"} <= {model["id"] for model in json.loads(result.out)["data"]}


def embeddings(result: SimpleNamespace) -> None:
    assert json.loads(result.out)["data"][0]["embedding"]


def speech(result: SimpleNamespace) -> None:
    """The file is what the same words get from the upstream itself."""
    call = json.loads(re.search(r"-d '(.*?)'", result.text, re.S)[1])
    direct = httpx.post(f"{result.facts.audio}/v1/audio/speech", json=call, timeout=60)
    assert list(result.made.values()) == [direct.content]


def hearing(result: SimpleNamespace) -> None:
    assert json.loads(result.out) == {"text": HEARD}


def words(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    assert [word["word"] for word in answer["words"]] == HEARD.split()
    assert "segments" not in answer


def segments(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    assert " ".join(segment["text"] for segment in answer["segments"]) == HEARD
    assert "words" not in answer


def written(name: str, beginning: str) -> Check:
    def check(result: SimpleNamespace) -> None:
        text = result.made[name].decode()
        assert text.startswith(beginning) and HEARD in text

    return check


def made_key(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    asked = json.loads(re.search(r"-d '(.*?)'", result.text, re.S)[1])
    assert answer["key"].startswith("sk-")
    assert answer["expires"]
    for name in ("user_id", "models", "max_budget"):
        assert answer[name] == asked[name]


def key_info(result: SimpleNamespace) -> None:
    answer = json.loads(result.out)
    assert {"key", "models", "spend", "info"} <= set(answer)
    # The plain API's own description knows no null: what is not set is left out of its fields, and null
    # among LiteLLM's.
    for name in ("max_budget", "expires", "user_id"):
        assert name in answer["info"]
        assert answer.get(name) == answer["info"][name]


def key_deleted(result: SimpleNamespace) -> None:
    assert len(json.loads(result.out)["deleted_keys"]) == 1
    headers = {"authorization": f"Bearer {result.key}"}
    assert httpx.get(f"{result.facts.base}/v1/models", headers=headers).status_code == 401


def healthy(result: SimpleNamespace) -> None:
    assert json.loads(result.out)["status"] == "healthy"


def metrics(result: SimpleNamespace) -> None:
    assert "litellm_requests_total" in result.out


def prints(pattern: str) -> Check:
    def check(result: SimpleNamespace) -> None:
        assert re.search(pattern, result.out, re.S), result.out

    return check


def makes(*names: str) -> Check:
    def check(result: SimpleNamespace) -> None:
        assert set(names) <= set(result.made), result.made.keys()
        assert all(len(result.made[name]) > 1000 for name in names)

    return check


SNIPPETS: dict[str, Check] = {
    **dict.fromkeys(["chat_hello.sh", "chat_limits.sh", "chat_code.sh", "chat_example.sh"], chat),
    **dict.fromkeys(["search_tool.sh", "ops_search_tool.sh", "ops_chat_whole.sh"], chat),
    "guide_chat.sh": chat,
    "ops_chat_master.sh": jq_text,
    **dict.fromkeys(["stream_story.sh", "ops_stream_haiku.sh"], stream),
    "json_mode.sh": json_mode,
    "models_list.sh": jq_models,
    "guide_models.sh": models,
    "guide_embeddings.sh": embeddings,
    **dict.fromkeys([path.name for path in SEEDS.glob("*speech_*.sh")], speech),
    "key_speech.sh": made_key,
    **dict.fromkeys(["direct_piper.sh", "direct_styletts2.sh", "ops_direct_piper.sh"], speech),
    **dict.fromkeys(["hear_simple.sh", "hear_spanish.sh", "hear_japanese.sh"], hearing),
    **dict.fromkeys(["hear_translation.sh", "ops_hear_large.sh", "ops_hear_alias.sh"], hearing),
    **dict.fromkeys(["direct_whisper.sh", "ops_direct_whisper.sh"], hearing),
    "hear_words.sh": words,
    "hear_segments.sh": segments,
    "hear_srt.sh": written("subtitles.srt", "1\n00:00:00"),
    "hear_vtt.sh": written("captions.vtt", "WEBVTT\n\n00:00:00"),
    "hear_text.sh": written("plain.txt", HEARD),
    **dict.fromkeys(["key_project.sh", "key_hearing.sh", "key_everything.sh"], made_key),
    "ops_key_user.sh": made_key,
    "key_info.sh": key_info,
    "key_delete.sh": key_deleted,
    **dict.fromkeys(["ops_health.sh", "ops_liveliness.sh", "guide_health.sh"], healthy),
    "ops_metrics.sh": metrics,
    **dict.fromkeys(["chat.py", "chat.mjs", "multi_turn.py"], prints(r"\S")),
    "speech.py": makes(
        "output.mp3",
        "professional.wav",
        *(f"sample_{v}.mp3" for v in ("alloy", "echo", "fable", "onyx", "nova", "shimmer")),
    ),
    "speech_cases.py": makes(
        "notification.mp3",
        "podcast_intro.wav",
        "chapter_1.flac",
        *(f"bridge_{region}.mp3" for region in ("us", "uk", "casual")),
    ),
    "speech_batch.py": makes("output_0.mp3", "output_1.mp3", "output_2.mp3"),
    "hearing.py": prints(
        rf"Transcription: {HEARD}\nDuration: [\d.]+s\n  one \([\d.]+s - [\d.]+s\)\n.*"
        rf"Subtitles saved to: video.srt\nEnglish translation: {HEARD}"
    ),
    "search.py": prints(r"\S"),
    "research.py": prints(r"\S"),
    "voice_chatbot.py": prints(rf"User: {HEARD}\nBot: .*Audio: \S+\.mp3"),
    "podcast.py": prints(r"Duration: [\d.]+ seconds\n\nSummary:\n.*Key Moments:"),
    "content.py": makes("quantum_computing_basics_educational.wav"),
    "guide_embeddings.py": prints(r"4\n"),
    "guide_hearing.py": prints(HEARD),
    "guide_tools.py": prints(
        r"openai-gpt41 tool_calls\n.*WARNING.*ollama-phi4 \w+\nmistral-large-3 tool_calls"
    ),
}


@pytest.mark.parametrize("name", sorted(path.name for path in SEEDS.iterdir() if path.is_file()))
def test_snippet(run, name):
    SNIPPETS[name](run(name))
