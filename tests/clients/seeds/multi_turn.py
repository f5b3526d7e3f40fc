from openai import OpenAI

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

messages = [
    {"role": "system", "content": "You are a helpful tutor."}
]

# First turn
messages.append({"role": "user", "content": "Explain what a variable is in programming"})
response = client.chat.completions.create(model="gpt-4", messages=messages)
messages.append({"role": "assistant", "content": response.choices[0].message.content})

# Second turn
messages.append({"role": "user", "content": "Can you give me an example?"})
response = client.chat.completions.create(model="gpt-4", messages=messages)
print(response.choices[0].message.content)
