from openai import OpenAI

client = OpenAI(
    base_url="$BASE",
    api_key="$MASTER_KEY"  # Your LITELLM_MASTER_KEY
)

# Embeddings via LiteLLM Proxy

# OpenAI embeddings (recommended for RAG quality)
response = client.embeddings.create(
    model="openai-embedding-large",
    input="Your text here"
)

# Mistral embeddings
response = client.embeddings.create(
    model="mistral-embedding",
    input="Your text here"
)

embedding = response.data[0].embedding
print(len(embedding))
