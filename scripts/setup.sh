#!/usr/bin/env bash
# Installs what this machine lacks, and nothing it has.
#
#   scripts/setup.sh build   what a build needs beside Rust
#   scripts/setup.sh soak    that, and the servers that `scripts/soak.sh` breaks
#   scripts/setup.sh test    that, and everything the tests drive Tollkeeper with
#   scripts/setup.sh edge    that, and the tools that look at the edge from outside
#
# Debian packages are asked for by the command or file they bring, Python and
# npm packages by a stamp, so that a second call takes a fraction of a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  echo "usage: scripts/setup.sh [build|soak|test|edge]" >&2
  exit 64
}

say() { echo "setup: $*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "this needs root and there is no sudo: $*"
    exit 77
  fi
}

missing=()
# package, then commands or paths (a glob may match several) it must bring
want() {
  local package=$1 proof
  shift
  for proof in "$@"; do
    case $proof in
      /*) compgen -G "$proof" >/dev/null && continue ;;
      *) command -v "$proof" >/dev/null && continue ;;
    esac
    missing+=("$package")
    return
  done
}

# A server that a package brings must not start by itself: the tests start their
# own on free ports, and a machine that gets Postgres for its tests should not
# find one listening. Debian asks this file before it starts a service.
hold_services() {
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
}

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    say "please install: ${missing[*]} (this is not Debian, so setup cannot)"
    exit 69
  fi
  say "installing ${missing[*]}"
  hold_services
  as_root apt-get -o DPkg::Lock::Timeout=300 -qq update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 -qq -y --no-install-recommends install "${missing[@]}" >&2
  missing=()
}

want_build() {
  want ca-certificates /etc/ssl/certs/ca-certificates.crt
  want cmake cmake
  want gcc gcc cc
  want g++ g++
  want make make
  want pkg-config pkg-config
}

want_servers() {
  # A `postgres` on the PATH may be a wrapper; the tests use Debian's own.
  want postgresql '/usr/lib/postgresql/*/bin/initdb' '/usr/lib/postgresql/*/bin/postgres'
  want python3 python3
  want redis-server redis-server
  # Who runs as root needs this to start Postgres as somebody else.
  want util-linux setpriv
}

want_test() {
  want curl curl
  want espeak-ng espeak-ng
  want jq jq
  want nghttp2-client h2load
  want openssl openssl
  want pebble pebble pebble-challtestsrv
  want procps ps
  want prometheus prometheus promtool
  want python3-venv '/usr/lib/python3*/ensurepip/__init__.py'
}

want_edge() {
  want slowhttptest slowhttptest
  want testssl.sh testssl
}

mode=${1:-test}
[ $# -le 1 ] || usage
case $mode in
  build)
    want_build
    install_missing
    ;;
  soak)
    want_build
    want_servers
    install_missing
    ;;
  test)
    want_build
    want_servers
    want_test
    install_missing
    scripts/setup-clients.sh
    ;;
  edge)
    want_build
    want_servers
    want_test
    want_edge
    install_missing
    scripts/setup-clients.sh edge
    ;;
  *) usage ;;
esac
