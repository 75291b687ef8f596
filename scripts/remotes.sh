# shellcheck shell=bash
# scripts/remotes.sh: the remotes directory as install.sh sees it: what stands at a path, the manifest of what stood
# there before, and the small steps that change an entry. Sourced by install.sh, which sets R, V, STATE, KEPT and fail.

# What an entry of ours points to: KIND/MAD/ACTION, and a program beside the drivers, KIND/NAME. Sets LINK.
link_of() {
    if [[ ${1#"$R"/} == */*/* ]]; then LINK=../../onestore/launch; else LINK=../onestore/launch; fi
}

# ---- what stands at a path ----------------------------------------------------------------------------------------

# Sets D to `file MODE UID:GID SHA256`, `link - UID:GID TARGET`, `dir - - MTIME`, `none - - -` or `other - - -`, tab separated.
describe() {
    local path=$1 mode owner rest
    if [[ -L $path ]]; then
        owner=$(stat -c %u:%g -- "$path")
        rest=$(readlink -- "$path")
        [[ $rest != *[$'\t\n']* ]] || fail "Cannot record $path: its target holds a tab or a newline; replace the link"
        D=link$TAB-$TAB$owner$TAB$rest
    elif [[ -f $path ]]; then
        [[ -r $path ]] || fail "Cannot read $path: permission denied; run as root or as its owner"
        read -r mode owner < <(stat -c '%a %u:%g' -- "$path")
        rest=$(sha256sum <"$path")
        D=file$TAB$mode$TAB$owner$TAB${rest%% *}
    elif [[ -d $path ]]; then
        rest=$(stat -c %.9Y -- "$path")
        D=dir$TAB-$TAB-$TAB$rest
    elif [[ -e $path ]]; then
        D=other$TAB-$TAB-$TAB-
    else
        D=none$TAB-$TAB-$TAB-
    fi
}

# The same for people: sets W.
# shellcheck disable=SC2034 # read by install.sh
in_words() {
    local what mode owner rest
    IFS=$TAB read -r what mode owner rest <<<"$1"
    case $what in
    file) W="file, 0$mode $owner, sha256 ${rest:0:12}" ;;
    link) W="link to $rest, $owner" ;;
    none) W=nothing ;;
    *) W=$what ;;
    esac
}

is_our_link() {
    link_of "$1"
    [[ -L $1 && $(readlink -- "$1") == "$LINK" ]]
}
# Ours as well: the copy of the launcher that stands here after somebody copied remotes/ with links followed.
is_ours() {
    if is_our_link "$1"; then return 0; fi
    [[ ! -L $1 && -f $1 && -f $R/onestore/launch ]] && cmp -s -- "$1" "$R/onestore/launch"
}

# ---- the manifest: what stood there before ------------------------------------------------------------------------

# Path relative to R -> description. Directories end in a slash. `onestore/onestore` and `onestore/launch` describe ours.
declare -A RECORD=()

load_manifest() {
    local path what
    [[ -f $STATE/manifest ]] || return 0
    [[ -r $STATE/manifest ]] || fail "Cannot read $STATE/manifest: permission denied; run as root or as its owner"
    while IFS=$TAB read -r path what; do
        [[ $path == '#'* || -z $path ]] || RECORD[$path]=$what
    done <"$STATE/manifest"
}

# Prints the recorded paths that match the patterns, sorted.
recorded() {
    local path pattern
    for path in "${!RECORD[@]}"; do
        for pattern in "$@"; do
            # shellcheck disable=SC2053 # a pattern is meant
            if [[ $path == $pattern ]]; then printf '%s\n' "$path"; fi
        done
    done | sort
}

