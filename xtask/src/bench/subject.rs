//! What is measured, and what it may cost: one table.

use super::files::Source::{
    self, Dense1G, Dense2G, Dense8G, Dense64M, Dense256M, Dense512M, Dense1536M, Sparse1G, Sparse8T,
};
use super::lab::Ground::{self, Reflink, Work};
use super::vm::Act;

/// Memory budget of every action, bytes.
pub const PEAK: u64 = 64 << 20;

/// One row of the report.
pub struct Subject {
    /// Name, for `--only` and the report.
    pub name: &'static str,
    /// What exactly is done.
    pub what: &'static str,
    /// The entry of the tree that is called.
    pub entry: &'static str,
    /// Whether it only answers, or moves data.
    pub class: Class,
    /// Which file system it runs on.
    pub ground: Ground,
    /// What it does.
    pub job: Job,
    /// The plain tools to compare with; the first one is that of the budgets.
    pub tools: &'static [Tool],
    /// Why the other tree is not run, if it is not.
    pub not_other: Option<&'static str>,
    /// Whether `--quick` leaves it out.
    pub slow: bool,
    /// What it may cost, besides [`PEAK`].
    pub budgets: &'static [Budget],
}

/// Kinds of subjects: the number of runs and the table depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// An answer within milliseconds.
    Short,
    /// Bytes are copied.
    Data,
    /// A VM's disk on a host is changed, which needs ssh and `qemu-img`.
    Disk,
}

/// The work of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// `fs/monitor` with a usual payload.
    Monitor,
    /// `fs/monitor` with the payload of 10 MB.
    MonitorLarge,
    /// `fs/stat` of a local image.
    Stat(Source),
    /// `fs/rm` of a new image of 1 MiB.
    Remove,
    /// `dummy/cp`.
    DummyCp,
    /// `clone` of the dummy transfer manager.
    DummyClone,
    /// `fs/cp` of a local image.
    Cp(Source),
    /// `fs/cp` of a local image with its MD5.
    CpMd5(Source),
    /// `fs/cp` of a local image, compressed, over HTTP.
    CpHttp(Source),
    /// `fs/cp` of an image as it is over HTTP.
    CpHttpRaw(Source),
    /// `fs/cp` of a local compressed image with the MD5 of the compressed file.
    CpPacked(Source),
    /// `onestore inspect` of a qcow2 image.
    Inspect,
    /// `fs/clone` of an image.
    Clone(Source),
    /// `fs/mkfs` of an empty datablock of 10 GiB.
    Mkfs(&'static str),
    /// `monitor` of a system datastore with many VMs, whose disks monitord is told.
    MonitorVms(Key),
    /// `monitor_ds` of the same datastore, as a host's probe calls it.
    MonitorDs,
    /// What a transfer manager does with a disk.
    Vm(Act),
}

/// Whether monitord has a public key, with which what it is told is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// It has none, as OpenNebula is installed.
    None,
    /// RSA, 2048 bits.
    Rsa,
}

/// A plain tool that does the same work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    /// `cp --sparse=always`.
    CpSparse,
    /// The same, then `sync` of the copy: what a copy costs that survives a power cut.
    CpSparseSync,
    /// See [`super::floor`].
    Floor,
    /// `cp --reflink=always`.
    CpReflink,
    /// `dd` of as many bytes of data, with `conv=fsync`.
    Dd(Source),
    /// `md5sum`, without a copy.
    Md5sum,
    /// `curl | gunzip`.
    CurlGunzip,
    /// The same, then `sync` of the file.
    CurlGunzipSync,
    /// `curl -o`.
    Curl,
    /// The same, then `sync` of the file.
    CurlSync,
    /// `gunzip` to nowhere: the decoder alone.
    Gunzip,
    /// `qemu-img info`.
    QemuImgInfo,
    /// `qemu-img create`.
    QemuImgCreate,
    /// The part of a transfer manager's action that nobody can do without, by ssh.
    OnHost(Act),
    /// The same, then `sync` of the disk.
    OnHostSync(Act),
    /// [`super::floor`] by ssh.
    OnHostFloor(Act),
    /// Ours, for another image.
    Ours(Act),
}

