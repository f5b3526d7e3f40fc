from openai import OpenAI

client = OpenAI(
    base_url="$BASE",
    api_key="$MASTER_KEY"  # Your LITELLM_MASTER_KEY
)

# Provider capability mapping (Updated December 2025)

# Full tool/function calling support
TOOL_CAPABLE_MODELS = [
    # OpenAI
    "openai-gpt41",
    "openai-gpt41-mini",
    "openai-gpt41-nano",
    "openai-gpt35",
    # Azure
    "azure-gpt41",
    "azure-gpt41-mini",
    # Mistral
    "mistral-large-3",
    "mistral-medium-31",
    "mistral-small-32",
    "ministral-8b",
    # Ollama (Now with full tool support!)
    "ollama-llama32",      # Fine-tuned for function calling
    "ollama-llama31-8b",
    "ollama-mistral",      # v0.3+ supports tools
    "ollama-qwen25",
]

# Limited or no tool support (show warning)
TOOL_LIMITED_MODELS = [
    "ollama-phi4",
]

def generate_response_with_tools(model: str, messages: list, tools: list):
    """
    Generate response with function calling support.
    Warns and disables tools for unsupported providers.
    """
    
    if model in TOOL_LIMITED_MODELS:
        print(f"⚠️  WARNING: Model '{model}' has limited function calling support.")
        print(f"   Tools will be disabled. Consider using: {', '.join(TOOL_CAPABLE_MODELS[:5])}")
        # Call without tools
        response = client.chat.completions.create(
            model=model,
            messages=messages
        )
    elif model not in TOOL_CAPABLE_MODELS:
        print(f"⚠️  WARNING: Model '{model}' tool support unknown. Attempting with tools...")
        response = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=tools
        )
    else:
        # Full tool support
        response = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=tools
        )
    
    return response

# The guide only defines it; here it is called, once for each kind of model.
for model in ("openai-gpt41", "ollama-phi4", "mistral-large-3"):
    answer = generate_response_with_tools(
        model=model,
        messages=[{"role": "user", "content": "hi"}],
        tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    )
    print(model, answer.choices[0].finish_reason)
