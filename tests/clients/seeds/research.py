from openai import OpenAI
import json

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

def research_topic(topic: str, depth: str = "overview") -> dict:
    """Research a topic using AI and web search."""

    prompts = {
        "overview": f"Provide a brief overview of {topic} with current information.",
        "detailed": f"Provide a comprehensive analysis of {topic} including recent developments, key players, and future outlook.",
        "news": f"What are the latest news and developments about {topic}?"
    }

    response = client.chat.completions.create(
        model="qwen3-30b-a3b-q8-abl",
        messages=[
            {"role": "system", "content": "You are a research assistant. Search the web for current information and provide well-sourced responses."},
            {"role": "user", "content": prompts.get(depth, prompts["overview"])}
        ],
        tools=[{
            "type": "function",
            "function": {
                "name": "searxng-search",
                "description": "Search the web"
            }
        }],
        tool_choice="auto"
    )

    return {
        "topic": topic,
        "depth": depth,
        "response": response.choices[0].message.content,
        "model": response.model,
        "usage": {
            "prompt_tokens": response.usage.prompt_tokens,
            "completion_tokens": response.usage.completion_tokens
        }
    }

# Usage
research = research_topic("quantum computing", "detailed")
print(research["response"])
