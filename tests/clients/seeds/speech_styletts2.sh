# Using StyleTTS2 (highest quality)
curl $BASE/v1/audio/speech \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "styletts2",
    "input": "This is professional-quality neural speech synthesis.",
    "voice": "nova"
  }' --output professional.wav
