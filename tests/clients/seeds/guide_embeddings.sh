curl -X POST $BASE/embeddings \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $MASTER_KEY" \
  -d '{
    "model": "openai-embedding-large",
    "input": "Test embedding"
  }'
