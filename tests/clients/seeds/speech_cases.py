from openai import OpenAI
from pathlib import Path

client = OpenAI(base_url="$BASE/v1", api_key="$API_KEY")

# 1. Notification Sound
def create_notification(message: str):
    response = client.audio.speech.create(
        model="tts-1",  # Fast
        voice="alloy",
        input=message,
        speed=1.2  # Slightly faster
    )
    response.stream_to_file(Path("notification.mp3"))

# 2. Podcast Intro
def create_podcast_intro(show_name: str, episode_title: str):
    script = f"Welcome to {show_name}. Today's episode: {episode_title}."
    response = client.audio.speech.create(
        model="styletts2",  # High quality
        voice="onyx",  # Authoritative
        input=script
    )
    response.stream_to_file(Path("podcast_intro.wav"))

# 3. Audiobook Chapter
def narrate_chapter(text: str, chapter_num: int):
    response = client.audio.speech.create(
        model="styletts2",
        voice="fable",  # British narrator
        input=text,
        response_format="flac",  # Lossless for editing
        speed=0.9  # Slightly slower for clarity
    )
    response.stream_to_file(Path(f"chapter_{chapter_num}.flac"))

# 4. Voice Assistant Response
def assistant_response(text: str):
    response = client.audio.speech.create(
        model="tts-1",  # Fast response
        voice="nova",  # Friendly female
        input=text
    )
    return response.content  # Return bytes for immediate playback

# 5. Multi-language Announcement (using different voices)
def announcement(en_text: str, output_prefix: str):
    voices_per_region = {
        "us": "alloy",
        "uk": "fable",
        "casual": "nova"
    }

    for region, voice in voices_per_region.items():
        response = client.audio.speech.create(
            model="tts-1",
            voice=voice,
            input=en_text
        )
        response.stream_to_file(Path(f"{output_prefix}_{region}.mp3"))

# The guide only defines these; here they are called.
create_notification("You have a new message.")
create_podcast_intro("The Toll House", "One two three")
narrate_chapter("It was a dark and stormy night.", 1)
print(len(assistant_response("Of course.")))
announcement("The bridge is open.", "bridge")
