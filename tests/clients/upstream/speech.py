"""Sound: espeak-ng speaks, the libraries of FFmpeg convert, PocketSphinx listens.

Everything here is a pure function of its input, so that an answer through the
gateway can be compared with a direct one by its hash.
"""

import io
import os
import subprocess
import wave
from dataclasses import dataclass

import av
import pocketsphinx

RATE_HZ = 22050
LISTENING_RATE_HZ = 16000
PAUSE_SECONDS = 0.35
# OpenAI's six voices, told apart by accent and pitch.
VOICES = {
    "alloy": ("en-us", 50),
    "echo": ("en-us", 35),
    "fable": ("en-gb", 50),
    "onyx": ("en-us", 20),
    "nova": ("en-us", 65),
    "shimmer": ("en-us", 80),
}
# response_format -> (container, codec, content type)
FORMATS = {
    "mp3": ("mp3", "libmp3lame", "audio/mpeg"),
    "opus": ("ogg", "libopus", "audio/opus"),
    "aac": ("adts", "aac", "audio/aac"),
    "flac": ("flac", "flac", "audio/flac"),
    "wav": ("wav", "pcm_s16le", "audio/wav"),
    "pcm": ("s16le", "pcm_s16le", "audio/pcm"),
}
DIGITS = """#JSGF V1.0;
grammar digits;
public <digits> = ( zero | one | two | three | four | five | six | seven | eight | nine )+;
"""


@dataclass
class Word:
    """One recognised word; times in seconds from the start of the sound."""

    text: str
    start: float
    end: float


def speak(text: str, voice: str, speed: float) -> bytes:
    """Samples: 16 bit, mono, RATE_HZ."""
    accent, pitch = VOICES[voice]
    words_per_minute = str(max(80, min(450, round(150 * speed))))
    command = ["espeak-ng", "-v", accent, "-p", str(pitch), "-s", words_per_minute, "--stdout"]
    spoken = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True)
    # espeak-ng streams, so the lengths in its header are not the real ones.
    return spoken.stdout[44:]


def encode(samples: bytes, kind: str) -> bytes:
    container, codec, _ = FORMATS[kind]
    sink = io.BytesIO()
    if kind == "pcm":
        return samples
    if kind == "wav":
        with wave.open(sink, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(samples)
        return sink.getvalue()
    # bitexact keeps the encoder's version and Ogg's random serial out of the bytes.
    with av.open(sink, "w", format=container, container_options={"fflags": "+bitexact"}) as output:
        rate = 48000 if kind == "opus" else RATE_HZ
        stream = output.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        resampler = av.AudioResampler(stream.format.name, "mono", rate, stream.frame_size or 1152)
        source = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
        source.sample_rate = RATE_HZ
        source.planes[0].update(samples)
        for frame in [*resampler.resample(source), *resampler.resample(None)]:
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return sink.getvalue()


def decode(data: bytes) -> bytes:
    """Any sound file to 16 bit mono samples at LISTENING_RATE_HZ. ValueError when it is none."""
    samples = []
    try:
        with av.open(io.BytesIO(data)) as source:
            resampler = av.AudioResampler("s16", "mono", LISTENING_RATE_HZ)
            for frame in source.decode(audio=0):
                samples += resampler.resample(frame)
            samples += resampler.resample(None)
    except (av.FFmpegError, IndexError) as cause:
        raise ValueError(f"not a sound file: {cause}") from cause
    return b"".join(bytes(frame.planes[0])[: frame.samples * 2] for frame in samples)


def listen(samples: bytes) -> list[Word]:
    """The digits that were spoken."""
    # A decoder adapts to what it has heard; only a new one gives equal answers
    # to equal questions.
    decoder = pocketsphinx.Decoder(
        lm=None, samprate=LISTENING_RATE_HZ, loglevel="FATAL", logfn=os.devnull
    )
    decoder.add_jsgf_string("digits", DIGITS)
    decoder.activate_search("digits")
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    frames_per_second = decoder.config["frate"]
    return [
        Word(
            piece.word.split("(")[0],
            round(piece.start_frame / frames_per_second, 2),
            round((piece.end_frame + 1) / frames_per_second, 2),
        )
        for piece in decoder.seg() or []
        if not piece.word.startswith(("<", "("))
    ]


def phrases(words: list[Word]) -> list[list[Word]]:
    """Cuts where the speaker pauses."""
    cut: list[list[Word]] = []
    for word in words:
        if cut and word.start - cut[-1][-1].end < PAUSE_SECONDS:
            cut[-1].append(word)
        else:
            cut.append([word])
    return cut
