//! `virsh` (virsh(1)): what is done with running domains.
//!
//! Commands that answer at once may take `VIRSH_TIMEOUT` seconds; block jobs take what they need. Values are glued to their
//! option (`--domain=NAME`), so that none can be taken for one.

use std::ffi::OsString;
use std::path::Path;

use quick_xml::escape::escape;

use crate::exec::cmd::{Cmd, Limits, Secret};
use crate::settings::Settings;

mod domain;

pub use domain::{BadDomain, Disk, Domain, Layer};

/// How libvirt is reached on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virsh {
    uri: String,
    seconds: u64,
}

/// `LIBVIRT_URI` where nobody sets it.
const URI: &str = "qemu:///system";

/// `VIRSH_TIMEOUT` where nobody sets it, in seconds.
const SECONDS: u64 = 60;

impl Virsh {
    /// By the operator's `kvmrc`: `LIBVIRT_URI`, `VIRSH_TIMEOUT`.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let seconds = settings.get("VIRSH_TIMEOUT").and_then(|text| text.trim().parse().ok());
        let uri = settings.get("LIBVIRT_URI").unwrap_or(URI).to_owned();
        Self { uri, seconds: seconds.filter(|seconds| *seconds > 0).unwrap_or(SECONDS) }
    }

    /// A block job: as long as it takes.
    fn job(&self, command: &str, domain: &str) -> Cmd {
        let cmd = Cmd::new("virsh").arg("--quiet").arg(format!("--connect={}", self.uri));
        cmd.arg(command).arg(format!("--domain={domain}"))
    }

    fn quick(&self, command: &str, domain: &str) -> Cmd {
        self.job(command, domain).limits(Limits { wall_seconds: Some(self.seconds), ..Limits::default() })
    }

    /// The domain as it runs: [`Domain::parse`] reads it.
    #[must_use]
    pub fn dumpxml(&self, domain: &str) -> Cmd {
        self.quick("dumpxml", domain)
    }

    /// Its state in one word or two: `running`, `paused`, `shut off`.
    #[must_use]
    pub fn domstate(&self, domain: &str) -> Cmd {
        self.quick("domstate", domain)
    }

    /// Asks the guest's agent to freeze its file systems.
    #[must_use]
    pub fn freeze(&self, domain: &str) -> Cmd {
        self.quick("domfsfreeze", domain)
    }

    /// The opposite.
    #[must_use]
    pub fn thaw(&self, domain: &str) -> Cmd {
        self.quick("domfsthaw", domain)
    }

    /// Stops the virtual CPUs; what QEMU has in memory is written to the disks.
    #[must_use]
    pub fn suspend(&self, domain: &str) -> Cmd {
        self.quick("suspend", domain)
    }

    /// The opposite. Fails for a domain that runs.
    #[must_use]
    pub fn resume(&self, domain: &str) -> Cmd {
        self.quick("resume", domain)
    }

    /// Has the domain write to `overlay`, a qcow2 file that is there already and names the current file as its backing
    /// file, from now on: all or nothing (`--atomic`), nothing kept in libvirt.
    ///
    /// `others` are the domain's other disks, which stay out of it.
    #[must_use]
    pub fn snapshot<'a>(
        &self,
        domain: &str,
        target: &str,
        overlay: &str,
        others: impl Iterator<Item = &'a str>,
    ) -> Cmd {
        let others = others.map(|other| format!("<disk name='{}' snapshot='no'/>", escape(other)));
        let others = others.collect::<Vec<_>>().concat();
        let xml = format!(
            "<domainsnapshot><disks><disk name='{}' snapshot='external' type='file'><driver type='qcow2'/>\
             <source file='{}'/></disk>{others}</disks></domainsnapshot>",
            escape(target),
            escape(overlay)
        );
        self.quick("snapshot-create", domain)
            .args(["--disk-only", "--atomic", "--no-metadata", "--reuse-external", "--xmlfile=/dev/stdin"])
            .stdin(Secret::new(xml))
    }

    /// Copies into the current file what it shows of the files down to `base`, which is what it stands on afterwards.
    #[must_use]
    pub fn pull(&self, domain: &str, target: &str, base: Option<u32>, keep_relative: bool) -> Cmd {
        let mut cmd = self.job("blockpull", domain).arg(format!("--path={target}")).arg("--wait");
        if let Some(base) = base {
            cmd = cmd.arg(format!("--base={target}[{base}]"));
        }
        if keep_relative { cmd.arg("--keep-relative") } else { cmd }
    }

    /// Merges `top`, a file below the current one, and what lies between into `base`.
    #[must_use]
    pub fn commit(&self, domain: &str, target: &str, (top, base): (u32, u32), keep_relative: bool) -> Cmd {
        let cmd = self.job("blockcommit", domain).arg(format!("--path={target}")).arg("--wait");
        let cmd = cmd.arg(format!("--top={target}[{top}]")).arg(format!("--base={target}[{base}]"));
        if keep_relative { cmd.arg("--keep-relative") } else { cmd }
    }

    /// Merges the current file into `base`, which is what the domain writes to afterwards.
    #[must_use]
    pub fn commit_active(&self, domain: &str, target: &str, base: u32) -> Cmd {
        let cmd = self.job("blockcommit", domain).arg(format!("--path={target}"));
        cmd.arg(format!("--base={target}[{base}]")).args(["--active", "--pivot", "--wait"])
    }

    /// Copies the disk, without its backing files, to the empty file `to`; the domain goes on with its own.
    #[must_use]
    pub fn copy(&self, domain: &str, target: &str, to: &Path, format: &str) -> Cmd {
        let mut dest = OsString::from("--dest=");
        dest.push(to);
        let cmd = self.job("blockcopy", domain).arg(format!("--path={target}")).arg(dest);
        cmd.arg(format!("--format={format}")).args(["--transient-job", "--wait", "--finish"])
    }

    /// Tells whether a block job runs on the disk: nothing, or a line for each field.
    #[must_use]
    pub fn job_info(&self, domain: &str, target: &str) -> Cmd {
        self.quick("blockjob", domain).arg(format!("--path={target}")).args(["--info", "--raw"])
    }

    /// Ends the block job of the disk; fails where there is none.
    #[must_use]
    pub fn job_abort(&self, domain: &str, target: &str) -> Cmd {
        self.quick("blockjob", domain).arg(format!("--path={target}")).arg("--abort")
    }

    /// Writes another name of the backing file into the header of `image`, an index of the chain whose current file has the
    /// index `current`. The file stays the same one: QEMU has it open.
    ///
    /// QEMU's own command, for libvirt writes the name by which *it* knows a file, which may be a link that has moved on.
    /// Its exit status says nothing: read the header.
    #[must_use]
    pub fn name_backing(&self, domain: &str, (current, image): (u32, u32), backing: &str) -> Cmd {
        let node = |index: u32| format!("libvirt-{index}-format");
        let command = serde_json::json!({
            "execute": "change-backing-file",
            "arguments": { "device": node(current), "image-node-name": node(image), "backing-file": backing },
        });
        self.quick("qemu-monitor-command", domain).arg(format!("--cmd={command}"))
    }
}