impl Tool {
    /// Its command line in short.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpSparse => "cp --sparse=always",
            Self::CpSparseSync => "cp --sparse=always; sync FILE",
            Self::Floor => "durable floor",
            Self::CpReflink => "cp --reflink=always",
            Self::Dd(_) => "dd of the data, conv=fsync",
            Self::Md5sum => "md5sum alone",
            Self::CurlGunzip => "curl \\| gunzip",
            Self::CurlGunzipSync => "curl \\| gunzip; sync FILE",
            Self::Curl => "curl -o",
            Self::CurlSync => "curl -o; sync FILE",
            Self::Gunzip => "gunzip alone",
            Self::QemuImgInfo => "qemu-img info",
            Self::QemuImgCreate => "qemu-img create",
            Self::OnHost(act) => act.tool_name(),
            Self::OnHostSync(_) => "the same; sync FILE",
            Self::OnHostFloor(_) => "ssh HOST durable floor",
            Self::Ours(_) => "ours, of 64 MiB",
        }
    }
}

/// One promise.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Budget {
    /// Median of the wall time, milliseconds.
    Wall(f64),
    /// Median of the CPU time of all processes, milliseconds.
    Cpu(f64),
    /// Child processes.
    Children(usize),
    /// The median of the other tree's time by ours is at least this.
    TimesFaster(f64),
    /// The median of our time by the first tool's is at most this.
    ByTool(f64),
    /// The median of our time by that of [`super::floor`] is at most this.
    ByFloor(f64),
    /// The median of our time by that of the slowest tool of the round is at most this.
    BySlowest(f64),
    /// The median of our time less the first tool's is at most this, seconds.
    OverTool(f64),
}

/// Of everything that only answers.
const SHORT: &[Budget] = &[Budget::Wall(3.0), Budget::Children(1), Budget::TimesFaster(30.0)];

const fn short(name: &'static str, what: &'static str, entry: &'static str, job: Job) -> Subject {
    Subject {
        name,
        what,
        entry,
        class: Class::Short,
        ground: Work,
        job,
        tools: &[],
        not_other: None,
        slow: false,
        budgets: SHORT,
    }
}

const fn data(name: &'static str, what: &'static str, entry: &'static str, job: Job) -> Subject {
    Subject { class: Class::Data, budgets: &[], ..short(name, what, entry, job) }
}

const fn reflink(name: &'static str, what: &'static str, entry: &'static str, job: Job) -> Subject {
    Subject {
        ground: Reflink,
        tools: &[Tool::CpReflink],
        budgets: &[Budget::Wall(15.0)],
        ..data(name, what, entry, job)
    }
}

/// On a disk of a VM: the command that nobody can do without, by ssh in the same rounds, is the measure.
const fn disk(
    name: &'static str,
    what: &'static str,
    entry: &'static str,
    act: Act,
    tools: &'static [Tool],
) -> Subject {
    Subject { class: Class::Disk, tools, budgets: &[Budget::ByTool(3.0)], ..short(name, what, entry, Job::Vm(act)) }
}

const RAW: &[Budget] = &[Budget::ByTool(1.1), Budget::ByFloor(1.5)];

/// By ssh and durable; [`super::floor`] by ssh is what can be had.
const fn raw_clone(name: &'static str, what: &'static str, act: Act, tools: &'static [Tool]) -> Subject {
    Subject { class: Class::Data, budgets: RAW, ..disk(name, what, "tm/qcow2/clone", act, tools) }
}

const fn monitor_vms(name: &'static str, what: &'static str, key: Key) -> Subject {
    Subject {
        slow: true,
        budgets: &[Budget::Cpu(250.0), Budget::Children(0)],
        ..short(name, what, "tm/qcow2/monitor", Job::MonitorVms(key))
    }
}

