# Direct Piper TTS (no API key needed on internal network)
curl $BASE/tts/v1/audio/speech \
  -H "Content-Type: application/json" \
  -d '{
    "model": "tts-1",
    "input": "Direct access to Piper TTS.",
    "voice": "alloy"
  }' --output direct_piper.mp3
