#!/usr/bin/env bash
# scripts/packages.sh SET…: installs what is missing on this machine for
#
#   build   a C compiler and what the vendored C libraries need to compile
#   fuzz    what libFuzzer needs to compile
#   musl    the C compiler wrapper for static musl binaries
#   run     the programs that the drivers start
#   test    what the tests need beyond that: file systems, an ssh server, loop devices
#   hypervisor  QEMU and libvirt, for the labs with running domains
#
# What is there already is not asked for: with everything in place no package manager is called and no network is used.
# Packages come through apt-get (as root, or by sudo without a password). Elsewhere it says what is missing, and fails.
# `--missing SET…` only prints what is missing, one package a line.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

POLICY=/usr/sbin/policy-rc.d
# Where a kernel for guests is kept, and the modules that it needs.
GUEST=/usr/local/share/onestore-lab

# need TEST PACKAGE: one package (Debian's name), and the shell test that tells that it is there.
MISSING=()
need() { if ! eval "$1" >/dev/null 2>&1; then MISSING+=("$2"); fi; }
has() { command -v -- "$1" >/dev/null; }

collect() {
    case $1 in
    build)
        need 'has gcc' gcc
        need 'has make' make
        need 'test -e /usr/include/stdio.h' libc6-dev
        # OpenSSL's Configure: Debian's always present perl-base lacks these modules.
        need 'perl -MIPC::Cmd -MFindBin -MFile::Compare -MTime::Piece -e 1' perl
        ;;
    fuzz)
        # libFuzzer is C++.
        need 'has g++' g++
        ;;
    musl)
        need 'has musl-gcc' musl-tools
        ;;
    run)
        need 'has qemu-img' qemu-utils
        need 'has ssh' openssh-client
        ;;
    test)
        need 'has sshd' openssh-server
        need 'has mkfs.xfs' xfsprogs
        need 'has mkfs.btrfs' btrfs-progs
        need 'has mkfs.ext4' e2fsprogs
        need 'has losetup && has mount' mount
        need 'has flock && has setpriv && has unshare' util-linux
        need 'has shellcheck' shellcheck
        need 'has strace' strace
        need 'has openssl' openssl
        need 'has git' git
        need 'has tar' tar
        need 'has zip' zip
        need 'has bzip2' bzip2
        need 'has xz' xz-utils
        need 'has zstd' zstd
        need 'has lz4' lz4
        ;;
    hypervisor)
        need 'has qemu-system-x86_64' qemu-system-x86
        need 'has libvirtd' libvirt-daemon
        need 'test -e /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so' libvirt-daemon-driver-qemu
        # A package of its own from libvirt 10 on.
        need 'has virtlogd' libvirt-daemon-log
        need 'has virsh' libvirt-clients
        need 'has ip' iproute2
        need 'has setpriv && has nsenter' util-linux
        need 'has xorriso' xorriso
        need 'has lxc-start && has lxc-freeze' lxc
        # A guest with an agent: see docs/lab.md.
        need 'has busybox' busybox-static
        need 'has qemu-ga' qemu-guest-agent
        need "test -e $GUEST/vmlinuz" linux-image-cloud-amd64
        ;;
    *)
        echo "packages.sh: Unknown set '$1': build, fuzz, musl, run, test and hypervisor exist" >&2
        exit 2
        ;;
    esac
}

# A package may bring a daemon (openssh-server): it must not start here. Status 101 says so to Debian's installer.
forbid_daemons() {
    cat <<EOF
if [ -e $POLICY.onestore-saved ] || [ -L $POLICY.onestore-saved ]; then :
elif [ -e $POLICY ] || [ -L $POLICY ]; then mv -T $POLICY $POLICY.onestore-saved; fi
trap 'rm -f $POLICY; if [ -e $POLICY.onestore-saved ] || [ -L $POLICY.onestore-saved ]; then mv -T $POLICY.onestore-saved $POLICY; fi' EXIT
trap 'exit 130' INT TERM HUP
printf '#!/bin/sh\nexit 101\n' > $POLICY
chmod 0755 $POLICY
EOF
}

