#!/usr/bin/env python3
"""Writes a tiny random llama model as GGUF: half a megabyte, the same bytes every time.

Its text is noise. What it is good for is everything around the text: a real
tokenizer, a real sampler, real usage counts, real streaming.
"""

import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

EMBEDDING, LAYERS, HEADS, FEED_FORWARD, CONTEXT = 64, 2, 4, 128, 4096
WORDS = "▁the ▁a ▁of ▁to ▁and ▁hello ▁world . , ! ? ▁ e t a o i n s"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def vocabulary() -> list[tuple[str, float, int]]:
    """(token, score, type): control tokens, all bytes as fallback, a few words."""
    vocab = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    vocab += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    vocab += [(word, -float(rank) - 1, 1) for rank, word in enumerate(WORDS.split(" "))]
    return vocab


def write(path: Path) -> None:
    """Writes the model to `path`; readers never see half a file."""
    random = np.random.default_rng(0)
    vocab = vocabulary()
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_vocab_size(len(vocab))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _, _ in vocab])
    writer.add_token_scores([score for _, score, _ in vocab])
    writer.add_token_types([kind for _, _, kind in vocab])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)

    def noise(name: str, *shape: int) -> None:
        tensor = (random.standard_normal(shape) * 0.05).astype(np.float32)
        writer.add_tensor(name, tensor)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(EMBEDDING, np.float32))

    noise("token_embd.weight", len(vocab), EMBEDDING)
    ones("output_norm.weight")
    noise("output.weight", len(vocab), EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        ones(block + "ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            noise(f"{block}{name}.weight", EMBEDDING, EMBEDDING)
        noise(block + "ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        noise(block + "ffn_up.weight", FEED_FORWARD, EMBEDDING)
        noise(block + "ffn_down.weight", EMBEDDING, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny.gguf"))
