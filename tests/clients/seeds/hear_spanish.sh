# Transcribe Spanish audio
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@spanish_audio.mp3" \
  -F "model=whisper-large-v3" \
  -F "language=es"
