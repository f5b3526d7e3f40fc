#!/usr/bin/env bash
# Runs every test there is. Installs what is missing, starts its own servers, leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "what the tests need"
scripts/setup.sh build
scripts/setup.sh test

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "unit, golden and integration tests"
cargo build --locked
cargo test --workspace --locked

step "real clients"
tests/clients/run.sh

step "dashboards and alerts on a real Prometheus"
tests/observe/run.sh

step "traces against Langfuse's SDKs"
tests/traces/run.sh

step "the edge from outside, the short part"
tests/edge/run.sh short

step "answers against the API's descriptions"
tests/schema/run.sh
