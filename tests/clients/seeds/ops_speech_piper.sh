# Using Piper TTS (fast)
curl -X POST $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "tts-1",
    "input": "Hello, this is a test of the text-to-speech system.",
    "voice": "alloy"
  }' --output speech.mp3
