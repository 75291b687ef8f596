#!/usr/bin/env bash
# scripts/build.sh: builds the release binary, static, and prints its path as the only line on stdout.
#
# musl where Rust's musl target is installed or rustup can add it within a minute; otherwise a static glibc binary.
# Missing packages are installed first (scripts/packages.sh); with `--no-packages` they are only named.
set -euo pipefail
HERE=$(cd -P -- "${BASH_SOURCE[0]%/*}/.." && pwd)
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }
say() { printf '%s\n' "$*" >&2; }
has() { command -v -- "$1" >/dev/null; }

packages() {
    local missing
    if [[ $INSTALL == yes ]]; then
        "$HERE/scripts/packages.sh" "$@"
    else
        missing=$("$HERE/scripts/packages.sh" --missing "$@")
        [[ -z $missing ]] || fail "Cannot build without packages: missing ${missing//$'\n'/ }; run scripts/packages.sh $*"
    fi
}

target_installed() {
    local dir
    dir=$(rustc --print target-libdir --target "$1" 2>/dev/null) && [[ -d $dir ]] && compgen -G "$dir/libstd-*" >/dev/null
}

# Musl needs Rust's target and the C compiler wrapper; whichever is missing is fetched, and if it cannot be, glibc does.
musl_ready() {
    local target=$1
    if ! target_installed "$target"; then
        [[ $INSTALL == yes ]] && has rustup || return 1
        say "Adding Rust's target $target"
        timeout 60 rustup target add "$target" >&2 || return 1
        target_installed "$target" || return 1
    fi
    (packages musl)
}

INSTALL=yes
if [[ ${1-} == --no-packages ]]; then INSTALL=no; shift; fi
[[ $# -eq 0 ]] || fail "Unknown argument '$1': only --no-packages exists"
if ! has cargo || ! has rustc; then
    fail 'No Rust toolchain (cargo, rustc) on PATH: install one from https://rustup.rs, or give a finished binary with --binary FILE'
fi

machine=$(uname -m)
case $machine in
x86_64 | aarch64) ;;
*) fail "Cannot build for $machine: x86_64 and aarch64 are supported" ;;
esac

packages build
cd -- "$HERE"
if musl_ready "$machine-unknown-linux-musl"; then
    target=$machine-unknown-linux-musl
else
    target=$machine-unknown-linux-gnu
    say 'No musl target here: building a static glibc binary'
    export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }-C target-feature=+crt-static"
fi
say "Building onestore for $target"
cargo build --release --locked --package onestore --target "$target" >&2 ||
    fail "Build for $target failed: see above"

# Where cargo builds is the operator's choice (CARGO_TARGET_DIR, build.target-dir): cargo knows.
metadata=$(cargo metadata --format-version 1 --no-deps --offline)
[[ $metadata =~ \"target_directory\":\"([^\"]+)\" ]] || fail 'Cannot find the target directory: cargo metadata does not name it'
binary=${BASH_REMATCH[1]}/$target/release/onestore
[[ -x $binary ]] || fail "Built, but $binary is not there"
printf '%s\n' "$binary"
