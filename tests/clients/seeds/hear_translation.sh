# Translate any language audio to English text
curl $BASE/v1/audio/translations \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@french_speech.mp3" \
  -F "model=whisper-large-v3"
