#!/usr/bin/env bash
# Breaks everything around a built gateway, and the gateway itself, and looks whether the promises hold.
#
#   scripts/soak.sh                                     all of it, about five minutes after the build
#   scripts/soak.sh calls|budgets|delete|import ...     parts of it
#   scripts/soak.sh short                               a small `calls`, under a minute
#   scripts/soak.sh langfuse                            a Langfuse that is dead for ten minutes (SOAK_MINUTES)
#
# SOAK_PROFILE is the cargo profile: `release` unless it is set. SOAK_SEED repeats what another run drew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for part in "$@"; do
  case $part in
    calls | budgets | delete | import | short | langfuse) ;;
    *)
      echo "usage: scripts/soak.sh [calls|budgets|delete|import|short|langfuse ...]" >&2
      exit 64
      ;;
  esac
done

scripts/setup.sh soak
profile=${SOAK_PROFILE:-release}
cargo build --locked --profile "$profile" --bin tollkeeper
target=$(cargo metadata --format-version 1 --no-deps --locked |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
# The profile of debug builds is called dev.
[ "$profile" != dev ] || profile=debug
exec python3 tests/soak/run.py --bin "$target/$profile/tollkeeper" ${SOAK_SEED:+--seed "$SOAK_SEED"} "$@"
