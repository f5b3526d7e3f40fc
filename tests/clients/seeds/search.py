from openai import OpenAI

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

def search_and_answer(question: str) -> str:
    """Use AI with web search to answer questions."""
    response = client.chat.completions.create(
        model="qwen3-30b-a3b-q8-abl",  # Model with function calling support
        messages=[
            {"role": "system", "content": "You are a helpful assistant with web search capabilities. Use search when you need current information."},
            {"role": "user", "content": question}
        ],
        tools=[{
            "type": "function",
            "function": {
                "name": "searxng-search",
                "description": "Search the web for information",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "query": {
                            "type": "string",
                            "description": "The search query"
                        }
                    },
                    "required": ["query"]
                }
            }
        }],
        tool_choice="auto"
    )

    return response.choices[0].message.content

# Usage
answer = search_and_answer("What are the latest news about OpenAI?")
print(answer)

answer = search_and_answer("What's the current price of Bitcoin?")
print(answer)
