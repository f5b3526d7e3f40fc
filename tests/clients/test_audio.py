"""Speech and recognition through the SDK, byte for byte what the upstream made."""

import hashlib
import io

import httpx
import pytest

pytestmark = pytest.mark.sdk

FORMATS = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
TEXT_FORMATS = ["json", "text", "srt", "verbose_json", "vtt"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def named(data: bytes, name: str = "speech.wav") -> tuple[str, io.BytesIO]:
    return name, io.BytesIO(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_speech_is_byte_exact(client, direct, kind):
    call = {"model": "tts-1", "voice": "nova", "input": "one two three", "response_format": kind}
    through = client.audio.speech.create(**call)
    around = direct("audio").audio.speech.create(**call)
    assert sha256(through.content) == sha256(around.content)
    assert through.response.headers["content-type"] == around.response.headers["content-type"]


@pytest.mark.parametrize("model", ["tts-1-hd", "styletts2"])
def test_speech_streams_to_a_file(client, direct, model, tmp_path):
    call = {"model": model, "voice": "fable", "input": "four five", "speed": 1.5}
    with client.audio.speech.with_streaming_response.create(**call) as answer:
        answer.stream_to_file(tmp_path / "speech.mp3")
    around = direct("audio").audio.speech.create(**call).content
    assert sha256((tmp_path / "speech.mp3").read_bytes()) == sha256(around)


def test_what_was_spoken_is_heard(client, sound):
    answer = client.audio.transcriptions.create(model="whisper-1", file=named(sound()))
    assert answer.text == "one two three"


@pytest.mark.parametrize("kind", TEXT_FORMATS)
def test_transcription_formats_equal_direct_ones(facts, key, sound, kind):
    def ask(base: str) -> httpx.Response:
        return httpx.post(
            f"{base}/v1/audio/transcriptions",
            headers={"authorization": f"Bearer {key}"},
            data={"model": "whisper-large-v3", "response_format": kind},
            files={"file": ("speech.wav", sound("one, two, three"), "audio/wav")},
            timeout=60,
        )

    through, around = ask(facts.base), ask(facts.audio)
    assert through.status_code == 200, through.text
    assert through.content == around.content
    assert through.headers["content-type"] == around.headers["content-type"]


@pytest.mark.parametrize("kind", TEXT_FORMATS)
def test_transcription_formats_in_the_sdk(client, sound, kind):
    answer = client.audio.transcriptions.create(
        model="whisper-large-v3", file=named(sound("one, two, three")), response_format=kind
    )
    text = answer if isinstance(answer, str) else answer.text
    if kind in ("srt", "vtt"):
        assert text.count("-->") == 3
        assert text.startswith("WEBVTT" if kind == "vtt" else "1\n")
    else:
        assert text.strip() == "one two three"


@pytest.mark.parametrize("wanted", [["word"], ["segment"], ["word", "segment"]])
def test_timestamp_granularities_pass(client, sound, wanted):
    answer = client.audio.transcriptions.create(
        model="whisper-large-v3",
        file=named(sound("one, two, three", "mp3", 0.7), "speech.mp3"),
        response_format="verbose_json",
        timestamp_granularities=wanted,
    ).model_dump()
    assert answer["duration"] > 1
    assert bool(answer.get("words")) == ("word" in wanted)
    assert bool(answer.get("segments")) == ("segment" in wanted)
    if "word" in wanted:
        assert [word["word"] for word in answer["words"]] == ["one", "two", "three"]
        assert all(word["start"] < word["end"] for word in answer["words"])


def test_translation(client, sound):
    answer = client.audio.translations.create(
        model="whisper-large-v3", file=named(sound("one two three", "mp3"), "speech.mp3")
    )
    assert answer.text == "one two three"


def test_a_file_that_is_no_sound_is_refused_by_the_upstream_s_words(client):
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refusal:
        client.audio.transcriptions.create(model="whisper-1", file=named(b"not a sound" * 99))
    assert "not a sound file" in str(refusal.value)


def test_audio_calls_stand_in_the_ledger(client, sound, spend_rows):
    client.audio.speech.create(model="tts-1", voice="alloy", input="one")
    client.audio.transcriptions.create(model="whisper-1", file=named(sound()))
    assert sorted(row["model"] for row in spend_rows(2)) == ["tts-1", "whisper-1"]