# A machine may have its qemu-utils from the release's backports, whose index is not configured (any more). QEMU has to be
# from there too: with the release's own, apt would remove qemu-img. For this one call, by folders of our own: nothing of apt's stays changed.
# Pinned by source package, or else the libraries of all else would come from there as well.
backports() {
    cat <<'EOF'
set -- "$@"
for package in "$@"; do shift; [ "$package" = libvirt-daemon-log ] && ! apt-cache show libvirt-daemon-log >/dev/null 2>&1 || set -- "$@" "$package"; done
case " $* " in
*' qemu-system-x86 '*)
    have=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
    case $have in
    *~bpo*)
        . /etc/os-release
        dir=$(mktemp -d)
        mkdir "$dir/sources" "$dir/preferences"
        cp -a /etc/apt/sources.list.d/. "$dir/sources/"
        cp -a /etc/apt/preferences.d/. "$dir/preferences/"
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $VERSION_CODENAME" 'Origin: Debian' | head -n 1)
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $VERSION_CODENAME-backports main" >"$dir/sources/onestore.list"
        printf 'Package: src:qemu src:seabios\nPin: release n=%s-backports\nPin-Priority: 990\n' "$VERSION_CODENAME" >"$dir/preferences/onestore"
        set -- -o "Dir::Etc::SourceParts=$dir/sources" -o "Dir::Etc::PreferencesParts=$dir/preferences" "$@"
        apt-get -qq -o "Dir::Etc::SourceParts=$dir/sources" update ;;
    esac ;;
esac
EOF
}

# A kernel for guests: only its files. Installed, it would bring systemd and make a ramdisk that nobody boots.
kernel() {
    cat <<'EOF'
case " $* " in
*' linux-image-cloud-amd64 '*)
    for package in "$@"; do shift; [ "$package" = linux-image-cloud-amd64 ] || set -- "$@" "$package"; done
    image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    work=$(mktemp -d)
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$image" && dpkg-deb -x ./*.deb files)
    mkdir -p "$GUEST"/modules
    for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console; do
        find "$work/files/lib/modules" "$work/files/usr/lib/modules" -name "$module.ko*" -exec cp {} "$GUEST"/modules/ \; 2>/dev/null || true
    done
    xz -dqf "$GUEST"/modules/*.xz 2>/dev/null || true
    cp "$work"/files/boot/vmlinuz-* "$GUEST"/vmlinuz.new
    mv "$GUEST"/vmlinuz.new "$GUEST"/vmlinuz
    rm -rf -- "$work" ;;
esac
EOF
}

as_root=()
main() {
    local only_list=no set
    if [[ ${1-} == --missing ]]; then only_list=yes; shift; fi
    [[ $# -gt 0 ]] || { echo 'packages.sh: No set given: build, fuzz, musl, run, test and hypervisor exist' >&2; exit 2; }
    for set in "$@"; do collect "$set"; done
    [[ ${#MISSING[@]} -gt 0 ]] || return 0
    if [[ $only_list == yes ]]; then
        printf '%s\n' "${MISSING[@]}"
        return 0
    fi

    if ! has apt-get; then
        echo "packages.sh: Missing on this machine, by Debian's names: ${MISSING[*]}; install them with your package manager, then run this again" >&2
        exit 1
    fi
    if [[ $EUID -ne 0 ]]; then
        if has sudo && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            echo "packages.sh: Missing: ${MISSING[*]}; run as root: apt-get install ${MISSING[*]}" >&2
            exit 1
        fi
    fi
    echo "Installing packages: ${MISSING[*]}" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C GUEST="$GUEST" sh -c "set -e
$(forbid_daemons)
apt-get -qq update
$(backports)
$(kernel)
[ \$# -eq 0 ] || apt-get -qq -y --no-remove --no-install-recommends -o Dpkg::Use-Pty=0 install \"\$@\" </dev/null
[ -z \"\${dir-}\" ] || rm -rf -- \"\$dir\""  packages "${MISSING[@]}" >&2 || {
        echo "packages.sh: apt-get could not install ${MISSING[*]}: see above; install them by hand, then run this again" >&2
        exit 1
    }

    # What was installed must now be found: a wrong test would ask for the package each time.
    MISSING=()
    for set in "$@"; do collect "$set"; done
    if [[ ${#MISSING[@]} -gt 0 ]]; then
        echo "packages.sh: Installed, and yet not found: ${MISSING[*]}; look at PATH ($PATH)" >&2
        exit 1
    fi
}

main "$@"
