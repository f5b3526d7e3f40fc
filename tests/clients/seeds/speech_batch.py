import asyncio
from openai import AsyncOpenAI
from pathlib import Path

async_client = AsyncOpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

async def batch_tts(texts: list[str], voice: str = "alloy"):
    """Generate TTS for multiple texts concurrently."""
    async def generate_one(idx: int, text: str):
        response = await async_client.audio.speech.create(
            model="tts-1",
            voice=voice,
            input=text
        )
        output_path = Path(f"output_{idx}.mp3")
        response.stream_to_file(output_path)
        return output_path

    tasks = [generate_one(i, text) for i, text in enumerate(texts)]
    results = await asyncio.gather(*tasks)
    return results

# Usage
texts = [
    "First notification message.",
    "Second notification message.",
    "Third notification message."
]
asyncio.run(batch_tts(texts))
