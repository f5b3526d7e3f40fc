#!/usr/bin/env bash
# The edge, measured from outside: TLS by testssl and sslyze, load by h2load, the rate limit over real connections,
# slow clients by slowhttptest and by our own, answers by schemathesis, new configs and binaries under load by tests of
# tests/it. $TOLLKEEPER_BIN, else the newer of the debug
# and the release build, is tested. `run.sh short` is the part that `make test` has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ "${1:-}" = short ]; then scripts/setup.sh test; else scripts/setup.sh edge; fi
exec .venv/bin/python tests/edge/run.py "$@"
