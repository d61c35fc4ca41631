#!/bin/sh
# Builds the last commits that write format versions 1 and 2, and lets them open upgrades that are crashed at every operation.
# Needs the repository's history. Usage: tests/upgrade/earlier_build.sh [states per crash point, default 16]
set -eu
cd "$(dirname "$0")/../.."
for earlier in 1:c7aae8910067e0eac27f657f87c98571c4d16633 2:f37ba2fba67fd606c2ba82dedc0331199120834c; do
    version=${earlier%%:*}
    commit=${earlier#*:}
    if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
        echo "commit $commit is missing: clone the repository with its whole history" >&2
        exit 2
    fi
    old=target/version-$version
    mkdir -p "$old"
    git archive "$commit" | tar -x -C "$old"
    cargo build --release --features cli --manifest-path "$old/Cargo.toml" --target-dir "$old-target"
    cargo run --release -p shardex-sim -- upgrade --old "$old-target/release/shardex" --version "$version" --states "${1:-16}"
done
