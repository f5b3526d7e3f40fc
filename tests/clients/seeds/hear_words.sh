# Get word-level timestamps
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@interview.wav" \
  -F "model=whisper-large-v3" \
  -F "response_format=verbose_json" \
  -F "timestamp_granularities[]=word"
