# TTS-only key
curl $BASE/key/generate \
  -H "Authorization: Bearer $MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "models": ["tts-1", "tts-1-hd", "styletts2"],
    "user_id": "tts-service",
    "max_budget": 10.00,
    "duration": "7d"
  }'
