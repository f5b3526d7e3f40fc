#!/usr/bin/env bash
# Holds what the running gateway tells Langfuse against Langfuse's own SDKs: the names of attributes, and the
# events of the older API. $TOLLKEEPER_BIN, else the newer of the debug and the release build, is tested.
# Takes some seconds. Exit code 1 when something differs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup.sh test
exec .venv-langfuse/bin/python tests/traces/run.py "$@"
