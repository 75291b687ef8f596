#!/usr/bin/env bash
# Puts onestore into an OpenNebula front-end's remotes, and takes it out again. `--help` is the contract.
set -euo pipefail
umask 022
export LC_ALL=C

usage() {
    cat <<'EOF'
install.sh: puts onestore into an OpenNebula front-end's remotes, and takes it out again.

  ./install.sh [--family KIND/MAD]… [--binary FILE] [--dry-run]
      Switches driver families over: all that the binary completely serves, or those named (datastore/fs, tm/qcow2 …;
      `datastore` is the program beside the drivers, downloader.sh).
      A family that is served in part is never switched over. Installed families are kept up to date as well.
      Without --binary: `onestore` beside this script, or else a static build from source (scripts/build.sh),
      for which missing packages are installed (scripts/packages.sh).
      Twice in a row changes nothing. --dry-run says what would change, and changes nothing.

  ./install.sh --uninstall [--family KIND/MAD]… [--force] [--dry-run]
      Puts back what was replaced: content, mode, owner, links and times. Entries that somebody else changed since
      are left alone and named; --force overwrites them.

  ./install.sh --check
      Says what is installed, and who serves which entries. Status 0: consistent; 1: not.

  ./install.sh --demo [ARG]…
      Builds, and runs the main job in a throw-away front-end (tests/demo.sh).

  --one-location DIR   a self-contained OpenNebula in DIR; otherwise $ONE_LOCATION, otherwise the system's.

In the remotes R (/var/lib/one/remotes, or DIR/var/remotes):
  R/onestore/onestore    the binary, once
  R/onestore/launch      the launcher, a few dozen bytes; `onehost sync` copies it once for each entry
  R/KIND/MAD/ACTION      links ../../onestore/launch
  R/datastore/downloader.sh   a link ../onestore/launch
Beside them, not synced to hosts (/var/lib/one/onestore, or DIR/var/onestore):
  manifest               what stood at each path before, written before anything is replaced
  replaced/              the originals

Every change of an entry is one rename: a running cloud never misses one. Killed at any moment, the same command
finishes the work. Needs bash and a base system, nothing else.
EOF
}

# ---- words ------------------------------------------------------------------------------------------------------

HERE=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
TAB=$'\t'
IS_FAMILY='^(datastore|tm)(/[A-Za-z0-9_-]+)?$'

say() { printf '%s\n' "$*"; }
# One line: the object, the cause, the next step.
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

FAMILIES=() # as asked for with --family
BINARY=''
VERB=install
DRY_RUN=no
FORCE=no
DEMO_ARGS=()
ONE=${ONE_LOCATION-}

arguments() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        --family | --binary | --one-location)
            [[ $# -ge 2 && -n $2 ]] || fail "No value for $1: see --help"
            case $1 in
            --family) FAMILIES+=("$2") ;;
            --binary) BINARY=$2 ;;
            --one-location) ONE=$2 ;;
            esac
            shift
            ;;
        --dry-run) DRY_RUN=yes ;;
        --force) FORCE=yes ;;
        --uninstall) VERB=uninstall ;;
        --check) VERB=check ;;
        --demo)
            VERB=demo
            shift
            DEMO_ARGS=("$@")
            break
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "Unknown argument '$1': see --help" ;;
        esac
        shift
    done
    local family
    for family in "${FAMILIES[@]}"; do
        [[ $family =~ $IS_FAMILY ]] ||
            fail "Unknown family '$family': a family is datastore/MAD or tm/MAD, such as datastore/fs, or datastore"
    done
}

# Sets R (remotes), V (var), STATE and KEPT, and refuses what is no front-end.
locate() {
    if [[ -n $ONE ]]; then
        V=$ONE/var
        R=$V/remotes
    else
        V=/var/lib/one
        R=$V/remotes
    fi
    [[ -d $R ]] || fail "No remotes directory $R: run this on the front-end, or name its ONE_LOCATION with --one-location DIR"
    R=$(cd -P -- "$R" && pwd)
    V=$(cd -P -- "$V" && pwd)
    [[ -d $R/datastore && -d $R/tm ]] || fail "$R is no front-end's remotes: it has no datastore and tm directories; check --one-location"
    STATE=$V/onestore
    KEPT=$STATE/replaced
}

