curl $BASE/v1/chat/completions \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $API_KEY" \
  -d '{
    "model": "qwen3-30b-a3b",
    "messages": [
      {"role": "system", "content": "You are an expert Python programmer. Write clean, efficient code."},
      {"role": "user", "content": "Write a function to calculate Fibonacci numbers with memoization"}
    ],
    "temperature": 0.2
  }'
