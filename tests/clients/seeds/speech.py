from openai import OpenAI
from pathlib import Path

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

# Quick TTS with Piper
def quick_speak(text: str, output_file: str = "output.mp3"):
    """Fast TTS for notifications and quick responses."""
    response = client.audio.speech.create(
        model="tts-1",
        voice="alloy",
        input=text
    )
    response.stream_to_file(Path(output_file))
    return output_file

# High-quality TTS with StyleTTS2
def professional_speak(text: str, voice: str = "nova", output_file: str = "professional.wav"):
    """High-quality TTS for professional content."""
    response = client.audio.speech.create(
        model="styletts2",
        voice=voice,
        input=text
    )
    response.stream_to_file(Path(output_file))
    return output_file

# Generate all voices for comparison
def generate_voice_samples(text: str):
    """Generate samples of all available voices."""
    voices = ["alloy", "echo", "fable", "onyx", "nova", "shimmer"]

    for voice in voices:
        response = client.audio.speech.create(
            model="tts-1",
            voice=voice,
            input=text
        )
        response.stream_to_file(Path(f"sample_{voice}.mp3"))
        print(f"Generated sample_{voice}.mp3")

# Usage
quick_speak("You have a new message.")
professional_speak("Welcome to our quarterly earnings call.")
generate_voice_samples("The quick brown fox jumps over the lazy dog.")
