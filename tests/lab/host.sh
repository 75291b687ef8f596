#!/bin/bash
# tests/lab/host.sh: first processes of a lab's namespaces; tests/lab/hypervisors.rs starts them.
#
#   host.sh front DIR COMMAND…     the front-end: a bridge, names, an sshd, then COMMAND; reaps what is orphaned, and ends
#                                  with it
#   host.sh host DIR NAME ADDRESS  a hypervisor host: network, daemons; serves until it is killed
#
# Every mount below is in a mount namespace of its own, every device in a network namespace of its own: all goes with
# the processes.
set -eu
role=$1 dir=$2
shift 2
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/lock
for file in hosts passwd group; do mount --bind "$dir/etc/$file" "/etc/$file"; done
ip link set lo up

if [ "$role" = front ]; then
    ip link add lab type bridge
    ip address add 10.77.0.1/24 dev lab
    ip link set lab up
    mount -t tmpfs -o size=24m tmpfs "$dir/small"
    hostname front
    # oned's drivers reach the front-end by ssh as well: VMs that are stopped or undeployed are there.
    /usr/sbin/sshd -f "$dir/etc/sshd_config" -E "$dir/sshd.log"
    # Not exec: bash reaps what others leave behind, libvirtd waits for that.
    "$@"
    exit
fi

name=$1 address=$2 own=$dir/hosts/$1
hostname "$name"
for _ in $(seq 500); do
    if ip link show eth0 >/dev/null 2>&1; then break; fi
    sleep 0.01
done
ip address add "$address/24" dev eth0
ip link set eth0 up
for folder in /tmp /var/lib /var/log /var/cache; do mount -t tmpfs tmpfs "$folder"; done
chmod 1777 /tmp
mkdir -p /run/libvirt /var/{lib,log,cache}/libvirt
mount --bind "$dir/etc/libvirt" /etc/libvirt
if [ -e "$own/root" ]; then
    # The shared folder under another name, and only that.
    root=$(cat "$own/root")
    mkdir -p "$root"
    mount --bind "$dir/shared" "$root"
    mount -t tmpfs -o size=1m tmpfs "$dir/shared"
fi
virtlogd -d -p /run/virtlogd.pid
libvirtd -d -p /run/libvirtd.pid -f "$own/libvirtd.conf"
# Not exec: as above.
/usr/sbin/sshd -D -f "$dir/etc/sshd_config" -E "$own/sshd.log"