# One at a time, by a lock on the directory itself, which leaves no file behind.
lock() {
    exec {LOCK}<"$R" || fail "Cannot read $R: run as root or as its owner"
    if command -v flock >/dev/null; then
        flock -n "$LOCK" || fail "$R is being changed by another install.sh: wait for it to end"
    fi
}

# shellcheck source=scripts/remotes.sh
source "$HERE/scripts/remotes.sh"

# ---- the binary ---------------------------------------------------------------------------------------------------

# Sets BINARY when it was not given.
find_binary() {
    if [[ -n $BINARY ]]; then return 0; fi
    if [[ -f $HERE/onestore ]]; then
        BINARY=$HERE/onestore
    elif [[ -f $HERE/Cargo.toml && $DRY_RUN == yes ]]; then
        BINARY=$("$HERE/scripts/build.sh" --no-packages) || exit 1
    elif [[ -f $HERE/Cargo.toml ]]; then
        "$HERE/scripts/packages.sh" build run || exit 1
        BINARY=$("$HERE/scripts/build.sh") || exit 1
    else
        fail "No binary beside $HERE/install.sh and no source to build it from: give one with --binary FILE"
    fi
}

# Field at OFFSET of an ELF file as bytes in hex.
elf() { od -An -tx1 -j "$2" -N "$3" -- "$1" 2>/dev/null | tr -d ' \n'; }

# Refuses what cannot serve; sets VERSION and fills STATE_OF (family -> state) and COUNT_OF from the binary itself.
declare -A STATE_OF=() COUNT_OF=()
VERSION=''
judge_binary() {
    local binary=$1 built='' family state count families
    [[ -e $binary ]] || fail "No binary $binary: check the name"
    [[ -f $binary && -r $binary ]] || fail "$binary is no readable file: check the name"
    [[ -x $binary ]] || fail "$binary is not executable: chmod 0755 $binary"
    if [[ $(elf "$binary" 0 4) == 7f454c46 ]]; then
        case $(elf "$binary" 18 2) in
        3e00) built=x86_64 ;;
        b700) built=aarch64 ;;
        *) built='another processor' ;;
        esac
        [[ $built == "$(uname -m)" ]] || fail "$binary is built for $built, this machine is $(uname -m): take the binary for this machine"
    fi
    VERSION=$("$binary" --version 2>/dev/null) || fail "$binary does not run on this machine: wrong system, or damaged; build it here (scripts/build.sh)"
    [[ $VERSION =~ ^onestore\ [0-9]+\.[0-9]+\.[0-9]+ ]] || fail "$binary is not onestore: it calls itself '${VERSION%%$'\n'*}'"
    families=$("$binary" families) || fail "$binary does not name its families: it may be damaged; build it again"
    while IFS=$TAB read -r family state count; do
        if [[ -z $family ]]; then continue; fi
        [[ $family =~ $IS_FAMILY ]] || fail "$binary names a family '$family', which is none: it may be damaged; build it again"
        STATE_OF[$family]=$state
        COUNT_OF[$family]=$count
    done <<<"$families"
}

