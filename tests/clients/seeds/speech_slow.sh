# Slow narration (0.75x speed)
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "tts-1",
    "input": "This is spoken slowly for clarity and emphasis.",
    "voice": "fable",
    "speed": 0.75
  }' --output slow.mp3
