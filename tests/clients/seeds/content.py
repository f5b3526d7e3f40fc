from openai import OpenAI
from pathlib import Path

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

def create_audio_content(topic: str, style: str = "educational") -> dict:
    """Generate script and audio content on any topic."""

    style_prompts = {
        "educational": "Create an informative, clear explanation suitable for learning.",
        "entertaining": "Create an engaging, fun narrative that entertains while informing.",
        "professional": "Create a polished, business-appropriate presentation.",
        "conversational": "Create a casual, friendly discussion as if talking to a friend."
    }

    voice_for_style = {
        "educational": "fable",
        "entertaining": "nova",
        "professional": "onyx",
        "conversational": "alloy"
    }

    # 1. Generate script
    script_response = client.chat.completions.create(
        model="gpt-4",
        messages=[
            {"role": "system", "content": f"You are a content creator. {style_prompts.get(style, style_prompts['educational'])}"},
            {"role": "user", "content": f"Create a 1-minute script about: {topic}"}
        ],
        max_tokens=500
    )

    script = script_response.choices[0].message.content

    # 2. Generate audio
    voice = voice_for_style.get(style, "alloy")
    audio_response = client.audio.speech.create(
        model="styletts2",  # High quality for content
        voice=voice,
        input=script,
        response_format="wav"
    )

    output_path = Path(f"{topic.replace(' ', '_')}_{style}.wav")
    audio_response.stream_to_file(output_path)

    return {
        "topic": topic,
        "style": style,
        "script": script,
        "audio_file": str(output_path),
        "voice": voice
    }

# Usage
content = create_audio_content("quantum computing basics", "educational")
print(f"Script:\n{content['script']}")
print(f"\nAudio saved to: {content['audio_file']}")
