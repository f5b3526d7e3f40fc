# Generate VTT subtitles for web
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@webinar.mp3" \
  -F "model=whisper-large-v3" \
  -F "response_format=vtt" \
  --output captions.vtt
