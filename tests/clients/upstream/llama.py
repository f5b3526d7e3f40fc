#!/usr/bin/env python3
"""Runs a real llama.cpp server on the tiny model, in this process, on a free loopback port.

Prints one JSON line, {"port": …}, when it answers; ends on SIGTERM, SIGINT or
when its standard input is closed, so that it cannot outlive whoever started it.
"""

import argparse
import tempfile
from pathlib import Path

import xllamacpp

import tiny_gguf
from lifetime import announce, wait_for_end


def parameters(model: Path, embedding: bool) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = tiny_gguf.CONTEXT
    # Noise seldom ends by itself; a call that names no limit still ends soon,
    # and its answer fits into the next turn of a conversation.
    params.n_predict = 256
    params.warmup = False
    params.verbosity = -1
    params.endpoint_metrics = True
    # Equal requests must get equal answers. One slot, one thread and no reuse of
    # an earlier prompt's cache keep every sum in the same order.
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.sampling.seed = 7
    params.sampling.temp = 0.0
    params.model_alias = {"tiny"}
    if embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return params


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--embedding", action="store_true")
    arguments.add_argument("--model", type=Path, help="a GGUF to serve instead of the tiny one")
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            model = Path(scratch) / "tiny.gguf"
            tiny_gguf.write(model)
        server = xllamacpp.Server(parameters(model, options.embedding))
        port = int(server.listening_address.rsplit(":", 1)[1])
        announce({"port": port})
        wait_for_end()
    del server


if __name__ == "__main__":
    main()
