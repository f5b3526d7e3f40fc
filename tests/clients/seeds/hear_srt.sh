# Generate SRT subtitles
curl $BASE/v1/audio/transcriptions \
  -H "Authorization: Bearer $API_KEY" \
  -F "file=@video_audio.mp3" \
  -F "model=whisper-large-v3" \
  -F "response_format=srt" \
  --output subtitles.srt
