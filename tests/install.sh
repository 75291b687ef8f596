#!/usr/bin/env bash
# tests/install.sh: the installer against front-ends made up in a temporary directory.
#
# Most cases use a stand-in for the binary, which says how it was called; the last ones use the real one:
# $ONESTORE_BIN, or target/debug/onestore. Runs as root (owners differ, then) or as anyone. Leaves nothing behind.
# `tests/install.sh PATTERN` runs only the cases whose function name matches.
# shellcheck disable=SC2016 # the stand-in is written with its own dollars
set -uo pipefail
export LC_ALL=C
unset ONE_LOCATION
umask 022
HERE=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PATTERN=${1-.}

TMP=$(mktemp -d)
trap 'rm -rf -- "$TMP"' EXIT
trap 'exit 130' INT TERM HUP
# An account of its own may have to pass through here.
chmod 0755 "$TMP"

# ---- harness ------------------------------------------------------------------------------------------------------

PASSED=0
FAILED=0
ok() { PASSED=$((PASSED + 1)); printf 'ok    %s\n' "$1"; }
ko() { FAILED=$((FAILED + 1)); printf 'FAIL  %s\n' "$1"; [[ -z ${2-} ]] || printf '%s\n' "$2" | sed 's/^/      /' | head -n 25; }
expect() { # NAME COMMAND…
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then ok "$name"; else ko "$name" "$*"$'\n'"$out"; fi
}
same() { # NAME WANTED GOT
    if [[ $2 == "$3" ]]; then ok "$1"; else ko "$1" "$(diff <(printf '%s\n' "$2") <(printf '%s\n' "$3"))"; fi
}
says() { # NAME TEXT: the last run of `run` printed it
    if [[ $OUT == *"$2"* ]]; then ok "$1"; else ko "$1" "wanted: $2"$'\n'"got: $OUT"; fi
}
# Runs the installer on the front-end $ONE. Sets OUT and RC.
run() { OUT=$("$HERE/install.sh" --one-location "$ONE" "$@" 2>&1 </dev/null); RC=$?; }
succeeds() { # NAME ARG…
    local name=$1
    shift
    run "$@"
    if [[ $RC -eq 0 ]]; then ok "$name"; else ko "$name" "status $RC: $OUT"; fi
}
# Fails with exactly one line that holds the text.
refuses() { # NAME TEXT ARG…
    local name=$1 text=$2
    shift 2
    run "$@"
    if [[ $RC -eq 1 && $(wc -l <<<"$OUT") -eq 1 && $OUT == *"$text"* ]]; then ok "$name"; else ko "$name" "status $RC: $OUT"; fi
}
# Everything that can be seen of a tree; sizes of directories are the file system's affair.
fingerprint() {
    (
        cd -- "$1" || exit
        find . -type d -printf '%p %y %m %U:%G %T@\n' -o -printf '%p %y %m %U:%G %T@ %s %l\n' | sort
        find . -type f -print0 | sort -z | xargs -0r sha256sum
    )
}

# ---- fixtures -----------------------------------------------------------------------------------------------------

script() { # PATH MODE
    mkdir -p -- "${1%/*}"
    printf '#!/bin/sh\necho "upstream %s"\n' "${1##*/}" >"$1"
    chmod "$2" -- "$1"
}

# A front-end with what is found in real ones, and some odd things. Its path holds a blank.
front_end() {
    ONE="$TMP/$1/an open nebula"
    R=$ONE/var/remotes
    STATE=$ONE/var/onestore
    local action
    mkdir -p -- "$R/etc/datastore/fs"
    for action in clone cp mkfs monitor rm stat; do script "$R/datastore/fs/$action" 0755; done
    chmod 0750 -- "$R/datastore/fs/cp"
    chmod 4711 -- "$R/datastore/fs/mkfs"
    mv -- "$R/datastore/fs/stat" "$R/datastore/fs-stat"
    ln -s ../fs-stat "$R/datastore/fs/stat"
    printf 'key=1\n' >"$R/datastore/fs/fs.conf"
    script "$R/datastore/libfs.sh" 0644
    for action in cp monitor; do script "$R/datastore/dummy/$action" 0755; done
    for action in clone clone.ssh premigrate; do script "$R/tm/qcow2/$action" 0755; done
    script "$R/tm/ssh/clone" 0755
    script "$R/tm/ssh/ssh_utils.sh" 0644
    script "$R/tm/tm_common.sh" 0644
    chmod 0770 -- "$R/tm/qcow2"
    if [[ $EUID -eq 0 ]]; then
        chown -Rh 9869:9869 -- "$ONE/var"
        chown 0:9869 -- "$R/datastore/fs/rm"
        chmod 4711 -- "$R/datastore/fs/mkfs"
    fi
    find "$R" -depth -exec touch -h -d '2023-05-06 07:08:09.123456789' -- {} +
    BEFORE=$(fingerprint "$R")
}

