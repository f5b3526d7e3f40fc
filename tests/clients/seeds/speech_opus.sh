# Generate in different formats
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "tts-1",
    "input": "Testing different audio formats.",
    "voice": "alloy",
    "response_format": "opus"
  }' --output speech.opus
