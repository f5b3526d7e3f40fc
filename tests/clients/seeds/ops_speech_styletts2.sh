# Using StyleTTS2 (high quality)
curl -X POST $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "styletts2",
    "input": "High quality neural speech synthesis.",
    "voice": "nova"
  }' --output speech_hq.wav