# A binary that serves FAMILY=STATE:ACTION,ACTION… and says how it was called.
stand_in() { # FILE VERSION SPEC…
    local file=$1 version=$2 spec family state actions
    shift 2
    {
        printf '#!/bin/sh\n# %s\ncase $1 in\n--version) echo "onestore %s" ;;\nfamilies)\n' "$version" "$version"
        for spec in "$@"; do
            family=${spec%%=*} state=${spec#*=} actions=${spec##*:}
            printf "printf '%%s\\\\t%%s\\\\t%%s\\\\n' %s %s %s\n" "$family" "${state%%:*}" "$(tr ',' '\n' <<<"$actions" | wc -l)"
        done
        printf ';;\nlinks) case $3 in\n'
        for spec in "$@"; do
            family=${spec%%=*} actions=${spec##*:}
            printf '%s) for a in %s; do echo %s/$a; done ;;\n' "$family" "${actions//,/ }" "$family"
        done
        cat <<'EOF'
esac ;;
--as) as=$2; shift 2
    action=${as##*/}; dir=$(cd "${as%/*}" && pwd -P); mad=${dir##*/}; dir=${dir%/*}
    case $as in /*) ;; *) echo "not absolute: $as"; exit 9 ;; esac
    printf 'served %s/%s/%s' "${dir##*/}" "$mad" "$action"
    for a in "$@"; do printf ' [%s]' "$a"; done
    [ "$1" != cat ] || cat
    [ "$1" != fail ] || exit 7
    echo ;;
*) exit 2 ;;
esac
EOF
    } >"$file"
    chmod 0755 -- "$file"
}

FS=datastore/fs=complete:clone,cp,mkfs,monitor,rm,stat
QCOW2=tm/qcow2=complete:clone,clone.ssh,premigrate,pre_backup
NEW=tm/new=complete:clone,ln
SSH=tm/ssh=partial:clone
BIN=$TMP/onestore-1
stand_in "$BIN" 1.0.0 "$FS" "$QCOW2" "$NEW" "$SSH"
ENTRIES=(datastore/fs/{clone,cp,mkfs,monitor,rm,stat} tm/qcow2/{clone,clone.ssh,premigrate,pre_backup} tm/new/{clone,ln})

# Every entry of the tree answers as itself.
all_served() { # ROOT
    local entry
    for entry in "${ENTRIES[@]}"; do
        same_quietly "served $entry [7]" "$("$1/$entry" 7 2>&1)" || return 1
    done
}
same_quietly() { [[ $1 == "$2" ]] || { printf 'wanted: %s\ngot: %s\n' "$1" "$2"; return 1; }; }

# ---- cases --------------------------------------------------------------------------------------------------------

case_dry_run() {
    front_end dry
    local before
    before=$(fingerprint "$TMP/dry")
    succeeds 'dry run' --dry-run --binary "$BIN"
    says 'dry run names what is replaced' 'replace datastore/fs/cp (file, 0750 '
    says 'dry run names links' 'replace datastore/fs/stat (link to ../fs-stat, '
    says 'dry run names what is added' 'add     tm/qcow2/pre_backup'
    says 'dry run names what stays' 'keep    datastore/fs/fs.conf (not an action)'
    same 'dry run changes nothing' "$before" "$(fingerprint "$TMP/dry")"
}

