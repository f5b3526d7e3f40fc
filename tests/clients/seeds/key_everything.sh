# Full access key for development
curl $BASE/key/generate \
  -H "Authorization: Bearer $MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "models": [],
    "user_id": "developer",
    "max_budget": 100.00,
    "duration": "90d",
    "metadata": {"environment": "development"}
  }'