recorded_entries() { recorded 'datastore/*[!/]' 'tm/*[!/]'; }
# The recorded entries of one family: those directly in its folder.
entries_of() {
    local entry
    while IFS= read -r entry; do
        if [[ ${entry%/*} == "$1" ]]; then printf '%s\n' "$entry"; fi
    done < <(recorded_entries)
}
# `datastore` and `tm` themselves are folders of every front-end: a family only with a program in it.
installed_families() {
    {
        recorded 'datastore/*/' 'tm/*/' | sed 's,/$,,'
        recorded_entries | sed -n 's,^\([^/]*\)/[^/]*$,\1,p'
    } | sort -u
}

save_manifest() {
    local path text
    text=$(
        printf '# What stood in %s before onestore: path, kind, mode, owner, sha256 or link target or time.\n' "$R"
        while IFS= read -r path; do printf '%s\t%s\n' "$path" "${RECORD[$path]}"; done < <(recorded '*')
    )
    if [[ -f $STATE/manifest && $(<"$STATE/manifest") == "$text" ]]; then return 0; fi
    make_directory "$STATE"
    printf '%s\n' "$text" >"$STATE/.manifest.new"
    give_owner "$STATE/.manifest.new"
    sync -- "$STATE/.manifest.new"
    mv -T -- "$STATE/.manifest.new" "$STATE/manifest"
    sync -- "$STATE"
}

# ---- small steps that change something ----------------------------------------------------------------------------

# What we add belongs to the owner of the remotes.
give_owner() {
    if [[ $EUID -eq 0 ]]; then chown --no-dereference --reference="$R" -- "$1"; fi
}

make_directory() {
    if [[ -d $1 ]]; then return 0; fi
    make_directory "${1%/*}"
    mkdir -m 0755 -- "$1"
    give_owner "$1"
}

# Temporary name beside a path. One fixed name each: what a killed run left is found again, and swept.
temporary() { printf '%s/.onestore.%s.new' "${1%/*}" "${1##*/}"; }

sweep() {
    local leftover
    for leftover in "$R"/{datastore,tm}/{,*/}.onestore.*.new "$R"/onestore/.onestore.*.new; do
        if [[ -e $leftover || -L $leftover ]]; then rm -f -- "$leftover"; fi
    done
}

# Copies an original beside the manifest, exactly or not at all. D holds its description.
keep() {
    local entry=$1 before=$D new
    make_directory "$KEPT/${entry%/*}"
    new=$(temporary "$KEPT/$entry")
    rm -f -- "$new"
    cp -a -T -- "$R/$entry" "$new"
    describe "$new"
    if [[ $D != "$before" ]]; then
        rm -f -- "$new"
        fail "Cannot keep $R/$entry as it is (owner or mode would be lost): run as root"
    fi
    mv -T -- "$new" "$KEPT/$entry"
}

# The manifest must not survive a power cut that the originals do not survive.
sync_kept() {
    local -a files
    mapfile -d '' -t files < <(find "$KEPT" ! -type l -print0)
    sync -- "${files[@]}"
}

publish_link() {
    local path=$1 new
    new=$(temporary "$path")
    link_of "$path"
    ln -sfn -T -- "$LINK" "$new"
    give_owner "$new"
    mv -T -- "$new" "$path"
}

# A running binary is never written to: the new one takes its name.
publish_file() {
    local from=$1 to=$2 new
    if [[ ! -L $to && -f $to && -x $to ]] && cmp -s -- "$from" "$to"; then return 0; fi
    new=$(temporary "$to")
    cp -T -- "$from" "$new"
    chmod 0755 -- "$new"
    give_owner "$new"
    sync -- "$new"
    mv -T -- "$new" "$to"
}

# Puts the kept original back, or removes the entry where nothing was. The kept copy stays until the manifest forgets it.
put_back() {
    local entry=$1 new
    if [[ ${RECORD[$entry]} == none* ]]; then
        rm -f -- "$R/$entry"
        return 0
    fi
    make_directory "$R/${entry%/*}"
    new=$(temporary "$R/$entry")
    rm -f -- "$new"
    cp -a -T -- "$KEPT/$entry" "$new" || fail "Cannot restore $R/$entry: its kept original $KEPT/$entry is not usable; reinstall OpenNebula's package"
    describe "$new"
    if [[ $D != "${RECORD[$entry]}" ]]; then
        rm -f -- "$new"
        fail "Cannot restore $R/$entry exactly: $KEPT/$entry changed, or its owner cannot be given; run as root"
    fi
    mv -T -- "$new" "$R/$entry"
}

# After the manifest was saved without them.
drop_kept() {
    local entry
    for entry in "$@"; do
        rm -f -- "$KEPT/$entry"
        rmdir --ignore-fail-on-non-empty -p -- "$KEPT/${entry%/*}" 2>/dev/null || true
    done
}

restore_time() {
    local path=$1
    if [[ ${RECORD[$path]-} == dir* && -d $R/$path ]]; then
        touch -d "@${RECORD[$path]##*"$TAB"}" -- "$R/$path"
    fi
}

# Refuses before the first change. Arguments: families.
writable() {
    local path
    local -a paths=("$R" "$V" "$R/datastore" "$R/tm" "$R/onestore" "$STATE")
    for path in "$@"; do paths+=("$R/$path"); done
    for path in "${paths[@]}"; do
        [[ ! -d $path || -w $path ]] || fail "Cannot write to $path: it belongs to $(stat -c %U -- "$path"); run as root or as its owner"
    done
}
