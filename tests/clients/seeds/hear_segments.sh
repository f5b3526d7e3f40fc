# Get segment-level timestamps (sentences/phrases)
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@podcast.mp3" \
  -F "model=whisper-large-v3" \
  -F "response_format=verbose_json" \
  -F "timestamp_granularities[]=segment"
