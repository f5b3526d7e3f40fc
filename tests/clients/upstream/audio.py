#!/usr/bin/env python3
"""A speech service with OpenAI's three audio endpoints, on real synthesis and real recognition.

Speech is espeak-ng in OpenAI's six formats; recognition is PocketSphinx with a
grammar of digits, in OpenAI's five formats.
"""

import json
from functools import lru_cache

import multipart
import speech
from http_service import Service, serve


@lru_cache(maxsize=256)
def spoken(text: str, voice: str, speed: float, kind: str) -> bytes:
    return speech.encode(speech.speak(text, voice, speed), kind)


@lru_cache(maxsize=256)
def heard(sound: bytes) -> tuple[tuple[speech.Word, ...], float]:
    """The words and the length of the sound in seconds."""
    samples = speech.decode(sound)
    return tuple(speech.listen(samples)), len(samples) / 2 / speech.LISTENING_RATE_HZ


def clock(seconds: float, decimal: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{decimal}{milliseconds:03}"


def sentence(words: list[speech.Word]) -> str:
    return " ".join(word.text for word in words)


def srt(words: tuple[speech.Word, ...]) -> str:
    return "\n".join(
        f"{number}\n{clock(cue[0].start, ',')} --> {clock(cue[-1].end, ',')}\n{sentence(cue)}\n"
        for number, cue in enumerate(speech.phrases(list(words)), 1)
    )


def vtt(words: tuple[speech.Word, ...]) -> str:
    return "WEBVTT\n\n" + "\n".join(
        f"{clock(cue[0].start, '.')} --> {clock(cue[-1].end, '.')}\n{sentence(cue)}\n"
        for cue in speech.phrases(list(words))
    )


def segments(words: tuple[speech.Word, ...]) -> list[dict]:
    return [
        {
            "id": number,
            "seek": round(cue[0].start * 100),
            "start": cue[0].start,
            "end": cue[-1].end,
            "text": sentence(cue),
            "tokens": [sum(word.text.encode()) for word in cue],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.01,
        }
        for number, cue in enumerate(speech.phrases(list(words)))
    ]


class Audio(Service):
    routes = {
        "/audio/speech": "speech",
        "/audio/transcriptions": "transcribe",
        "/audio/translations": "translate",
    }

    def speech(self) -> None:
        try:
            call = json.loads(self.body)
        except ValueError as cause:
            return self.reply_error(400, f"not JSON: {cause}")
        kind = call.get("response_format", "mp3")
        voice = call.get("voice")
        speed = call.get("speed", 1.0)
        text = call.get("input")
        if kind not in speech.FORMATS or voice not in speech.VOICES:
            return self.reply_error(400, f"unknown response_format {kind!r} or voice {voice!r}")
        if not isinstance(text, str) or not 0 < len(text) <= 4096:
            return self.reply_error(400, "input must be a text of 1 to 4096 characters")
        if not isinstance(speed, (int, float)) or not 0.25 <= speed <= 4.0:
            return self.reply_error(400, "speed must lie between 0.25 and 4.0")
        self.record(str(call.get("model")))
        self.reply(200, speech.FORMATS[kind][2], spoken(text, voice, float(speed), kind))

    def transcribe(self) -> None:
        self.recognise("transcribe")

    def translate(self) -> None:
        self.recognise("translate")

    def recognise(self, task: str) -> None:
        try:
            parts = multipart.parse(self.headers.get("content-type", ""), self.body)
            files = [part.data for part in parts if part.name == "file" and part.filename]
            fields = {part.name: part.data.decode() for part in parts if not part.filename}
            if len(files) != 1 or "model" not in fields:
                raise ValueError("one file and a model are needed")
            words, duration = heard(files[0])
        except ValueError as cause:
            return self.reply_error(400, str(cause))
        # The SDKs write the list as `name[]` once per value.
        wanted = {
            part.data.decode() for part in parts if part.name.startswith("timestamp_granularities")
        } or {"segment"}
        self.record(fields["model"])
        text = sentence(list(words))
        match fields.get("response_format", "json"):
            case "json":
                self.reply_json({"text": text})
            case "text":
                self.reply(200, "text/plain; charset=utf-8", f"{text}\n".encode())
            case "srt":
                self.reply(200, "text/plain; charset=utf-8", srt(words).encode())
            case "vtt":
                self.reply(200, "text/vtt; charset=utf-8", vtt(words).encode())
            case "verbose_json":
                answer = {
                    "task": task,
                    "language": "english",
                    "duration": round(duration, 2),
                    "text": text,
                }
                if "word" in wanted:
                    answer["words"] = [
                        {"word": word.text, "start": word.start, "end": word.end} for word in words
                    ]
                if "segment" in wanted:
                    answer["segments"] = segments(words)
                self.reply_json(answer)
            case other:
                self.reply_error(400, f"unknown response_format {other!r}")


if __name__ == "__main__":
    serve(Audio)
