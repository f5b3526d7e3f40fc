from openai import OpenAI

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

response = client.chat.completions.create(
    model="qwen3-30b-a3b",
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What's the weather like?"}
    ]
)

print(response.choices[0].message.content)
