# Using Piper TTS (fastest)
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "tts-1",
    "input": "Hello! Welcome to Haiven.",
    "voice": "alloy"
  }' --output hello.mp3
