from openai import OpenAI
from pathlib import Path
import tempfile

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

class VoiceChatbot:
    def __init__(self, voice: str = "nova"):
        self.voice = voice
        self.messages = [
            {"role": "system", "content": "You are a friendly voice assistant. Keep responses concise and conversational."}
        ]

    def transcribe(self, audio_path: str) -> str:
        """Convert user speech to text."""
        with open(audio_path, "rb") as audio_file:
            transcript = client.audio.transcriptions.create(
                model="whisper-1",
                file=audio_file
            )
        return transcript.text

    def think(self, user_text: str) -> str:
        """Generate AI response."""
        self.messages.append({"role": "user", "content": user_text})

        response = client.chat.completions.create(
            model="gpt-4",
            messages=self.messages,
            max_tokens=150
        )

        assistant_response = response.choices[0].message.content
        self.messages.append({"role": "assistant", "content": assistant_response})

        return assistant_response

    def speak(self, text: str, output_path: str = None) -> str:
        """Convert AI response to speech."""
        response = client.audio.speech.create(
            model="tts-1",  # Fast for conversation
            voice=self.voice,
            input=text
        )

        if output_path is None:
            output_path = tempfile.mktemp(suffix=".mp3")

        response.stream_to_file(Path(output_path))
        return output_path

    def chat(self, audio_input_path: str) -> tuple[str, str, str]:
        """Full voice chat cycle: listen -> think -> speak."""
        # 1. Transcribe user speech
        user_text = self.transcribe(audio_input_path)

        # 2. Generate response
        response_text = self.think(user_text)

        # 3. Convert to speech
        audio_output_path = self.speak(response_text)

        return user_text, response_text, audio_output_path

# Usage
bot = VoiceChatbot(voice="nova")
user_said, bot_said, audio_file = bot.chat("user_recording.mp3")
print(f"User: {user_said}")
print(f"Bot: {bot_said}")
print(f"Audio: {audio_file}")
