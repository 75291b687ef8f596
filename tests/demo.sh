#!/usr/bin/env bash
# tests/demo.sh: the main job in a throw-away front-end, without oned: every call as oned makes it, and its answer.
#
# Called by `install.sh --demo`, which builds the binary first (ONESTORE_BIN). Leaves nothing behind.
set -euo pipefail
HERE=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C
: "${ONESTORE_BIN:?is set by install.sh --demo}"

"$HERE/scripts/packages.sh" run

WORK=$(mktemp -d /var/tmp/onestore-demo.XXXXXX)
SERVER=
# shellcheck disable=SC2317 # called by the trap
end() {
    [[ -z $SERVER ]] || { kill "$SERVER" && wait "$SERVER"; } 2>/dev/null || true
    rm -rf -- "$WORK"
}
trap end EXIT
trap 'exit 130' INT TERM HUP

export ONE_LOCATION=$WORK/one ONESTORE_LOCK_DIR=$WORK/lock ONESTORE_ONED=dir:$WORK/oned
REMOTES=$ONE_LOCATION/var/remotes
BASE=$ONE_LOCATION/var//datastores/1
USERS=$WORK/users
mkdir -p "$REMOTES"/{datastore,tm} "$USERS" "$WORK/oned"

bold() { if [[ -t 1 ]]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
title() { printf '\n'; bold "== $*"; }

# payload IMAGE_XML: the document that oned sends, for a datastore that keeps qcow2 images
payload() {
    printf '<DS_DRIVER_ACTION_DATA><IMAGE>%s</IMAGE><DATASTORE><ID>1</ID><NAME>default</NAME><TYPE>0</TYPE>' "$1"
    printf '<DS_MAD>fs</DS_MAD><TM_MAD>qcow2</TM_MAD><BASE_PATH><![CDATA[%s]]></BASE_PATH>' "$BASE"
    printf '<TEMPLATE><SAFE_DIRS><![CDATA[%s]]></SAFE_DIRS><RESTRICTED_DIRS>/</RESTRICTED_DIRS>' "$USERS"
    printf '<DRIVER>qcow2</DRIVER></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>'
}

# call ACTION ID IMAGE_XML: one call; its answer on stdout is left in ANSWER
ANSWER=
call() {
    local action=$1 id=$2 status=0 begin end
    payload "$3" | base64 -w 0 >"$WORK/stdin"
    printf '\n$ remotes/datastore/fs/%s %s   < %s\n' "$action" "$id" "$3"
    begin=$(date +%s%N)
    "$REMOTES/datastore/fs/$action" "$id" <"$WORK/stdin" >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
    end=$(date +%s%N)
    ANSWER=$(<"$WORK/stdout")
    sed 's/^/  log     /' "$WORK/stderr"
    if [[ -n $ANSWER ]]; then sed 's/^/  answer  /' "$WORK/stdout"; fi
    printf '  status  %s after %s ms\n' "$status" "$(((end - begin) / 1000000))"
    return "$status"
}

expect() { # expect WHAT TEST…: says what was checked, and stops the demo when it does not hold
    local what=$1
    shift
    if "$@"; then printf '  ok      %s\n' "$what"; else printf '  WRONG   %s\n' "$what"; exit 1; fi
}
format_of() { qemu-img info --output=json "$1" | sed -n 's/.*"format": "\([a-z0-9]*\)".*/\1/p' | tail -n 1; }
same_content() { qemu-img compare -q -f "$1" -F "$2" "$3" "$4" >/dev/null; }

title 'Install into a throw-away front-end'
"$HERE/install.sh" --one-location "$ONE_LOCATION" --binary "$ONESTORE_BIN"

title "What a user brings: a qcow2 image, and a compressed raw image on a web server"
qemu-img create -q -f raw "$WORK/disk.raw" 64M
head -c 5000000 /dev/urandom | dd of="$WORK/disk.raw" bs=1M seek=8 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$WORK/disk.raw" "$USERS/debian.qcow2"
gzip -c "$WORK/disk.raw" >"$USERS/debian.raw.gz"
md5=$(md5sum <"$USERS/debian.raw.gz" | cut -d' ' -f1)
ls -l "$USERS"
# One file, one request at a time: enough, because an image is fetched once.
perl -e '
    use IO::Socket::INET; $| = 1;
    my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 0, ReuseAddr => 1) or die $!;
    open my $p, ">", $ARGV[1] or die $!; print $p $s->sockport; close $p;
    open my $log, ">>", $ARGV[2] or die $!; select $log; $| = 1;
    local $SIG{PIPE} = "IGNORE";
    while (my $c = $s->accept) {
        my $request = <$c>; while (my $line = <$c>) { last if $line =~ /^\r?$/ }
        print $log $request;
        open my $f, "<:raw", $ARGV[0] or die $!;
        print $c "HTTP/1.1 200 OK\r\nContent-Length: " . (-s $f) . "\r\nConnection: close\r\n\r\n";
        while (read $f, my $block, 65536) { print $c $block or last }
        close $c;
    }' "$USERS/debian.raw.gz" "$WORK/port" "$WORK/requests" &