/// All subjects, in the order of the report.
pub static SUBJECTS: &[Subject] = &[
    short("fs/monitor", "capacity of the datastore", "datastore/fs/monitor", Job::Monitor),
    short("fs/stat", "size of a local raw image of 64 MiB", "datastore/fs/stat", Job::Stat(Dense64M)),
    short("fs/rm", "an image of 1 MiB", "datastore/fs/rm", Job::Remove),
    short("dummy/cp", "nothing but the answer", "datastore/dummy/cp", Job::DummyCp),
    short("tm/dummy/clone", "nothing", "tm/dummy/clone", Job::DummyClone),
    Subject {
        budgets: &[Budget::Wall(100.0)],
        ..short(
            "fs/monitor-10MB",
            "the same with 10 MB of XML: 100,000 images and long attributes",
            "datastore/fs/monitor",
            Job::MonitorLarge,
        )
    },
    Subject {
        tools: &[Tool::CpSparse, Tool::CpSparseSync, Tool::Floor],
        budgets: &[Budget::ByTool(1.2), Budget::ByFloor(1.2)],
        ..data("fs/cp", "raw, 1 GiB with 64 MiB of data", "datastore/fs/cp", Job::Cp(Sparse1G))
    },
    Subject {
        tools: &[Tool::CpSparse, Tool::CpSparseSync],
        ..data("fs/clone", "raw, 1 GiB with 64 MiB of data", "datastore/fs/clone", Job::Clone(Sparse1G))
    },
    Subject {
        tools: &[Tool::Dd(Source::Dense1536M)],
        budgets: &[Budget::OverTool(5.0)],
        not_other: Some("would read 8 TiB of zeroes"),
        slow: true,
        ..data("fs/cp-8TiB", "raw, 8 TiB with 1.5 GiB of data", "datastore/fs/cp", Job::Cp(Sparse8T))
    },
    reflink("fs/cp-reflink-64M", "raw, 64 MiB of data, xfs", "datastore/fs/cp", Job::Cp(Dense64M)),
    reflink("fs/cp-reflink-1G", "raw, 1 GiB of data, xfs", "datastore/fs/cp", Job::Cp(Dense1G)),
    Subject {
        not_other: Some("copies 8 GiB in each run"),
        slow: true,
        ..reflink("fs/cp-reflink-8G", "raw, 8 GiB of data, xfs", "datastore/fs/cp", Job::Cp(Dense8G))
    },
    reflink("fs/clone-reflink-1G", "raw, 1 GiB of data, xfs", "datastore/fs/clone", Job::Clone(Dense1G)),
    Subject {
        tools: &[Tool::CurlGunzip],
        ..data("fs/cp-http-gzip", "raw, 256 MiB of data, gzip over HTTP", "datastore/fs/cp", Job::CpHttp(Dense256M))
    },
    Subject {
        tools: &[Tool::CurlGunzip, Tool::CurlGunzipSync],
        budgets: &[Budget::ByTool(1.1)],
        not_other: Some("takes minutes"),
        slow: true,
        ..data("fs/cp-http-gzip-1G", "raw, 1 GiB of data, gzip over HTTP", "datastore/fs/cp", Job::CpHttp(Dense1G))
    },
    Subject {
        tools: &[Tool::Curl, Tool::CurlSync],
        budgets: &[Budget::ByTool(1.1)],
        not_other: Some("takes minutes"),
        slow: true,
        ..data("fs/cp-http-raw-1G", "raw, 1 GiB of data, over HTTP", "datastore/fs/cp", Job::CpHttpRaw(Dense1G))
    },
    Subject {
        tools: &[Tool::Curl, Tool::CurlSync],
        budgets: &[Budget::TimesFaster(5.0)],
        ..data("fs/cp-http-64M", "raw, 64 MiB of data, over HTTP", "datastore/fs/cp", Job::CpHttpRaw(Dense64M))
    },
    Subject {
        // What is written and what is unpacked have the same length; the digest is that of the packed file.
        tools: &[Tool::Gunzip, Tool::Dd(Dense1536M), Tool::Md5sum],
        budgets: &[Budget::BySlowest(1.15)],
        not_other: Some("takes minutes"),
        slow: true,
        ..data(
            "fs/cp-stages",
            "raw, 1.5 GiB of data, gzip, with its MD5: digest, decoder and writer at once",
            "datastore/fs/cp",
            Job::CpPacked(Dense1536M),
        )
    },
    Subject {
        tools: &[Tool::QemuImgInfo],
        budgets: &[Budget::Wall(2.0), Budget::Children(0)],
        not_other: Some("has no such command"),
        ..short("inspect", "a qcow2 image of 10 GiB", "onestore/onestore", Job::Inspect)
    },
    Subject {
        tools: &[Tool::Md5sum],
        ..data("fs/cp-md5", "raw, 256 MiB of data, with its MD5", "datastore/fs/cp", Job::CpMd5(Dense256M))
    },
    Subject {
        tools: &[Tool::QemuImgCreate],
        ..data("fs/mkfs-qcow2", "datablock of 10 GiB, qcow2", "datastore/fs/mkfs", Job::Mkfs("qcow2"))
    },
    Subject {
        tools: &[Tool::QemuImgCreate],
        ..data("fs/mkfs-raw", "datablock of 10 GiB, raw", "datastore/fs/mkfs", Job::Mkfs("raw"))
    },
    Subject {
        slow: true,
        budgets: &[Budget::Cpu(250.0), Budget::Children(0)],
        ..short("ssh/monitor_ds", "on the host, 1,000 VMs × 3 disks × 2 snapshots", "tm/ssh/monitor_ds", Job::MonitorDs)
    },
    monitor_vms("qcow2/monitor", "1,000 VMs × 3 disks × 2 snapshots", Key::None),
    monitor_vms("qcow2/monitor-key", "the same, encrypted for monitord (RSA)", Key::Rsa),
    disk("qcow2/clone", "an overlay on a qcow2 image", "tm/qcow2/clone", Act::Clone, &[Tool::OnHost(Act::Clone)]),
    disk("qcow2/ln", "a persistent qcow2 image", "tm/qcow2/ln", Act::Ln, &[Tool::OnHost(Act::Ln)]),
    disk(
        "qcow2/snap_create",
        "above two layers, VM off",
        "tm/qcow2/snap_create",
        Act::SnapCreate,
        &[Tool::OnHost(Act::SnapCreate)],
    ),
    disk(
        "qcow2/snap_revert",
        "to the first of two snapshots",
        "tm/qcow2/snap_revert",
        Act::SnapRevert,
        &[Tool::OnHost(Act::SnapRevert)],
    ),
    disk(
        "qcow2/snap_delete",
        "the second of two snapshots, VM off",
        "tm/qcow2/snap_delete",
        Act::SnapDelete,
        &[Tool::OnHost(Act::SnapDelete)],
    ),
    disk("qcow2/resize", "to 20 GiB, VM off", "tm/qcow2/resize", Act::Resize, &[Tool::OnHost(Act::Resize)]),
    Subject {
        ground: Reflink,
        budgets: &[Budget::ByTool(1.5)],
        ..raw_clone(
            "qcow2/clone-reflink-2G",
            "raw, 2 GiB of data, xfs",
            Act::CloneRaw(Dense2G),
            &[Tool::Ours(Act::CloneRaw(Dense64M))],
        )
    },
    raw_clone(
        "qcow2/clone-raw-64M",
        "raw, 1 GiB with 64 MiB of data",
        Act::CloneRaw(Sparse1G),
        &[
            Tool::OnHost(Act::CloneRaw(Sparse1G)),
            Tool::OnHostSync(Act::CloneRaw(Sparse1G)),
            Tool::OnHostFloor(Act::CloneRaw(Sparse1G)),
        ],
    ),
    raw_clone(
        "qcow2/clone-raw-512M",
        "raw, 512 MiB of data",
        Act::CloneRaw(Dense512M),
        &[
            Tool::OnHost(Act::CloneRaw(Dense512M)),
            Tool::OnHostSync(Act::CloneRaw(Dense512M)),
            Tool::OnHostFloor(Act::CloneRaw(Dense512M)),
        ],
    ),
];

/// Whether `name` matches a pattern with `*` and `?`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_chars = pattern.chars();
    match pattern_chars.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern_chars.as_str();
            (0..=name.len()).filter(|i| name.is_char_boundary(*i)).any(|i| matches(rest, &name[i..]))
        }
        Some(c) => {
            let mut name_chars = name.chars();
            name_chars.next().is_some_and(|n| c == '?' || c == n)
                && matches(pattern_chars.as_str(), name_chars.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{SUBJECTS, matches};

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = SUBJECTS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SUBJECTS.len());
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches("fs/cp*", "fs/cp-reflink-1G"));
        assert!(matches("*reflink*", "fs/cp-reflink-1G"));
        assert!(matches("fs/?p", "fs/cp"));
        assert!(!matches("fs/cp", "fs/cp-md5"));
        assert!(!matches("?", ""));
    }
}
