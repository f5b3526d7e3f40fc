# Transcribe Japanese audio
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@japanese_audio.wav" \
  -F "model=whisper-large-v3" \
  -F "language=ja"