SERVER=$!
for _ in $(seq 100); do [[ -s $WORK/port ]] && break; sleep 0.05; done
URL=http://127.0.0.1:$(<"$WORK/port")/debian.raw.gz

title 'Register the local qcow2: how large, then copy'
call stat 1 "<PATH>$USERS/debian.qcow2</PATH>"
expect 'the guest sees 64 MiB' test "$ANSWER" = 64
call cp 7 "<ID>7</ID><TYPE>0</TYPE><PATH>$USERS/debian.qcow2</PATH>"
read -r LOCAL FORMAT <<<"$ANSWER"
expect 'it is qcow2' test "$FORMAT" = qcow2
expect 'its content is the same' same_content qcow2 raw "$LOCAL" "$WORK/disk.raw"

title 'What the same call would do, without doing it'
payload "<ID>7</ID><TYPE>0</TYPE><PATH>$USERS/debian.qcow2</PATH>" | "$REMOTES/onestore/onestore" explain ds fs cp 7 | sed 's/^/  /'

title 'Register the compressed image over HTTP: one request, digest checked, unpacked, converted'
: >"$WORK/requests"
call cp 8 "<ID>8</ID><TYPE>0</TYPE><PATH>$URL</PATH><TEMPLATE><MD5>$md5</MD5></TEMPLATE>"
read -r REMOTE FORMAT <<<"$ANSWER"
expect 'it is qcow2' test "$FORMAT" = qcow2
expect 'its content is the same' same_content qcow2 raw "$REMOTE" "$WORK/disk.raw"
expect 'the server was asked once' test "$(wc -l <"$WORK/requests")" = 1

title 'Make an empty data block with a file system'
call mkfs 9 '<ID>9</ID><TYPE>2</TYPE><FORMAT>qcow2</FORMAT><FS>ext4</FS><SIZE>32</SIZE>'
expect 'it is qcow2' test "$(format_of "$ANSWER")" = qcow2

title 'Clone'
call clone 10 "<ID>10</ID><TYPE>0</TYPE><PATH>$LOCAL</PATH>"
read -r CLONE _ <<<"$ANSWER"
expect 'its content is the same' same_content qcow2 qcow2 "$CLONE" "$LOCAL"

title 'Snapshots: the layers a VM left behind, set back and merged'
mkdir "$CLONE.snap"
ln -s "$CLONE" "$CLONE.snap/0"
ln -s . "$CLONE.snap/$(basename "$CLONE").snap"
qemu-img create -q -f qcow2 -F qcow2 -b "$CLONE.snap/0" "$CLONE.snap/1"
qemu-io -f qcow2 -c 'write -P 0xaa 1M 64k' "$CLONE.snap/1" >/dev/null
expect 'a VM wrote to it after the snapshot' test "$(same_content qcow2 qcow2 "$CLONE.snap/1" "$LOCAL" && echo same || echo changed)" = changed
SNAP="<ID>10</ID><SOURCE>$CLONE</SOURCE><FORMAT>qcow2</FORMAT><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>"
call snap_revert 10 "$SNAP"
expect 'what the VM wrote is gone' same_content qcow2 qcow2 "$CLONE.snap/1" "$LOCAL"
call snap_flatten 10 "$SNAP"
expect 'one file is left, with the snapshot'"'"'s content' same_content qcow2 qcow2 "$CLONE" "$LOCAL"
expect 'no snapshots are left' test ! -e "$CLONE.snap"

title 'Export for a marketplace'
call export 7 "<ID>7</ID><SOURCE>$LOCAL</SOURCE><SIZE>64</SIZE>"

title 'Monitor the datastore'
call monitor 1 ''

title 'What must not come in: a qcow2 that reads a file of the host'
qemu-img create -q -u -f qcow2 -F raw -b /etc/hostname "$USERS/crafted.qcow2" 1M
if call cp 11 "<ID>11</ID><TYPE>0</TYPE><PATH>$USERS/crafted.qcow2</PATH>"; then exit 1; fi
expect 'it was refused' test -z "$ANSWER"

title 'Remove everything'
for image in "7 $LOCAL" "8 $REMOTE" "10 $CLONE"; do
    call rm "${image%% *}" "<ID>${image%% *}</ID><SOURCE>${image#* }</SOURCE>"
done
rm -f -- "$BASE"/* # the data block of mkfs
expect 'nothing is left in the datastore' test -z "$(ls -A "$BASE")"

title 'Uninstall'
"$HERE/install.sh" --one-location "$ONE_LOCATION" --uninstall
expect 'the remotes are as before' test -z "$(find "$REMOTES" ! -type d)"
printf '\nThe whole job ran. Next: README.md, "First real use".\n'