case_install() {
    local before entry
    front_end first
    succeeds 'install' --binary "$BIN"
    says 'install names the next step' 'onehost sync --force'
    says 'install says that oned must learn of a new family' 'oned does not know tm/new yet'
    expect 'every entry is served' all_served "$R"
    same 'entries are links' ../../onestore/launch "$(readlink -- "$R/datastore/fs/cp")"
    same 'a family in part stays with upstream' 'upstream clone' "$("$R/tm/ssh/clone")"
    same 'a family that is not served stays with upstream' 'upstream cp' "$("$R/datastore/dummy/cp")"
    expect 'originals are kept' test -f "$STATE/replaced/datastore/fs/cp" -a ! -e "$STATE/replaced/tm/new/clone"
    same 'everything belongs to the owner of remotes' "$(stat -c %u:%g -- "$R")" \
        "$(find "$R/onestore" "$R/datastore/fs/cp" "$R/tm/new" "$STATE" -path "$STATE/replaced/*" -prune -o -printf '%U:%G\n' | sort -u)"

    before=$(fingerprint "$ONE")
    succeeds 'install twice' --binary "$BIN"
    says 'install twice says so' 'nothing to do'
    same 'install twice changes nothing' "$before" "$(fingerprint "$ONE")"

    succeeds 'check' --check
    says 'check names the version' 'onestore 1.0.0'
    says 'check: who serves what' "$(printf '%-24s %-10s %7s %9s %9s %8s %8s' datastore/fs installed 6 6 0 0 0)"
    says 'check: a family in part' "$(printf '%-24s %-10s %7s %9s %9s %8s %8s' tm/ssh partial 1 0 1 - -)"
    says 'check is content' consistent
    rm -- "$R/datastore/fs/rm"
    run --check
    same 'check: missing entry, status' 1 "$RC"
    says 'check: missing entry, named' 'problem: datastore/fs/rm is missing'
    succeeds 'install again puts it back' --binary "$BIN"
    expect 'every entry is served again' all_served "$R"
    printf 'x' >>"$STATE/replaced/datastore/fs/cp"
    run --check
    says 'check: damaged original' "problem: The kept original $STATE/replaced/datastore/fs/cp is damaged"
    truncate -s -1 -- "$STATE/replaced/datastore/fs/cp"
    touch -d '2023-05-06 07:08:09.123456789' -- "$STATE/replaced/datastore/fs/cp"

    succeeds 'uninstall' --uninstall
    same 'uninstall restores the tree' "$BEFORE" "$(fingerprint "$R")"
    expect 'uninstall leaves no state' test ! -e "$STATE"
    succeeds 'check after uninstall' --check
    succeeds 'uninstall twice' --uninstall
    says 'uninstall twice says so' 'nothing to do'
    same 'uninstall twice changes nothing' "$BEFORE" "$(fingerprint "$R")"
}

case_calls() {
    local copy
    front_end calls
    run --binary "$BIN"
    same 'call: arguments survive' $'served datastore/fs/cp [a b] [$(id)] [] [x\ny] [-n]' "$("$R/datastore/fs/cp" 'a b' '$(id)' '' $'x\ny' -n)"
    same 'call: stdin passes' 'served datastore/fs/cp [cat]hello' "$(printf hello | "$R/datastore/fs/cp" cat)"
    "$R/datastore/fs/cp" fail >/dev/null
    same 'call: status passes' 7 $?
    same 'call: relative' 'served datastore/fs/cp' "$(cd -- "$R/datastore/fs" && ./cp)"
    same 'call: relative, from further up' 'served datastore/fs/cp' "$(cd -- "$R" && datastore/fs/cp)"
    same 'call: without a slash' 'served datastore/fs/cp' "$(cd -- "$R/datastore/fs" && sh cp)"
    same 'call: by an empty PATH element' 'served datastore/fs/clone' "$(cd -- "$R/datastore/fs" && PATH=":$PATH" clone)"
    same 'call: by PATH' 'served datastore/fs/clone' "$(PATH="$R/datastore/fs:$PATH" clone)"
    same 'call: through another family' 'served tm/qcow2/premigrate' "$("$R/tm/ssh/../qcow2/premigrate")"
    same 'call: relative through another family' 'served tm/qcow2/premigrate' "$(cd -- "$R/tm/ssh" && ../qcow2/premigrate)"
    same 'call: with a wrong PWD' 'served datastore/fs/cp' "$(cd -- "$R/datastore/fs" && env PWD=/nowhere ./cp)"
    ln -s -- "$R/tm/qcow2" "$TMP/calls/elsewhere"
    same 'call: from a directory reached by a link' 'served tm/qcow2/clone' "$(cd -- "$TMP/calls/elsewhere" && ./clone)"
    same 'call: mixed mode name' 'served tm/qcow2/clone.ssh' "$("$R/tm/qcow2/clone.ssh")"
    same 'call: by bash as sh' 'served datastore/fs/cp' "$(cd -- "$R/datastore/fs" && bash --posix cp)"

    # What `onehost sync` makes on a host.
    copy=$TMP/calls/var-tmp-one
    cp -RL -- "$R" "$copy"
    expect 'copy with links followed: no links' test -z "$(find "$copy" -type l)"
    expect 'copy with links followed: every entry is served there' all_served "$copy"
    mv -- "$R" "$R.away"
    expect 'copy with links followed: without the front-end' all_served "$copy"
    mv -- "$R.away" "$R"
}

# Grows by at most one binary and 5 MB, with every upstream entry switched over.
case_copy_size() {
    local family fat plain grown binary
    local -a spec=()
    ONE=$TMP/size
    R=$ONE/var/remotes
    for family in datastore/{a,b,c,d,e,f} tm/{a,b,c,d,e,f}; do
        spec+=("$family=complete:$(seq -s, -f 'action%g' 1 32)")
        mkdir -p -- "$R/$family"
    done
    stand_in "$TMP/big" 1.0.0 "${spec[@]}"
    # An 8 MB binary; what follows `exit` is not read.
    printf 'exit 0\n' >>"$TMP/big"
    head -c 8000000 /dev/urandom >>"$TMP/big"
    cp -RL -- "$R" "$TMP/size-plain"
    run --binary "$TMP/big"
    same 'size: 384 entries are installed' 384 "$(find "$R/datastore" "$R/tm" -type l | wc -l)"
    cp -RL -- "$R" "$TMP/size-copy"
    fat=$(du -sB1 -- "$TMP/size-copy" | cut -f1)
    plain=$(du -sB1 -- "$TMP/size-plain" | cut -f1)
    binary=$(stat -c %s -- "$TMP/big")
    grown=$((fat - plain - binary))
    if [[ $grown -le 5000000 ]]; then ok "size: a dereferenced copy grows by the binary and $grown bytes"; else ko 'size: a dereferenced copy' "$grown bytes"; fi
    rm -rf -- "$TMP/size-copy" "$TMP/size-plain"
}

case_upgrade() {
    local inode
    front_end upgrade
    run --binary "$BIN"
    stand_in "$TMP/onestore-2" 2.0.0 datastore/fs=complete:clone,cp,mkfs,monitor,rm,export "$QCOW2" "$NEW" "$SSH"
    inode=$(stat -c %i -- "$R/onestore/onestore")
    exec 8<"$R/onestore/onestore"
    succeeds 'upgrade' --binary "$TMP/onestore-2" --family datastore/fs
    same 'upgrade: the new version answers' 'onestore 2.0.0' "$("$R/onestore/onestore" --version)"
    expect 'upgrade: a running binary is not written to' cmp -s /dev/fd/8 "$BIN"
    exec 8<&-
    if [[ $inode != "$(stat -c %i -- "$R/onestore/onestore")" ]]; then ok 'upgrade: by rename'; else ko 'upgrade: by rename'; fi
    same 'upgrade: a new entry' 'served datastore/fs/export' "$("$R/datastore/fs/export")"
    same 'upgrade: an entry that is not served any more is upstream'\''s' ../fs-stat "$(readlink -- "$R/datastore/fs/stat")"
    succeeds 'upgrade: check' --check
    stand_in "$TMP/onestore-3" 3.0.0 "$FS" tm/qcow2=partial:clone "$NEW"
    refuses 'upgrade: not to a binary that serves an installed family in part' 'Family tm/qcow2 is installed' --binary "$TMP/onestore-3" --family datastore/fs
    succeeds 'upgrade: check after the refusal' --check
    run --uninstall
    same 'upgrade: uninstall restores the tree' "$BEFORE" "$(fingerprint "$R")"
}

# The package manager replaces our links by a new version's scripts.
case_package_upgrade() {
    local action
    front_end package
    run --binary "$BIN"
    for action in cp rm; do
        script "$R/datastore/fs/.$action.dpkg-new" 0711
        printf 'echo newer\n' >>"$R/datastore/fs/.$action.dpkg-new"
        mv -T -- "$R/datastore/fs/.$action.dpkg-new" "$R/datastore/fs/$action"
    done
    touch -d 2024-01-01 -- "$R/datastore/fs"
    cp -a -- "$R/datastore/fs/cp" "$TMP/package/cp.new"
    run --check
    same 'package upgrade: check, status' 1 "$RC"
    says 'package upgrade: check names it' 'problem: datastore/fs/cp was changed since by somebody else'
    succeeds 'package upgrade: install again' --binary "$BIN"
    says 'package upgrade: the new original is kept' 'datastore/fs/cp changed since it was replaced'
    expect 'package upgrade: every entry is served' all_served "$R"
    succeeds 'package upgrade: check is content' --check
    succeeds 'package upgrade: uninstall' --uninstall
    same 'package upgrade: uninstall restores the new original' "$(fingerprint_of "$TMP/package/cp.new")" "$(fingerprint_of "$R/datastore/fs/cp")"
    same 'package upgrade: the directory has its new time' "$(date -d 2024-01-01 +%s)" "$(stat -c %Y -- "$R/datastore/fs")"
    same 'package upgrade: the rest is as before' "$(grep -v 'datastore/fs\( \|/cp\|/rm\)' <<<"$BEFORE" | grep -v -- '-stat$')" \
        "$(fingerprint "$R" | grep -v 'datastore/fs\( \|/cp\|/rm\)' | grep -v -- '-stat$')"
}
fingerprint_of() { stat -c '%a %u:%g %y %s' -- "$1" && sha256sum <"$1"; }

case_changed_by_others() {
    local mine
    front_end changed
    run --binary "$BIN"
    rm -- "$R/datastore/fs/cp"
    script "$R/datastore/fs/cp" 0755
    printf 'echo mine\n' >>"$R/datastore/fs/cp"
    mine=$(fingerprint_of "$R/datastore/fs/cp")
    run --uninstall
    same 'changed: uninstall, status' 1 "$RC"
    says 'changed: uninstall names it' 'leave   datastore/fs/cp (file, 0755 '
    same 'changed: it is left' "$mine" "$(fingerprint_of "$R/datastore/fs/cp")"
    same 'changed: the others are restored' 'upstream monitor' "$("$R/datastore/fs/monitor")"
    expect 'changed: its original is still kept' test -f "$STATE/replaced/datastore/fs/cp"
    expect 'changed: the binary is gone' test ! -e "$R/onestore"
    succeeds 'changed: by force' --uninstall --force
    same 'changed: by force, the tree is restored' "$BEFORE" "$(fingerprint "$R")"
    expect 'changed: by force, no state is left' test ! -e "$STATE"

    run --binary "$BIN"
    rm -- "$STATE/manifest"
    refuses 'lost manifest: uninstall' 'manifest is missing' --uninstall
    refuses 'lost manifest: check' 'manifest is missing' --check
    succeeds 'lost manifest: install finds the kept originals' --binary "$BIN"
    run --uninstall
    same 'lost manifest: contents come back' "$(grep -v ' d ' <<<"$BEFORE")" "$(fingerprint "$R" | grep -v ' d ')"
}

case_families() {
    front_end families
    local before
    before=$(fingerprint "$ONE")
    refuses 'family: in part' 'Family tm/ssh is served in part' --binary "$BIN" --family datastore/fs --family tm/ssh
    refuses 'family: not known' 'Family tm/ceph is not known' --binary "$BIN" --family tm/ceph
    refuses 'family: no family' "Unknown family '../fs'" --binary "$BIN" --family ../fs
    same 'family: a refusal changes nothing' "$before" "$(fingerprint "$ONE")"
    succeeds 'family: one' --binary "$BIN" --family tm/qcow2
    same 'family: another stays' 'upstream cp' "$("$R/datastore/fs/cp")"
    succeeds 'family: the next' --binary "$BIN" --family datastore/fs --family tm/new
    succeeds 'family: check' --check
    refuses 'family: uninstall of one that is not installed' 'Family tm/ssh is not installed' --uninstall --family tm/ssh
    succeeds 'family: uninstall one' --uninstall --family datastore/fs
    same 'family: it is upstream again' 'upstream cp' "$("$R/datastore/fs/cp")"
    same 'family: the other is ours' 'served tm/qcow2/clone' "$("$R/tm/qcow2/clone")"
    succeeds 'family: check again' --check
    succeeds 'family: uninstall the rest' --uninstall
    same 'family: the tree is restored' "$BEFORE" "$(fingerprint "$R")"
}

case_refusals() {
    local before
    front_end refusals
    before=$(fingerprint "$ONE")
    refuses 'refuses: no binary' "No binary $TMP/none" --binary "$TMP/none"
    cp -- "$BIN" "$TMP/refusals/plain"
    chmod 0644 -- "$TMP/refusals/plain"
    refuses 'refuses: not executable' 'is not executable' --binary "$TMP/refusals/plain"
    printf '\177ELF\002\001\001\0\0\0\0\0\0\0\0\0\002\0\363\0\001\0\0\0' >"$TMP/refusals/other"
    chmod 0755 -- "$TMP/refusals/other"
    refuses 'refuses: another processor' "is built for another processor, this machine is $(uname -m)" --binary "$TMP/refusals/other"
    cp -- /bin/true "$TMP/refusals/true"
    refuses 'refuses: another program' 'is not onestore' --binary "$TMP/refusals/true"
    stand_in "$TMP/refusals/bad" 1.0.0 'datastore/fs=complete:../../../etc/passwd'
    refuses 'refuses: entries outside of the family' "which is no entry of it" --binary "$TMP/refusals/bad"
    refuses 'refuses: unknown argument' "Unknown argument '--frobnicate'" --frobnicate
    refuses 'refuses: value missing' 'No value for --binary' --binary
    mv -- "$R/tm/qcow2" "$R/tm/real"
    ln -s real "$R/tm/qcow2"
    refuses 'refuses: a family that is a link to another' 'tm/qcow2 is a link to real' --binary "$BIN" --family tm/qcow2
    rm -- "$R/tm/qcow2"
    mv -- "$R/tm/real" "$R/tm/qcow2"
    mkdir -- "$R/tm/new"
    mkdir -- "$R/tm/new/ln"
    run --binary "$BIN" --family tm/new
    says 'refuses: a directory where an entry should be' 'tm/new/ln is neither file nor link'
    rmdir -- "$R/tm/new/ln" "$R/tm/new"
    touch -d '2023-05-06 07:08:09.123456789' -- "$R/tm"
    exec 7<"$R"
    flock 7
    # Without the descriptor: a child that holds it would hold the lock as well.
    refuses 'refuses: two at once' 'is being changed by another install.sh' --binary "$BIN" 7<&-
    exec 7<&-
    ONE=$TMP/refusals/nothing
    refuses 'refuses: no remotes' 'No remotes directory' --binary "$BIN"
    mkdir -p -- "$ONE/var/remotes"
    refuses 'refuses: not a front-end'\''s remotes' "is no front-end's remotes" --binary "$BIN"
    ONE="$TMP/refusals/an open nebula"
    if [[ $EUID -eq 0 ]]; then
        chmod 0755 -- "$R/tm/qcow2"
        OUT=$(setpriv --reuid=65534 --regid=65534 --clear-groups "$HERE/install.sh" --one-location "$ONE" --binary "$BIN" --family tm/qcow2 2>&1 | tail -n 1)
        says 'refuses: not writable' 'Cannot write to '
        chmod 0770 -- "$R/tm/qcow2"
    fi
    same 'refuses: nothing was changed' "$(grep -v -e '^\./var/remotes/tm/qcow2 d' <<<"$before")" "$(fingerprint "$ONE" | grep -v -e '^\./var/remotes/tm/qcow2 d')"
}

# The cloud's admin user can do it as well, as long as nothing belongs to somebody else.
case_as_admin() {
    local -a as=()
    front_end admin
    if [[ $EUID -eq 0 ]]; then
        as=(setpriv --reuid=9869 --regid=9869 --clear-groups)
        OUT=$("${as[@]}" "$HERE/install.sh" --one-location "$ONE" --binary "$BIN" 2>&1)
        says 'as admin: an original of root cannot be kept exactly' 'run as root'
        run --check
        says 'as admin: nothing was switched over' 'not installed'
        chown 9869:9869 -- "$R/datastore/fs/rm"
        BEFORE=$(fingerprint "$R")
    fi
    OUT=$("${as[@]}" "$HERE/install.sh" --one-location "$ONE" --binary "$BIN" 2>&1)
    says 'as admin: install' 'done: onestore 1.0.0'
    expect 'as admin: every entry is served' all_served "$R"
    OUT=$("${as[@]}" "$HERE/install.sh" --one-location "$ONE" --uninstall 2>&1)
    same 'as admin: the tree is restored' "$BEFORE" "$(fingerprint "$R")"
}

# Kills the installer before each command that changes something, one run for each, and looks at every entry there.
case_killed() {
    local verb jobs=0 point failed
    stand_in "$TMP/killed-1" 1.0.0 datastore/fs=complete:cp,rm,stat tm/new=complete:clone
    stand_in "$TMP/killed-2" 2.0.0 datastore/fs=complete:cp,rm,export tm/new=complete:clone
    cat >"$TMP/hook" <<'EOF'
# Read by the installer's bash (BASH_ENV): counts the commands that change something, and dies at one of them.
set -T
hook_count=0
hook() {
    case $BASH_COMMAND in
    mv\ * | cp\ * | ln\ * | rm\ * | mkdir\ * | rmdir\ * | touch\ * | chmod\ * | chown\ * | sync\ * | printf*new\") ;;
    *) return 0 ;;
    esac
    hook_count=$((hook_count + 1))
    for hook_entry in $HOOK_ENTRIES; do
        [[ -x $HOOK_ROOT/$hook_entry ]] || echo "missing: $hook_entry, before $hook_count: $BASH_COMMAND" >>"$HOOK_REPORT"
    done
    if [[ $hook_count == "$HOOK_DIE_AT" ]]; then kill -9 $$; fi
}
trap hook DEBUG
EOF
    for verb in install upgrade uninstall; do
        point=0
        rm -f -- "$TMP/killed.failed" "$TMP/killed.end"
        : >"$TMP/killed.failed"
        while [[ ! -e $TMP/killed.end ]]; do
            point=$((point + 1))
            if [[ $jobs -ge $(nproc) ]]; then wait -n; else jobs=$((jobs + 1)); fi
            (kill_at "$verb" "$point" || printf '%s at %s\n' "$verb" "$point") >"$TMP/killed.$point" 2>&1 &
            if [[ $point -gt 200 ]]; then break; fi
        done
        wait
        jobs=0
        failed=$(cat -- "$TMP"/killed.[0-9]*)
        rm -f -- "$TMP"/killed.[0-9]*
        if [[ -z $failed && -e $TMP/killed.end && $point -gt 20 ]]; then
            ok "killed: $verb, at each of its $(cat "$TMP/killed.end") steps"
        else
            ko "killed: $verb" "$failed"
        fi
    done
}
kill_at() { # VERB POINT: prints what is wrong
    local verb=$1 point=$2 status
    trap - EXIT
    front_end "killed-$verb-$point"
    case $verb in
    install) set -- --binary "$TMP/killed-1" ;;
    upgrade) run --binary "$TMP/killed-1"; set -- --binary "$TMP/killed-2" ;;
    uninstall) run --binary "$TMP/killed-1"; set -- --uninstall ;;
    esac
    {
        BASH_ENV=$TMP/hook HOOK_DIE_AT=$point HOOK_ROOT=$R HOOK_REPORT=$TMP/killed-$verb-$point/report \
            HOOK_ENTRIES='datastore/fs/cp datastore/fs/rm datastore/fs/stat tm/qcow2/clone' \
            "$HERE/install.sh" --one-location "$ONE" "$@" >"$TMP/killed-$verb-$point/out" 2>&1
        status=$?
    } 2>/dev/null # Bash's own word that it was killed.
    if [[ -e $TMP/killed-$verb-$point/report ]]; then cat -- "$TMP/killed-$verb-$point/report"; fi
    if [[ $status -eq 0 ]]; then
        [[ -e $TMP/killed.end ]] || printf '%s' "$((point - 1))" >"$TMP/killed.end"
    elif [[ $status -ne 137 ]]; then
        echo "status $status: $(<"$TMP/killed-$verb-$point/out")"
    fi
    run "$@"
    [[ $RC -eq 0 ]] || echo "second run: $RC: $OUT"
    run --check
    [[ $RC -eq 0 ]] || echo "check: $RC: $OUT"
    if [[ $verb != uninstall ]]; then
        [[ $("$R/datastore/fs/cp") == 'served datastore/fs/cp' && $("$R/tm/new/clone") == 'served tm/new/clone' ]] || echo 'not served'
        if [[ -n $(find "$ONE/var" -name '.*.new') ]]; then find "$ONE/var" -name '.*.new'; fi
        run --uninstall
        [[ $RC -eq 0 ]] || echo "uninstall: $RC: $OUT"
    fi
    [[ ! -e $STATE ]] || echo "state is left: $(find "$STATE")"
    same_quietly "$BEFORE" "$(fingerprint "$R")" >"$TMP/killed-$verb-$point/diff" || diff <(printf '%s\n' "$BEFORE") <(fingerprint "$R")
    rm -rf -- "$TMP/killed-$verb-$point"
}

# An unpacked release: the binary beside the script, no source.
case_release() {
    local release=$TMP/release/dir installer=$HERE
    front_end release
    mkdir -- "$release"
    cp -R -- "$HERE/install.sh" "$HERE/scripts" "$HERE/remotes" "$release"
    HERE=$release
    refuses 'release: neither binary nor source' "No binary beside $release/install.sh"
    refuses 'release: no demo' "No demo $release/tests/demo.sh" --demo
    cp -- "$BIN" "$release/onestore"
    succeeds 'release: install' --family datastore/fs
    same 'release: serves' 'served datastore/fs/cp' "$("$R/datastore/fs/cp")"
    OUT=$(cd / && ONE_LOCATION=$ONE "$release/install.sh" --uninstall 2>&1)
    same 'release: uninstall by ONE_LOCATION restores the tree' "$BEFORE" "$(fingerprint "$R")"
    HERE=$installer
}

# A program beside the drivers stands one folder higher than their entries.
case_program() {
    local answer
    front_end program
    script "$R/datastore/downloader.sh" 0750
    touch -d '2023-05-06 07:08:09.123456789' -- "$R/datastore/downloader.sh" "$R/datastore"
    BEFORE=$(fingerprint "$R")
    stand_in "$TMP/program/onestore" 1.0.0 datastore=complete:downloader.sh datastore/fs=complete:cp,stat
    succeeds 'program: install it alone' --binary "$TMP/program/onestore" --family datastore
    same 'program: a link' ../onestore/launch "$(readlink -- "$R/datastore/downloader.sh")"
    expect 'program: drivers stay' test ! -L "$R/datastore/fs/cp"
    answer=$(cd -- "$R/datastore" && ./downloader.sh 'a b' -)
    same 'program: it is served' "served ${R##*/}/datastore/downloader.sh [a b] [-]" "$answer"
    answer=$("$R/datastore/fs/../downloader.sh" x)
    same 'program: through a driver'"'"'s folder' "served ${R##*/}/datastore/downloader.sh [x]" "$answer"
    succeeds 'program: check' --check
    succeeds 'program: install the drivers as well' --binary "$TMP/program/onestore"
    same 'program: entries of drivers are links' ../../onestore/launch "$(readlink -- "$R/datastore/fs/cp")"
    succeeds 'program: check both' --check
    succeeds 'program: uninstall it alone' --uninstall --family datastore
    expect 'program: it is back' test -f "$R/datastore/downloader.sh" -a ! -L "$R/datastore/downloader.sh"
    expect 'program: the drivers stay ours' test -L "$R/datastore/fs/cp"
    succeeds 'program: check the rest' --check
    succeeds 'program: uninstall the rest' --uninstall
    same 'program: uninstall restores the tree' "$BEFORE" "$(fingerprint "$R")"
}

