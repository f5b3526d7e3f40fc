curl $BASE/key/generate \
  -H "Authorization: Bearer $MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "models": ["gpt-4", "gpt-3.5-turbo", "tts-1", "whisper-1"],
    "user_id": "my-project",
    "max_budget": 50.00,
    "duration": "30d",
    "metadata": {"project": "my-app", "team": "engineering"}
  }'
