#!/usr/bin/env bash
# Holds the running gateway against two descriptions of its API: its own /openapi.json, and the plain one that
# clients of LiteLLM were given. $TOLLKEEPER_BIN, else the newer of the debug and the release build, is tested.
# Takes about two minutes. Exit code 1 when an answer breaks its description.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup.sh test
exec .venv/bin/python tests/schema/run.py "$@"
