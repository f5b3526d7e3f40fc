# Via pass-through endpoint
curl -X POST $BASE/stt/v1/audio/transcriptions \
  -F "file=@audio.wav" \
  -F "model=whisper-1"