# Sets LINKS to the entries of one complete family.
LINKS=()
links_of() {
    local binary=$1 family=$2 out entry
    LINKS=()
    out=$("$binary" links --family "$family") || fail "$binary does not list the entries of $family: it may be damaged; build it again"
    while IFS= read -r entry; do
        [[ $entry == "$family"/* && ${entry#"$family"/} =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
            fail "$binary lists '$entry' for $family, which is no entry of it: it may be damaged; build it again"
        LINKS+=("$entry")
    done <<<"$out"
}

# ---- install ------------------------------------------------------------------------------------------------------

# The families to serve: asked for (or all complete ones) and those installed before.
choose_families() {
    local family state
    local -a wanted=("${FAMILIES[@]}") installed
    mapfile -t installed < <(installed_families)
    if [[ ${#wanted[@]} -eq 0 ]]; then
        for family in "${!STATE_OF[@]}"; do
            if [[ ${STATE_OF[$family]} == complete ]]; then wanted+=("$family"); fi
        done
        [[ ${#wanted[@]} -gt 0 ]] || fail "$BINARY serves no family completely: nothing can be switched over; take another version"
    fi
    for family in "${wanted[@]}" "${installed[@]}"; do
        state=${STATE_OF[$family]-unknown}
        if [[ $state == complete ]]; then continue; fi
        if [[ " ${wanted[*]} " == *" $family "* ]]; then
            if [[ $state == unknown ]]; then fail "Family $family is not known to $VERSION: see \`onestore families\`"; fi
            fail "Family $family is served in part by $VERSION: upstream's entries stay in place; see \`onestore families\`"
        fi
        fail "Family $family is installed, and $VERSION does not serve it completely: take a newer binary, or first --uninstall --family $family"
    done
    mapfile -t FAMILIES < <(printf '%s\n' "${wanted[@]}" "${installed[@]}" | sort -u | sed '/^$/d')
}

# The plan, made before the first change: what to keep, to link, to give back.
TO_KEEP=()
TO_LINK=()
TO_RETIRE=()
NEW_BINARY=no
declare -A PLANNED=() # entry -> description to record
RENEWED=' '           # families in which a package upgrade was found

plan_install() {
    local family entry why path name
    local -A listed
    for family in "${FAMILIES[@]}"; do
        listed=()
        links_of "$BINARY" "$family"
        [[ ! -L $R/$family ]] || fail "$R/$family is a link to $(readlink -- "$R/$family"): replace it by a directory of its own (cp -a), then run this again"
        [[ -d $R/$family || ! -e $R/$family ]] || fail "$R/$family is not a directory: move it away, then run this again"
        for entry in "${LINKS[@]}"; do
            listed[$entry]=1
            plan_entry "$family" "$entry"
        done
        while IFS= read -r entry; do
            if [[ -n ${listed[$entry]-} ]]; then continue; fi
            TO_RETIRE+=("$entry")
            say "restore $entry (no longer served by $VERSION)"
        done < <(entries_of "$family")
        if [[ $DRY_RUN == yes && $family == */* && -d $R/$family ]]; then
            for path in "$R/$family"/*; do
                name=$family/${path##*/}
                if [[ -n ${listed[$name]-} || -n ${RECORD[$name]-} || ! -e $path ]]; then continue; fi
                why="upstream's"
                if [[ -d $path ]]; then why=directory; elif [[ ! -x $path ]]; then why='not an action'; fi
                say "keep    $name ($why)"
            done
        fi
    done
    for path in onestore launch; do
        name=$BINARY
        if [[ $path == launch ]]; then name=$HERE/remotes/onestore/launch; fi
        [[ -f $name ]] || fail "No launcher $name: unpack the whole release, then run this again"
        if [[ -L $R/onestore/$path || ! -x $R/onestore/$path ]] || ! cmp -s -- "$name" "$R/onestore/$path"; then
            NEW_BINARY=yes
            if [[ $path == onestore ]]; then say "publish onestore/onestore ($VERSION, $(stat -L -c %s -- "$name") bytes)"; else say "publish onestore/launch"; fi
        fi
        describe "$(realpath -- "$name")"
        PLANNED[onestore/$path]=ours$TAB-$TAB-$TAB${D##*"$TAB"}
    done
}

plan_entry() {
    local family=$1 entry=$2 record=${RECORD[$2]-}
    if is_our_link "$R/$entry" && [[ -n $record ]]; then return 0; fi
    TO_LINK+=("$entry")
    if is_ours "$R/$entry"; then
        # Ours, as a copy or without a record: whatever was kept is the original, whatever was not is gone.
        if [[ -z $record ]]; then
            describe "$KEPT/$entry"
            PLANNED[$entry]=$D
        fi
        say "relink  $entry"
        return 0
    fi
    describe "$R/$entry"
    in_words "$D"
    case $D in
    dir* | other*) fail "$R/$entry is neither file nor link: move it away, then run this again" ;;
    none*)
        if [[ -z $record ]]; then
            PLANNED[$entry]=$D
            say "add     $entry"
        else
            say "add     $entry (was removed since)"
        fi
        return 0
        ;;
    esac
    say "replace $entry ($W) -> onestore"
    if [[ $record == "$D" ]]; then return 0; fi
    if [[ -n $record ]]; then
        say "        $entry changed since it was replaced, by a package upgrade perhaps: the new original is kept instead of the old"
        RENEWED+="$family "
    fi
    TO_KEEP+=("$entry")
    PLANNED[$entry]=$D
}

