#!/usr/bin/env bash
# Measures what a call costs, beside a bare Pingora proxy in the same run.
#
#   scripts/bench.sh           the pure parts, then the whole: three rounds, tests/bench/results.*
#   scripts/bench.sh quick     one short round of the whole, about a minute after the build
#   scripts/bench.sh edge      what the edge's limits add to a call, TLS handshakes beside bare Pingora's
#   scripts/bench.sh watched   what traces and the log's lines add to a call
#   scripts/bench.sh profile   which functions the CPU goes to, governed and under load
#
# BENCH_PROFILE is the cargo profile: `dist` (what images are built with) for the first, `edge` and `watched`,
# `release` for the other two, unless it is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1:-full}
case $mode in
  full | edge | watched) profile=${BENCH_PROFILE:-dist} ;;
  quick | profile) profile=${BENCH_PROFILE:-release} ;;
  *)
    echo "usage: scripts/bench.sh [full|quick|edge|watched|profile]" >&2
    exit 64
    ;;
esac

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing=()
want() { command -v "$2" >/dev/null || compgen -G "$2" >/dev/null || missing+=("$1"); }
want wrk wrk
want openssl openssl
want postgresql '/usr/lib/postgresql/*/bin/initdb'
want python3 python3
want redis-server redis-server
want util-linux setpriv
if [ "$mode" = profile ] && ! command -v valgrind >/dev/null; then want linux-perf perf; fi
if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "bench: please install: ${missing[*]} (this is not Debian, so this script cannot)" >&2
    exit 69
  fi
  echo "bench: installing ${missing[*]}" >&2
  # Debian asks this file before it starts a service: a Postgres for benchmarks stays off.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  as_root apt-get -o DPkg::Lock::Timeout=300 -qq update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 -qq -y --no-install-recommends install "${missing[@]}" >&2
fi

scripts/setup.sh build
cargo build --locked --profile "$profile" --bin tollkeeper --example mock_upstream --example bare_proxy
target=$(cargo metadata --format-version 1 --no-deps --locked |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
[ "$mode" != full ] || cargo bench --locked -p tollkeeper-filters --bench wire
python3 tests/bench/run.py --bin "$target/$profile" --profile "$profile" ${BENCH_BEFORE:+--before "$BENCH_BEFORE"} "$mode"
