curl -X POST $BASE/chat/completions \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $MASTER_KEY" \
  -d '{
    "model": "openai-gpt35",
    "messages": [{"role": "user", "content": "Hello, test!"}]
  }'
