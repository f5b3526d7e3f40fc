#!/usr/bin/env python3
"""Writes conf/prices.tsv, the model prices that are built into the binary.

The figures come from the model price list inside the `litellm` wheel on PyPI (MIT licence). Only facts carry
over: prices, limits, modes, capability flags, end dates. The output is the same, byte for byte, for the same
wheel: a table sorted by name, one model per line, that can be reviewed as a diff and searched as it is.

    scripts/update-prices.py                 fetch the pinned wheel with pip and write the table
    scripts/update-prices.py --wheel FILE    use a wheel that is already here
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

VERSION = "1.109.1"
# The day these figures were taken over. The wheel itself carries no date; change both together.
TAKEN = "2026-11-20"
# Releases whose wheels were tampered with. Never to be fetched, whatever is asked for.
POISONED = {"1.82.7", "1.82.8"}
MEMBER = "litellm/model_prices_and_context_window_backup.json"
TARGET = Path(__file__).resolve().parent.parent / "conf" / "prices.tsv"

# Our short name -> the price list's field. filters/src/model/price/rate.rs holds the same list and a test there
# compares it with the legend written into the table.
METERS = {
    "in": "input_cost_per_token",
    "out": "output_cost_per_token",
    "read": "cache_read_input_token_cost",
    "write": "cache_creation_input_token_cost",
    "write1h": "cache_creation_input_token_cost_above_1hr",
    "think": "output_cost_per_reasoning_token",
    "in_audio": "input_cost_per_audio_token",
    "out_audio": "output_cost_per_audio_token",
    "in_picture": "input_cost_per_image_token",
    "out_picture": "output_cost_per_image_token",
    "in_char": "input_cost_per_character",
    "out_char": "output_cost_per_character",
    "in_second": "input_cost_per_second",
    "out_second": "output_cost_per_second",
    "in_image": "input_cost_per_image",
    "out_image": "output_cost_per_image",
    "in_pixel": "input_cost_per_pixel",
    "out_pixel": "output_cost_per_pixel",
    "query": "input_cost_per_query",
    "request": "input_cost_per_request",
}
TIERS = ["priority", "flex", "batches", "ultrafast", "balanced"]
# Letter -> capability, the order of filters/src/model/price/listing.rs.
FLAGS = {
    "f": "supports_function_calling",
    "p": "supports_parallel_function_calling",
    "t": "supports_tool_choice",
    "j": "supports_response_schema",
    "s": "supports_system_messages",
    "v": "supports_vision",
    "d": "supports_pdf_input",
    "a": "supports_audio_input",
    "A": "supports_audio_output",
    "V": "supports_video_input",
    "c": "supports_prompt_caching",
    "r": "supports_reasoning",
    "w": "supports_web_search",
    "u": "supports_url_context",
    "o": "supports_computer_use",
    "l": "supports_assistant_prefill",
    "n": "supports_native_streaming",
    "e": "supports_embedding_image_input",
    "J": "supports_native_structured_output",
    "T": "supports_adaptive_thinking",
}
# Older spellings of a meter, used when the newer one is missing.
ALIASES = {"read": "input_cost_per_token_cache_hit", "in_second": "cost_per_second"}
# These reach the dearer tier with the prompt that equals the threshold, everyone else with the one above it.
INCLUSIVE = {"xai"}
FEMTO = Decimal("1e-15")

BY_FIELD = {field: code for code, field in METERS.items()}


def split_field(field):
    """`input_cost_per_token_above_200k_tokens_priority` -> ("in", 200000, "priority"); None if not ours."""
    tier = ""
    for name in TIERS:
        if field.endswith("_" + name):
            field, tier = field[: -len(name) - 1], name
    above = 0
    match = re.fullmatch(r"(.+)_above_(\d+)(k?)_tokens", field)
    if match:
        field, above = match[1], int(match[2]) * (1000 if match[3] else 1)
    code = BY_FIELD.get(field)
    return (code, above, tier) if code else None


def price(value):
    """A price as a short exact decimal, or None. Float noise ends below a femto-dollar and is rounded off."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        return None
    amount = Decimal(value)
    if not amount.is_finite() or amount < 0 or amount > 18000:
        return None
    amount = amount.quantize(FEMTO, ROUND_HALF_UP).normalize()
    if amount == 0:
        return "0"
    _, digits, exponent = amount.as_tuple()
    short = "".join(map(str, digits)) + (f"e{exponent}" if exponent else "")
    plain = format(amount, "f")
    return plain if len(plain) <= len(short) else short


