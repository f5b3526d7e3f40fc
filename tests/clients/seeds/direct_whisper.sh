# Direct Whisper STT (no API key needed on internal network)
curl $BASE/stt/v1/audio/transcriptions \
  -F "file=@audio.mp3" \
  -F "model=whisper-1"
