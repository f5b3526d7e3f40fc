from openai import OpenAI

client = OpenAI(
    base_url="$BASE/v1",
    api_key="$API_KEY"
)

def process_podcast(audio_path: str) -> dict:
    """Transcribe podcast and generate summary with highlights."""

    # 1. Transcribe with timestamps
    with open(audio_path, "rb") as audio_file:
        transcript = client.audio.transcriptions.create(
            model="whisper-large-v3",
            file=audio_file,
            response_format="verbose_json",
            timestamp_granularities=["segment"]
        )

    # 2. Generate summary
    summary_response = client.chat.completions.create(
        model="gpt-4",
        messages=[
            {"role": "system", "content": "You are an expert at summarizing podcast content. Create concise, informative summaries."},
            {"role": "user", "content": f"Summarize this podcast transcript in 3-5 bullet points:\n\n{transcript.text}"}
        ]
    )

    # 3. Extract key moments
    moments_response = client.chat.completions.create(
        model="gpt-4",
        messages=[
            {"role": "system", "content": "Identify the 3 most interesting or important moments in this transcript."},
            {"role": "user", "content": transcript.text}
        ]
    )

    return {
        "duration": transcript.duration,
        "full_transcript": transcript.text,
        "segments": transcript.segments,
        "summary": summary_response.choices[0].message.content,
        "key_moments": moments_response.choices[0].message.content
    }

# Usage
result = process_podcast("episode_42.mp3")
print(f"Duration: {result['duration']:.1f} seconds")
print(f"\nSummary:\n{result['summary']}")
print(f"\nKey Moments:\n{result['key_moments']}")