def rates(model):
    found = {}
    for field, value in model.items():
        key, amount = split_field(field), price(value)
        if key and amount is not None:
            found[key] = amount
    for code, field in ALIASES.items():
        amount = price(model.get(field))
        if amount is not None:
            found.setdefault((code, 0, ""), amount)
    for step in model.get("tiered_pricing") or []:
        bounds = step.get("range")
        if not bounds:
            continue
        for field, value in step.items():
            key, amount = split_field(field), price(value)
            if key and amount is not None and key[1] == 0:
                found[(key[0], int(bounds[0]), key[2])] = amount
    shift = 1 if model.get("litellm_provider") in INCLUSIVE else 0
    order = list(METERS)
    words = []
    for (code, above, tier), amount in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), item[0][1], item[0][2])
    ):
        name = code + (f">{above - shift}" if above else "") + (f"/{tier}" if tier else "")
        words.append(f"{name}={amount}")
    return " ".join(words)


def limit(value):
    """A token limit as digits, or nothing when it is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value <= 0:
        return ""
    return str(int(value))


def row(name, model):
    date = str(model.get("deprecation_date") or "")
    cells = [
        name,
        str(model.get("litellm_provider") or ""),
        str(model.get("mode") or ""),
        limit(model.get("max_input_tokens")),
        limit(model.get("max_output_tokens") or model.get("max_tokens")),
        date if re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) else "",
        "".join(letter for letter, field in FLAGS.items() if model.get(field) is True),
        rates(model),
    ]
    if any(re.search(r"[\x00-\x1f]", cell) for cell in cells) or name.startswith("#"):
        sys.exit(f"{name!r}: a control character or a leading # would break the table")
    return "\t".join(cells)


def fetch(version, directory):
    # Other spellings of a release (1.82.7.0, wildcards) would slip past the comparison below.
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is not a release like {VERSION}")
    if version in POISONED:
        sys.exit(f"litellm {version} is a tampered release; refusing to fetch it")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        + ["--dest", directory, f"litellm=={version}"],
        check=True,
    )
    return next(Path(directory).glob("litellm-*.whl"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--version", default=VERSION, help=f"release of litellm to fetch ({VERSION})")
    arguments.add_argument("--wheel", type=Path, help="a wheel that is already here")
    arguments.add_argument("--output", type=Path, default=TARGET)
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        wheel = options.wheel or fetch(options.version, directory)
        version = wheel.name.split("-")[1]
        if version in POISONED:
            sys.exit(f"{wheel.name} is a tampered release; refusing to read it")
        with zipfile.ZipFile(wheel) as archive:
            models = json.loads(archive.read(MEMBER), parse_float=Decimal)
    models.pop("sample_spec", None)
    date = TAKEN if version == VERSION else datetime.date.today().isoformat()

    header = [
        "# Model prices, limits and capabilities. Written by scripts/update-prices.py; do not edit.",
        f"# source: litellm {version} (PyPI), {MEMBER}",
        f"# version: {version}",
        f"# date: {date}",
        "# licence: figures from LiteLLM, Copyright (c) 2023 Berri AI, MIT licence",
        "# columns: name provider mode max_input_tokens max_output_tokens deprecation_date flags prices",
        "# prices: name[>prompt tokens above which it holds][/service tier]=US dollars per unit",
        "# meters: " + " ".join(f"{code}={field}" for code, field in METERS.items()),
        "# flags: " + " ".join(f"{letter}={field}" for letter, field in FLAGS.items()),
    ]
    rows = [row(name, model) for name, model in models.items()]
    rows.sort(key=lambda line: line.split("\t", 1)[0].encode())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(header + rows) + "\n", encoding="utf-8", newline="\n")
    print(f"{options.output}: {len(rows)} models, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
