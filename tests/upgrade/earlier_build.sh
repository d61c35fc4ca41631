#!/bin/sh
# Builds the last commit that writes format version 1, and lets it open upgrades that are crashed at every operation.
# Needs the repository's history. Usage: tests/upgrade/earlier_build.sh [states per crash point, default 16]
set -eu
cd "$(dirname "$0")/../.."
commit=c7aae8910067e0eac27f657f87c98571c4d16633
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
    echo "commit $commit is missing: clone the repository with its whole history" >&2
    exit 2
fi
old=target/version-1
mkdir -p "$old"
git archive "$commit" | tar -x -C "$old"
cargo build --release --features cli --manifest-path "$old/Cargo.toml" --target-dir target/version-1-target
cargo run --release -p shardex-sim -- upgrade --old target/version-1-target/release/shardex --states "${1:-16}"
