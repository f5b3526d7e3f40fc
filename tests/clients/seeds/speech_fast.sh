# Fast reading (1.5x speed)
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "tts-1",
    "input": "This is spoken quickly for time-sensitive information.",
    "voice": "alloy",
    "speed": 1.5
  }' --output fast.mp3
