# STT-only key
curl $BASE/key/generate \
  -H "Authorization: Bearer $MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "models": ["whisper-1", "whisper-large-v3"],
    "user_id": "transcription-service",
    "max_budget": 20.00,
    "duration": "30d"
  }'
