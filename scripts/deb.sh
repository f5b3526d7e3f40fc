#!/usr/bin/env bash
# Makes the Debian package: target/package/tollkeeper_*.deb
#
#   scripts/deb.sh            built as releases are
#   scripts/deb.sh release    quickly, to look at the package itself
#
# Man pages and completions are made by the binary that goes into the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${1:-dist}
binary=${CARGO_TARGET_DIR:-target}/$profile/tollkeeper

command -v cargo-deb >/dev/null || cargo install --locked cargo-deb
cargo build --profile "$profile" --locked --bin tollkeeper

rm -rf target/package
mkdir -p target/package
"$binary" man --dir target/package/man
for shell in bash zsh fish; do
  "$binary" completions "$shell" >"target/package/tollkeeper.$shell"
done
cargo deb --no-build --locked --profile "$profile" --output target/package
