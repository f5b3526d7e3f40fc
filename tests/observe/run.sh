#!/usr/bin/env bash
# Holds the dashboards and alerts of contrib/ against a real Prometheus that scrapes a gateway under load:
# every expression is understood, every metric it names exists, and every panel shows something.
# $TOLLKEEPER_BIN, else the newer of the debug and the release build, is tested. Takes about half a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec python3 tests/observe/run.py "$@"
