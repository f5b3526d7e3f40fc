# High-quality WAV for editing
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "styletts2",
    "input": "Uncompressed audio for post-processing.",
    "voice": "nova",
    "response_format": "wav"
  }' --output speech.wav