# The binary that this project builds.
case_real_binary() {
    local real=${ONESTORE_BIN:-${CARGO_TARGET_DIR:-$HERE/target}/debug/onestore} entry families family copy message answer
    local -a chosen left=()
    if [[ ! -x $real ]]; then
        ko 'real: the binary' "$real is not there: cargo build, or set ONESTORE_BIN"
        return
    fi
    front_end real
    while IFS= read -r entry; do
        mkdir -p -- "$R/${entry%/*}"
        [[ -e $R/$entry ]] || script "$R/$entry" 0755
    done < <("$real" links)
    # Entries that stay upstream's: they read what stands beside them and one folder higher.
    for entry in tm/{qcow2,shared,ssh,local}/{prebackup,prebackup_live,postbackup,postbackup_live,restore}; do
        mkdir -p -- "$R/${entry%/*}"
        printf '#!/bin/sh\n. "$(dirname "$0")/../tm_common.sh" && echo "left %s $1"\n' "${entry##*/}" >"$R/$entry"
        chmod 0755 -- "$R/$entry"
        left+=("$entry")
    done
    if [[ $EUID -eq 0 ]]; then chown -Rh 9869:9869 -- "$ONE/var"; fi
    BEFORE=$(fingerprint "$R")
    families=$("$real" families | awk -F'\t' '$2 == "complete" { print $1 }')
    if [[ -n $families ]]; then ok "real: serves ${families//$'\n'/ }"; else ko 'real: serves a family'; return; fi
    succeeds 'real: install' --binary "$real"
    succeeds 'real: check' --check
    # Of complete families: others are served by hand only.
    chosen=()
    for family in $families; do chosen+=(--family "$family"); done
    same 'real: as many links as entries' "$("$real" links "${chosen[@]}" | sort)" "$(cd -- "$R" && find datastore tm -type l -lname '*/onestore/launch' | sort)"
    message=''
    for entry in "${left[@]}"; do
        answer=$("$R/$entry" 7 2>&1 | tail -n 1)
        [[ ! -L $R/$entry && $answer == "left ${entry##*/} 7" ]] || message+="$entry: $answer"$'\n'
    done
    same 'real: what stays upstream'"'"'s runs beside ours' '' "$message"
    copy=$TMP/real/copy
    cp -RL -- "$R" "$copy"
    message='' answer=''
    # Without arguments an entry fails with a line of its own: a loader's or a shell's failure is 126 or 127.
    while IFS= read -r entry; do
        answer=$(timeout 20 "$copy/$entry" 2>&1 </dev/null)
        case $? in
        124 | 126 | 127 | 13[0-9]) message+="$entry: $answer"$'\n' ;;
        esac
        [[ $answer != *launch:* ]] || message+="$entry: $answer"$'\n'
    done < <("$real" links)
    same 'real: every entry of a dereferenced copy starts' '' "$message"
    if [[ $'\n'$families$'\n' == *$'\n'datastore/dummy$'\n'* ]]; then
        message='<DS_DRIVER_ACTION_DATA><DATASTORE><ID>1</ID><DS_MAD>dummy</DS_MAD><BASE_PATH>/nowhere</BASE_PATH></DATASTORE></DS_DRIVER_ACTION_DATA>'
        answer=$(printf %s "$message" | base64 -w0 | "$copy/datastore/dummy/monitor" 1 2>&1 | tr '\n' ' ')
        if [[ $answer == *USED_MB=*FREE_MB=*TOTAL_MB=* || $answer == *TOTAL_MB=*FREE_MB=* ]]; then ok 'real: datastore/dummy/monitor answers'; else ko 'real: datastore/dummy/monitor answers' "$answer"; fi
    fi
    succeeds 'real: install twice' --binary "$real"
    says 'real: install twice says so' 'nothing to do'
    succeeds 'real: uninstall' --uninstall
    same 'real: uninstall restores the tree' "$BEFORE" "$(fingerprint "$R")"
}

# -------------------------------------------------------------------------------------------------------------------

for one in $(declare -F | awk '$3 ~ /^case_/ { print $3 }' | grep -v case_real_binary) case_real_binary; do
    if [[ $one =~ $PATTERN ]]; then "$one"; fi
done
printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
[[ $FAILED -eq 0 && $PASSED -gt 0 ]]
