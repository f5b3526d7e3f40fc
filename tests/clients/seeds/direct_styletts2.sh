# Direct StyleTTS2 (no API key needed on internal network)
curl $BASE/styletts2/v1/audio/speech \
  -H "Content-Type: application/json" \
  -d '{
    "model": "tts-1",
    "input": "Direct access to StyleTTS2.",
    "voice": "nova"
  }' --output direct_styletts2.wav
