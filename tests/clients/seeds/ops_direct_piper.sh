# Via pass-through endpoint (bypasses router)
curl -X POST $BASE/tts/v1/audio/speech \
  -H "Content-Type: application/json" \
  -d '{
    "model": "tts-1",
    "input": "Direct access to Piper TTS.",
    "voice": "echo"
  }' --output speech_direct.mp3
