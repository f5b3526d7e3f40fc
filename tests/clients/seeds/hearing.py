from openai import OpenAI
from pathlib import Path

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

# 1. Simple Transcription
def transcribe_audio(file_path: str) -> str:
    """Transcribe audio file to text."""
    with open(file_path, "rb") as audio_file:
        transcript = client.audio.transcriptions.create(
            model="whisper-1",
            file=audio_file
        )
    return transcript.text

# 2. Transcription with Timestamps
def transcribe_with_timestamps(file_path: str) -> dict:
    """Transcribe with word-level timestamps."""
    with open(file_path, "rb") as audio_file:
        transcript = client.audio.transcriptions.create(
            model="whisper-large-v3",
            file=audio_file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"]
        )
    return transcript

# 3. Generate Subtitles
def generate_subtitles(file_path: str, format: str = "srt") -> str:
    """Generate subtitle file from audio."""
    with open(file_path, "rb") as audio_file:
        result = client.audio.transcriptions.create(
            model="whisper-large-v3",
            file=audio_file,
            response_format=format
        )

    output_path = Path(file_path).stem + f".{format}"
    with open(output_path, "w") as f:
        f.write(result)
    return output_path

# 4. Translate Foreign Audio to English
def translate_to_english(file_path: str) -> str:
    """Translate foreign language audio to English text."""
    with open(file_path, "rb") as audio_file:
        translation = client.audio.translations.create(
            model="whisper-large-v3",
            file=audio_file
        )
    return translation.text

# 5. Transcribe with Specific Language
def transcribe_language(file_path: str, language: str) -> str:
    """Transcribe audio in a specific language."""
    with open(file_path, "rb") as audio_file:
        transcript = client.audio.transcriptions.create(
            model="whisper-large-v3",
            file=audio_file,
            language=language  # e.g., "es", "fr", "de", "ja", "zh"
        )
    return transcript.text

# 6. Meeting Transcription with Speaker Diarization Prep
def meeting_transcription(file_path: str) -> dict:
    """Transcribe meeting with segments for speaker identification."""
    with open(file_path, "rb") as audio_file:
        result = client.audio.transcriptions.create(
            model="whisper-large-v3",
            file=audio_file,
            response_format="verbose_json",
            timestamp_granularities=["segment"]
        )

    # Process segments for meeting minutes
    segments = []
    for seg in result.segments:
        segments.append({
            "start": seg["start"],
            "end": seg["end"],
            "text": seg["text"],
            "duration": seg["end"] - seg["start"]
        })

    return {
        "full_text": result.text,
        "duration": result.duration,
        "segments": segments
    }

# Usage examples
text = transcribe_audio("recording.mp3")
print(f"Transcription: {text}")

detailed = transcribe_with_timestamps("interview.wav")
print(f"Duration: {detailed.duration}s")
for word in detailed.words[:5]:
    print(f"  {word['word']} ({word['start']:.2f}s - {word['end']:.2f}s)")

subtitles = generate_subtitles("video.mp3", "srt")
print(f"Subtitles saved to: {subtitles}")

english = translate_to_english("spanish_podcast.mp3")
print(f"English translation: {english}")
