#!/usr/bin/env bash
# tests/run.sh: installs what the tests need, and runs all of them.
#
#   tests/run.sh            every step, in order; goes on after a failure, and says at the end what failed
#   tests/run.sh STEP…      only these
#   tests/run.sh --list     names them
#
# A step that cannot run fails; none is skipped. Needs a Rust toolchain, and root for the labs.
set -uo pipefail
HERE=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$HERE" || exit 1
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
# Tools that cargo builds for us, and the log of where the release binary went.
TOOLS=${CARGO_TARGET_DIR:-$HERE/target}/tools
CARGO_DENY_VERSION=0.20.2

# Every step is a function of this name below. To add one, write it and name it here.
STEPS=(
    packages
    shell
    format
    lint
    licences
    documentation
    tests
    labs
    release
    installer
    conformance
    crash
    demo
)

# By name only: they find new things, so that what they say is no verdict on a change. `tests` replays what they found.
MORE=(fuzz)

# What the steps need from outside, nothing if it is there.
packages() {
    scripts/packages.sh build musl run test hypervisor || return 1
    local component
    for component in fmt clippy; do
        if ! cargo "$component" --version >/dev/null 2>&1; then
            rustup component add "${component/fmt/rustfmt}" || return 1
        fi
    done
}

shell() {
    local -a scripts
    mapfile -t scripts < <(find install.sh remotes scripts tests .ci -type f \( -name '*.sh' -o -name launch -o -path '.ci/run' \))
    shellcheck -x "${scripts[@]}"
}

format() { cargo fmt --all --check; }

lint() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

licences() {
    local deny=$TOOLS/bin/cargo-deny
    if command -v cargo-deny >/dev/null; then
        deny=cargo-deny
    elif [[ ! -x $deny ]]; then
        # Without its network features it compiles in a minute; it reads crates, it fetches none.
        cargo install --locked --debug --no-default-features --version "$CARGO_DENY_VERSION" --root "$TOOLS" cargo-deny || return 1
    fi
    # What only tests bring, an async runtime among it, has to have a good licence, but is not in the binary.
    "$deny" check licenses sources && "$deny" --exclude-dev check bans
}

documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps; }

tests() { cargo test --locked --workspace --no-fail-fast; }

# Tests that need root, ssh hosts, loop devices or file systems of their own: tests/lab_<family>.rs, all #[ignore].
# One after the other: they share the machine's devices and ports.
labs() {
    if ! compgen -G 'tests/lab_*.rs' >/dev/null; then
        echo 'no lab is written yet: tests/lab_*.rs'
        return 0
    fi
    [[ $EUID -eq 0 ]] || { echo 'run.sh: The labs need root: sudo tests/run.sh labs' >&2; return 1; }
    cargo test --locked --no-fail-fast --test 'lab_*' -- --ignored --test-threads 1
}

RELEASE=''
release() {
    RELEASE=$(scripts/build.sh) || return 1
    "$RELEASE" --version
    ls -l -- "$RELEASE"
}

installer() {
    # Alone (`tests/run.sh installer`) it builds what it needs.
    [[ -n $RELEASE ]] || release || return 1
    ONESTORE_BIN=$RELEASE tests/install.sh
}

# Links the entries of families that are not complete: the installer leaves those to upstream, but what they serve is judged.
link_partial() {
    local entry
    while IFS= read -r entry; do
        mkdir -p "$1/${entry%/*}"
        [[ -L $1/$entry ]] || ln -s ../../onestore/launch "$1/$entry" || return 1
    done < <("$RELEASE" links)
}

# Our tree, installed as on a front-end, against the cases that judge any tree.
conformance() {
    [[ -n $RELEASE ]] || release || return 1
    local one status
    one=$(mktemp -d) || return 1
    mkdir -p "$one/var/remotes"/{datastore,tm}
    ./install.sh --one-location "$one" --binary "$RELEASE" >/dev/null &&
        link_partial "$one/var/remotes" &&
        cargo run --quiet --locked --package xtask -- conformance --drivers "$one/var/remotes" --ours --jobs 2
    status=$?
    rm -rf -- "$one"
    return "$status"
}

# Kills at points, cuts of the power, and faults, drawn anew from a seed that stands here; docs/reliability.md has the full runs.
crash() {
    [[ $EUID -eq 0 ]] || { echo 'run.sh: The crash harness mounts file systems and needs root' >&2; return 1; }
    cargo build --quiet --locked --workspace || return 1
    local -a xtask=(cargo run --quiet --locked --package xtask -- crash)
    "${xtask[@]}" fs --who self --cases 6 --sample 6 --seed 6 &&
        "${xtask[@]}" qcow2 --who self --cases 6 --sample 6 --seed 6 &&
        "${xtask[@]}" fs --power ext4 --cases 2 --sample 6 --seed 6 &&
        "${xtask[@]}" qcow2 --power ext4 --cases 2 --sample 6 --seed 6 &&
        "${xtask[@]}" fs --fault enospc --fault eio --fault eintr --fault short --cases 2 --sample 4 --seed 6 &&
        "${xtask[@]}" fs --fault eio --case fs/snapshots-qcow2/flatten &&
        "${xtask[@]}" qcow2 --fault enospc --who children --case qcow2/mixed/mvds-snapshot-was-deleted &&
        "${xtask[@]}" qcow2 --fault enospc --who children --case qcow2/snapshots/create-persistent &&
        "${xtask[@]}" qcow2 --lie half --lie flood --lie signal --cases 2 --sample 2 --seed 6 &&
        "${xtask[@]}" ssh --cut from --cases 1 --sample 3 --seed 6 &&
        "${xtask[@]}" fs --hang --case fs/cp-local/raw
}

demo() {
    [[ -n $RELEASE ]] || release || return 1
    ONESTORE_BIN=$RELEASE tests/demo.sh >/dev/null
}

# Every reader of outside bytes for a few seconds on bytes that libFuzzer finds: `cargo xtask fuzz`.
fuzz() {
    scripts/packages.sh fuzz && cargo run --quiet --locked --package xtask -- fuzz --seconds 4
}

# -------------------------------------------------------------------------------------------------------------------

main() {
    local step begin status failed=() all=$SECONDS
    if [[ ${1-} == --list ]]; then
        printf '%s\n' "${STEPS[@]}" "${MORE[@]}"
        return 0
    fi
    for step in "$@"; do
        [[ " ${STEPS[*]} ${MORE[*]} " == *" $step "* ]] || { echo "run.sh: Unknown step '$step': $0 --list names them" >&2; return 2; }
    done
    if [[ $# -eq 0 ]]; then set -- "${STEPS[@]}"; fi
    if ! command -v cargo >/dev/null; then
        echo 'run.sh: No Rust toolchain (cargo) on PATH: install one from https://rustup.rs' >&2
        return 1
    fi
    for step in "$@"; do
        printf '\n==== %s\n' "$step"
        begin=$SECONDS
        "$step"
        status=$?
        if [[ $status -eq 0 ]]; then
            printf '==== %s: passed, %s s\n' "$step" "$((SECONDS - begin))"
        else
            printf '==== %s: FAILED with status %s, %s s\n' "$step" "$status" "$((SECONDS - begin))"
            failed+=("$step")
        fi
    done
    printf '\n==== %s steps, %s failed%s, %s s\n' "$#" "${#failed[@]}" "${failed[*]:+: ${failed[*]}}" "$((SECONDS - all))"
    [[ ${#failed[@]} -eq 0 ]]
}

main "$@"