/// What stands for a job in the answer to [`Virsh::job_info`], such as `Block Pull`; `None` when none runs.
#[must_use]
pub fn job_kind(answer: &str) -> Option<&str> {
    answer.lines().find_map(|line| line.trim().strip_prefix("type=")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virsh() -> Virsh {
        Virsh { uri: "qemu:///system".into(), seconds: 7 }
    }

    #[test]
    fn commands_read_as_an_operator_would_type_them() {
        let begin = "virsh --quiet --connect=qemu:///system ";
        let shown = |cmd: &Cmd| cmd.to_string().replace(begin, "");
        let virsh = virsh();
        assert_eq!(
            shown(&virsh.pull("one-7", "vda", Some(3), true)),
            "blockpull --domain=one-7 --path=vda --wait '--base=vda[3]' --keep-relative"
        );
        assert_eq!(shown(&virsh.pull("one-7", "vda", None, false)), "blockpull --domain=one-7 --path=vda --wait");
        assert_eq!(
            shown(&virsh.commit("one-7", "vda", (4, 3), false)),
            "blockcommit --domain=one-7 --path=vda --wait '--top=vda[4]' '--base=vda[3]'"
        );
        assert_eq!(
            shown(&virsh.copy("one-7", "vda", Path::new("/ds/1/x y"), "raw")),
            "blockcopy --domain=one-7 --path=vda '--dest=/ds/1/x y' --format=raw --transient-job --wait --finish"
        );
        assert_eq!(virsh.suspend("one-7").limits.wall_seconds, Some(7));
        assert_eq!(virsh.pull("one-7", "vda", None, false).limits.wall_seconds, None);
    }

    #[test]
    fn hostile_names_stay_what_they_are() {
        let virsh = virsh();
        assert!(virsh.dumpxml("--help; x").args.contains(&"--domain=--help; x".into()));
        let cmd = virsh.snapshot("one-7", "vda", "/ds/<a>&'b'", ["hdb", "h'><x"].into_iter());
        let xml = cmd.secret_stdin.expect("xml").reveal().to_owned();
        assert_eq!(
            xml,
            "<domainsnapshot><disks><disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>\
             <source file='/ds/&lt;a&gt;&amp;&apos;b&apos;'/></disk><disk name='hdb' snapshot='no'/>\
             <disk name='h&apos;&gt;&lt;x' snapshot='no'/></disks></domainsnapshot>"
        );
        let cmd = virsh.name_backing("one-7", (5, 3), "a\"b\\");
        assert!(cmd.args.iter().any(|arg| arg.to_string_lossy().contains(r#""backing-file":"a\"b\\""#)), "{cmd}");
    }

    #[test]
    fn a_job_is_told_from_none() {
        assert_eq!(job_kind(" type=Block Copy\n bandwidth=1\n cur=16777216\n end=50331648\n"), Some("Block Copy"));
        assert_eq!(job_kind("\n"), None);
    }

    #[test]
    fn the_operators_kvmrc_holds() {
        let settings = |text: &str| {
            let dir = tempfile::tempdir().expect("a folder");
            std::fs::create_dir_all(dir.path().join("etc/vmm/kvm")).expect("makes");
            std::fs::write(dir.path().join("etc/vmm/kvm/kvmrc"), text).expect("writes");
            let layout = crate::location::Layout::new(|_| None, Some(dir.path()));
            Virsh::of(&Settings::load(&layout, "qcow2", |_| None).expect("loads"))
        };
        assert_eq!(
            settings("export LIBVIRT_URI=qemu+tcp:///x\nVIRSH_TIMEOUT=5\nLANG=C\n"),
            Virsh { uri: "qemu+tcp:///x".into(), seconds: 5 }
        );
        assert_eq!(settings("VIRSH_TIMEOUT=0\nLIBVIRT_URI=\n"), Virsh { uri: URI.into(), seconds: 60 });
    }
}
