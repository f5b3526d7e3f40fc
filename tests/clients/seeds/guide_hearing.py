from openai import OpenAI

client = OpenAI(
    base_url="$BASE",
    api_key="$MASTER_KEY"  # Your LITELLM_MASTER_KEY
)

# Audio transcription via LiteLLM Proxy

audio_file = open("audio.mp3", "rb")

response = client.audio.transcriptions.create(
    model="openai-whisper",
    file=audio_file
)

print(response.text)
