#!/usr/bin/env bash
# Every client test against $TOLLKEEPER_BIN (default: the newer of the debug and
# the release build), on SQLite and on Postgres ($DATABASE_URL, else a throw-away
# one). The last line is `N passed, N failed`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup.sh test
exec .venv/bin/python tests/clients/run.py "$@"
