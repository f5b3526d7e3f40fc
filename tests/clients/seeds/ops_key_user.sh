# Create a new API key for a user
curl -s $BASE/key/generate \
  -H "Authorization: Bearer $MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "models": ["gpt-4", "gpt-3.5-turbo"],
    "user_id": "user@example.com",
    "max_budget": 100.00,
    "duration": "30d"
  }' | jq