record_directories() {
    local family=$1 path
    for path in . "${family%%/*}" onestore "$family"; do
        if [[ -n ${RECORD[$path/]-} && ! ($path == "$family" && $RENEWED == *" $family "*) ]]; then continue; fi
        describe "$R/$path"
        RECORD[$path/]=$D
    done
}

install() {
    local entry family
    local -a made=()
    find_binary
    [[ $DRY_RUN == yes ]] || lock
    load_manifest
    judge_binary "$BINARY"
    choose_families
    plan_install
    if [[ ${#TO_LINK[@]} -eq 0 && ${#TO_RETIRE[@]} -eq 0 && $NEW_BINARY == no ]]; then
        say "nothing to do: $VERSION serves ${FAMILIES[*]}"
        return 0
    fi
    if [[ $DRY_RUN == yes ]]; then
        say 'dry run: nothing was changed'
        return 0
    fi

    if head -c 4096 -- "$BINARY" | grep -aq /ld-linux; then
        say "note: $BINARY needs a C library like this machine's on every host; a static one (scripts/build.sh) does not"
    fi
    writable "${FAMILIES[@]}"
    sweep
    # First the originals, then the word that they are kept; only then the first change that oned can see.
    for entry in "${TO_KEEP[@]}"; do
        D=${PLANNED[$entry]}
        keep "$entry"
    done
    if [[ ${#TO_KEEP[@]} -gt 0 ]]; then sync_kept; fi
    for family in "${FAMILIES[@]}"; do
        record_directories "$family"
        if [[ ! -d $R/$family ]]; then made+=("$family"); fi
    done
    for entry in "${!PLANNED[@]}"; do RECORD[$entry]=${PLANNED[$entry]}; done
    save_manifest

    # While the old binary, which serves them, is still there.
    retire
    make_directory "$R/onestore"
    publish_file "$BINARY" "$R/onestore/onestore"
    publish_file "$HERE/remotes/onestore/launch" "$R/onestore/launch"
    for family in "${FAMILIES[@]}"; do make_directory "$R/$family"; done
    for entry in "${TO_LINK[@]}"; do publish_link "$R/$entry"; done

    say "done: $VERSION serves ${FAMILIES[*]} in $R; originals are kept in $KEPT"
    say "next: 'onehost sync --force' brings it to the hosts; oned needs no restart, it calls the same paths"
    for family in "${made[@]}"; do
        say "next: oned does not know $family yet: add ${family#*/} to the driver lists of oned.conf and restart oned"
    done
}

# Entries that this version does not serve any more go back to upstream.
retire() {
    local entry
    for entry in "${TO_RETIRE[@]}"; do
        if is_ours "$R/$entry"; then put_back "$entry"; fi
        unset "RECORD[$entry]"
    done
    if [[ ${#TO_RETIRE[@]} -gt 0 ]]; then
        save_manifest
        drop_kept "${TO_RETIRE[@]}"
    fi
}

# ---- uninstall ----------------------------------------------------------------------------------------------------

uninstall() {
    local entry family path left=0 left_here
    local -a entries gone=() families=()
    [[ $DRY_RUN == yes ]] || lock
    load_manifest
    if [[ ${#RECORD[@]} -eq 0 ]]; then
        for path in "$R"/{datastore,tm}/{,*/}*; do
            if is_our_link "$path"; then
                fail "$path is onestore's, but $STATE/manifest is missing: bring it back from a backup, or reinstall OpenNebula's package"
            fi
        done
        say "nothing to do: onestore is not installed in $R"
        # A run that was killed before its first change, or after its last, may have left copies.
        [[ $DRY_RUN == yes ]] || remove_state
        return 0
    fi
    mapfile -t families < <(installed_families)
    for family in "${FAMILIES[@]}"; do
        [[ " ${families[*]} " == *" $family "* ]] || fail "Family $family is not installed: installed are ${families[*]}"
    done
    [[ ${#FAMILIES[@]} -gt 0 ]] || FAMILIES=("${families[@]}")
    if [[ $DRY_RUN == no ]]; then
        writable "${FAMILIES[@]}"
        sweep
    fi

    for family in "${FAMILIES[@]}"; do
        left_here=$left
        mapfile -t entries < <(entries_of "$family")
        for entry in "${entries[@]}"; do
            describe "$R/$entry"
            if [[ $D != "${RECORD[$entry]}" ]]; then
                if ! is_ours "$R/$entry" && [[ $D != none* ]] && [[ $FORCE == no || $D == dir* || $D == other* ]]; then
                    in_words "$D"
                    say "leave   $entry ($W): changed since by somebody else"
                    left=$((left + 1))
                    continue
                fi
                in_words "${RECORD[$entry]}"
                if [[ ${RECORD[$entry]} == none* ]]; then say "remove  $entry"; else say "restore $entry ($W)"; fi
                [[ $DRY_RUN == yes ]] || put_back "$entry"
            fi
            gone+=("$entry")
        done
        if [[ $DRY_RUN == yes ]]; then continue; fi
        if [[ ${RECORD[$family/]} == none* && -d $R/$family ]]; then
            rmdir -- "$R/$family" 2>/dev/null || say "leave   $family: other files stand in it"
        fi
        if [[ $left -eq "$left_here" ]]; then restore_time "$family/"; fi
    done
    if [[ $DRY_RUN == yes ]]; then
        say 'dry run: nothing was changed'
        return 0
    fi

    for entry in "${gone[@]}"; do unset "RECORD[$entry]"; done
    for family in "${FAMILIES[@]}"; do
        # The time of `datastore` itself is given back last.
        if [[ $family == */* && -z $(entries_of "$family") ]]; then unset "RECORD[$family/]"; fi
    done
    if ! any_ours; then
        remove_binary
        for path in datastore/ tm/ ./; do restore_time "$path"; done
    fi
    if [[ -z $(recorded_entries) ]]; then
        # The manifest goes last: until then the next run knows what to do.
        remove_state
        say "done: onestore is no longer in $R"
    else
        save_manifest
        drop_kept "${gone[@]}"
        if [[ $left -eq 0 ]]; then
            mapfile -t families < <(installed_families)
            say "done: ${FAMILIES[*]} restored; onestore still serves ${families[*]}"
        fi
    fi
    if [[ $left -gt 0 ]]; then
        fail "$left entries were left as somebody else made them: --uninstall --force puts the originals of $KEPT back, or remove $STATE to keep them as they are"
    fi
    say "next: 'onehost sync --force' brings the change to the hosts"
}

# Does a recorded entry still need the binary?
any_ours() {
    local entry
    while IFS= read -r entry; do
        if is_ours "$R/$entry"; then return 0; fi
    done < <(recorded_entries)
    return 1
}

remove_binary() {
    local path
    for path in "$R"/{datastore,tm}/{,*/}*; do
        if is_our_link "$path"; then
            say "leave   onestore/: $path still points to it, and was not made by install.sh"
            return 0
        fi
    done
    rm -f -- "$R/onestore/onestore" "$R/onestore/launch"
    if [[ -d $R/onestore ]]; then
        rmdir -- "$R/onestore" 2>/dev/null || say "leave   onestore/: other files stand in it"
    fi
}

remove_state() {
    rm -f -- "$STATE/manifest" "$STATE/.manifest.new"
    rm -rf -- "$KEPT"
    if [[ -d $STATE ]]; then
        rmdir -- "$STATE" 2>/dev/null || say "leave   $STATE: other files stand in it"
    fi
}

# ---- check --------------------------------------------------------------------------------------------------------

check() {
    local family entry path binary=$R/onestore/onestore wrong=0 ours theirs missing changed
    local -a families entries
    local -A listed
    problem() {
        say "problem: $*"
        wrong=1
    }
    load_manifest
    if [[ ${#RECORD[@]} -eq 0 ]]; then
        for path in "$R"/onestore/* "$R"/{datastore,tm}/{,*/}*; do
            if is_our_link "$path" || [[ $path == "$R/onestore/"* && -e $path ]]; then
                fail "$path is onestore's, but $STATE/manifest is missing: run install.sh again"
            fi
        done
        say "onestore is not installed in $R: upstream serves all entries"
        return 0
    fi
    if [[ ! -x $binary ]]; then
        problem "No binary $binary: run install.sh again"
    else
        judge_binary "$binary"
        say "$VERSION in $R"
    fi
    for path in onestore launch; do
        describe "$R/onestore/$path"
        if [[ ${D##*"$TAB"} != "${RECORD[onestore/$path]##*"$TAB"}" ]]; then
            problem "onestore/$path is not what was installed: run install.sh again"
        fi
    done

    printf '%-24s %-10s %7s %9s %9s %8s %8s\n' family state entries onestore upstream missing changed
    mapfile -t families < <({
        installed_families
        if [[ ${#STATE_OF[@]} -gt 0 ]]; then printf '%s\n' "${!STATE_OF[@]}"; fi
    } | sort -u)
    for family in "${families[@]}"; do
        ours=0 theirs=0 missing=0 changed=0
        mapfile -t entries < <(entries_of "$family")
        if [[ -z ${RECORD[$family/]-} || ${#entries[@]} -eq 0 ]]; then
            # Not ours: whatever can be called there is upstream's; beside the drivers, what we would serve.
            for path in "$R/$family"/*; do
                if [[ $family != */* && $path != */downloader.sh ]]; then continue; fi
                if is_our_link "$path"; then
                    ours=$((ours + 1))
                    problem "$family/${path##*/} is onestore's, but not recorded: run install.sh --family $family"
                elif [[ -f $path && -x $path ]]; then
                    theirs=$((theirs + 1))
                fi
            done
            printf '%-24s %-10s %7s %9s %9s %8s %8s\n' "$family" "${STATE_OF[$family]}" "${COUNT_OF[$family]}" "$ours" "$theirs" - -
            continue
        fi
        listed=()
        if [[ ${STATE_OF[$family]-} == complete ]]; then
            links_of "$binary" "$family"
            for entry in "${LINKS[@]}"; do
                listed[$entry]=1
                [[ -n ${RECORD[$entry]-} ]] || problem "$entry is served by the binary, but not switched over: run install.sh again"
            done
        elif [[ -n $VERSION ]]; then
            problem "$family is installed, but $VERSION does not serve it completely: install a newer binary"
        fi
        for entry in "${entries[@]}"; do
            describe "$R/$entry"
            if is_ours "$R/$entry"; then
                ours=$((ours + 1))
            elif [[ $D == "${RECORD[$entry]}" && $D != none* ]]; then
                theirs=$((theirs + 1))
                problem "$entry is upstream's, though $family is switched over: run install.sh again"
            elif [[ $D == none* ]]; then
                missing=$((missing + 1))
                problem "$entry is missing: run install.sh again"
            else
                changed=$((changed + 1))
                in_words "$D"
                problem "$entry was changed since by somebody else ($W): run install.sh again to switch it over, the change is kept"
            fi
            describe "$KEPT/$entry"
            [[ $D == "${RECORD[$entry]}" ]] || problem "The kept original $KEPT/$entry is damaged: it cannot be restored exactly"
        done
        printf '%-24s %-10s %7s %9s %9s %8s %8s\n' "$family" installed "${#entries[@]}" "$ours" "$theirs" "$missing" "$changed"
    done
    if [[ $wrong -eq 0 ]]; then say 'consistent'; fi
    return "$wrong"
}

# ---- demo ---------------------------------------------------------------------------------------------------------

demo() {
    [[ -x $HERE/tests/demo.sh ]] || fail "No demo $HERE/tests/demo.sh: run this from a source tree that has it"
    find_binary
    ONESTORE_BIN=$BINARY exec "$HERE/tests/demo.sh" "${DEMO_ARGS[@]}"
}

# -------------------------------------------------------------------------------------------------------------------

arguments "$@"
if [[ $VERB == demo ]]; then
    demo
else
    locate
    "$VERB"
fi
