//! Turns a subject into commands: the payload, what has to lie ready before a run, and what must be there after it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};

use super::cloud::{self, Monitord};
use super::files::Source;
use super::floor;
use super::host;
use super::lab::{Lab, Sandbox, Tree, Who};
use super::measure::{Call, helper};
use super::payload::Payload;
use super::server::Server;
use super::subject::{Job, Key, Subject, Tool};
use super::vm::{Act, Vm};

/// MiB of a datablock.
const DATABLOCK: u64 = 10 * 1024;

/// What the calls of one subject share.
#[derive(Default)]
pub struct Prepared {
    /// The source image, if there is one.
    image: Option<PathBuf>,
    /// It, compressed, where it is a file that is imported.
    packed: Option<PathBuf>,
    /// MD5 of what is imported, in hex.
    md5: Option<String>,
    /// What serves it, compressed.
    server: Option<Server>,
    /// As many bytes of data, for `dd`.
    data: Option<PathBuf>,
    /// Who is told the sizes of disks, and where they are.
    monitord: Option<(Rc<Monitord>, PathBuf)>,
    /// Where the VMs are whose disks are told on standard output.
    datastores: Option<PathBuf>,
}

/// A command that can be run again and again.
pub struct Runner {
    /// Who it is.
    pub who: Who,
    /// The plain tool, if that is who.
    pub tool: Option<Tool>,
    /// What is run.
    pub call: Call,
    sandbox: Sandbox,
    job: Job,
    vm: Option<Vm>,
    monitord: Option<Rc<Monitord>>,
}

/// Makes what all runs of a subject need.
///
/// # Errors
/// The disk is full, a tool is missing, a signal asked for the end.
pub fn prepare(lab: &mut Lab, subject: &Subject) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    let source = match subject.job {
        Job::Stat(source)
        | Job::Cp(source)
        | Job::CpMd5(source)
        | Job::CpHttp(source)
        | Job::CpHttpRaw(source)
        | Job::CpPacked(source)
        | Job::Clone(source) => source,
        Job::Inspect => {
            prepared.image = Some(lab.derived("inspect.qcow2", |path| {
                let args = ["create", "-q", "-f", "qcow2"].map(std::ffi::OsStr::new);
                helper("qemu-img", &[&args[..], &[path.as_os_str(), "10G".as_ref()]].concat(), Stdio::null())
            })?);
            return Ok(prepared);
        }
        Job::MonitorVms(key) => {
            let stop = lab.stop.clone();
            let location = lab.derived("datastores", |path| cloud::lay_out(path, &stop))?;
            let monitord = Monitord::listen((key == Key::Rsa).then(|| lab.scratch()))?;
            prepared.monitord = Some((Rc::new(monitord), location));
            return Ok(prepared);
        }
        Job::MonitorDs => {
            let stop = lab.stop.clone();
            prepared.datastores = Some(lab.derived("datastores", |path| cloud::lay_out(path, &stop))?);
            return Ok(prepared);
        }
        Job::Vm(Act::CloneRaw(source)) => {
            for tool in subject.tools {
                if let Tool::Ours(Act::CloneRaw(other)) = tool {
                    lab.source(subject.ground, *other)?;
                }
            }
            source
        }
        Job::Monitor | Job::MonitorLarge | Job::Remove | Job::DummyCp | Job::DummyClone | Job::Mkfs(_) | Job::Vm(_) => {
            return Ok(prepared);
        }
    };
    let image = lab.source(subject.ground, source)?;
    if matches!(subject.job, Job::CpMd5(_)) {
        prepared.md5 = Some(md5_of(&image)?);
    }
    if matches!(subject.job, Job::CpHttpRaw(_)) {
        prepared.server = Some(Server::start(&image)?);
    }
    if matches!(subject.job, Job::CpHttp(_) | Job::CpPacked(_)) {
        let packed = lab.derived(&format!("{}.gz", source.name()), |path| {
            let out = File::create(path)?;
            helper("gzip", &["-1".as_ref(), "-c".as_ref(), image.as_os_str()], Stdio::from(out))
        })?;
        if matches!(subject.job, Job::CpPacked(_)) {
            prepared.md5 = Some(md5_of(&packed)?);
            prepared.packed = Some(packed);
        } else {
            prepared.server = Some(Server::start(&packed)?);
        }
    }
    for tool in subject.tools {
        if let Tool::Dd(data) = tool {
            prepared.data = Some(lab.source(subject.ground, *data)?);
        }
    }
    prepared.image = Some(image);
    Ok(prepared)
}

fn md5_of(image: &Path) -> Result<String> {
    let output = Command::new("md5sum").arg(image).output().context("Cannot start md5sum")?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    line.split_whitespace().next().map(str::to_owned).context("md5sum printed nothing")
}

/// The call of a subject in one tree.
///
/// # Errors
/// The sandbox or the payload cannot be written.
pub fn of_tree(lab: &Lab, subject: &Subject, prepared: &Prepared, tree: &Tree) -> Result<Runner> {
    let sandbox = lab.sandbox(subject.ground, tree)?;
    let program = sandbox.entry(subject.entry);
    if let Job::Vm(act) = subject.job {
        return of_vm(lab, subject, (act, tree.who, None), program, sandbox);
    }
    if let Some((monitord, _)) = &prepared.monitord {
        monitord.configure(&sandbox)?;
    }
    let (args, stdin) = if subject.job == Job::DummyClone {
        let disk = sandbox.var().join("datastores/107/18/disk.0");
        let mut target = OsString::from("host01:");
        target.push(disk);
        (vec!["vm:dummy_path".into(), target, "18".into(), "106".into()], None)
    } else if let Some(location) = &prepared.datastores {
        (vec![location.join(cloud::ID).into()], None)
    } else if subject.job == Job::Inspect {
        (vec!["inspect".into(), prepared.image.clone().unwrap_or_default().into()], None)
    } else {
        let file = lab.scratch().join(format!("payload-{}-{:?}", subject.name.replace('/', "-"), tree.who));
        payload(lab, subject, prepared, &sandbox)?.write(&file)?;
        let id = match subject.job {
            Job::Monitor | Job::MonitorLarge => "100",
            Job::MonitorVms(_) => cloud::ID,
            _ => "7",
        };
        (vec![OsString::from(id)], Some(file))
    };
    let call = Call { program, args, env: sandbox.env(), cwd: sandbox.var(), stdin };
    let monitord = prepared.monitord.as_ref().map(|(monitord, _)| Rc::clone(monitord));
    Ok(Runner { who: tree.who, tool: None, call, sandbox, job: subject.job, vm: None, monitord })
}

/// A transfer manager's action, or what nobody can do without of it.
fn of_vm(
    lab: &Lab,
    subject: &Subject,
    (act, who, tool): (Act, Who, Option<Tool>),
    program: PathBuf,
    sandbox: Sandbox,
) -> Result<Runner> {
    let raw = match act {
        Act::CloneRaw(source) => Some(lab.images(subject.ground)?.join(source.name())),
        _ => None,
    };
    let vm = Vm::lay_out(act, &sandbox, raw)?;
    let host = lab.host()?;
    host.install(&sandbox.one().join("bin"), &sandbox.one().join("home"))?;
    let (program, args) = match tool {
        None | Some(Tool::Ours(_)) => (program, vm.args()),
        Some(tool) => {
            let command = match tool {
                Tool::OnHostSync(_) => vm.command("sync"),
                Tool::OnHostFloor(_) => vm.durable_copy(&own_program()?),
                _ => vm.command(""),
            };
            let words = [host.words(), vec![host::NAME.into(), command.into()]].concat();
            (PathBuf::from("ssh"), words[1..].to_vec())
        }
    };
    let call = Call { program, args, env: sandbox.env_with(host), cwd: sandbox.var(), stdin: None };
    Ok(Runner { who, tool, call, sandbox, job: subject.job, vm: Some(vm), monitord: None })
}

fn payload(lab: &Lab, subject: &Subject, prepared: &Prepared, sandbox: &Sandbox) -> Result<Payload> {
    let mut payload = Payload {
        mad: if subject.job == Job::DummyCp { "dummy" } else { "fs" },
        base: utf8(&sandbox.base())?,
        safe: utf8(&lab.images(subject.ground)?)?,
        mib: 1,
        large: subject.job == Job::MonitorLarge,
        md5: prepared.md5.clone(),
        ..Payload::default()
    };
    if let Some(image) = prepared.packed.as_ref().or(prepared.image.as_ref()) {
        payload.path = utf8(image)?;
    }
    if let Some(server) = &prepared.server {
        payload.path = server.url();
    }
    match subject.job {
        Job::Cp(source)
        | Job::CpMd5(source)
        | Job::CpHttp(source)
        | Job::CpHttpRaw(source)
        | Job::CpPacked(source)
        | Job::Clone(source) => payload.mib = source.len() >> 20,
        Job::Remove => payload.source = utf8(&victim(sandbox))?,
        Job::Mkfs(format) => {
            payload.format = format;
            payload.mib = DATABLOCK;
        }
        Job::MonitorVms(_) => {
            if let Some((_, location)) = &prepared.monitord {
                payload.extra = format!(
                    "<DATASTORE_LOCATION>{}</DATASTORE_LOCATION><MONITOR_VM_DISKS>1</MONITOR_VM_DISKS>",
                    utf8(location)?
                );
            }
        }
        _ => {}
    }
    Ok(payload)
}

/// The image that `fs/rm` removes.
fn victim(sandbox: &Sandbox) -> PathBuf {
    sandbox.base().join("0123456789abcdef0123456789abcdef")
}

/// This program, which is a contestant of its own.
fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("Cannot tell where this program lies")
}

/// The file that a plain tool writes.
fn product(sandbox: &Sandbox) -> PathBuf {
    sandbox.base().join("product")
}

/// The command of a plain tool on the same work.
///
/// # Errors
/// The sandbox cannot be made.
pub fn of_tool(lab: &Lab, subject: &Subject, prepared: &Prepared, tool: Tool) -> Result<Runner> {
    let nothing = Tree { who: Who::Tool, remotes: lab.scratch().to_owned() };
    if let Tool::OnHost(act) | Tool::OnHostSync(act) | Tool::OnHostFloor(act) | Tool::Ours(act) = tool {
        let ours = lab.trees.iter().find(|tree| tree.who == Who::Drivers).unwrap_or(&nothing);
        // Its own, for it may have another image.
        let sandbox = lab.sandbox_named(subject.ground, &format!("tool-{act:?}"), &ours.remotes)?;
        let program = sandbox.entry(subject.entry);
        return of_vm(lab, subject, (act, Who::Tool, Some(tool)), program, sandbox);
    }
    let sandbox = lab.sandbox(subject.ground, &nothing)?;
    let (image, out) = (prepared.image.clone().unwrap_or_default(), product(&sandbox));
    let url = prepared.server.as_ref().map(Server::url).unwrap_or_default();
    let word = |text: &str| OsString::from(text);
    // The paths come as $1 and $2.
    let script = |text: &str, first: OsString| {
        (PathBuf::from("sh"), vec![word("-c"), word(text), word("sh"), first, out.clone().into()])
    };
    let (program, args) = match tool {
        Tool::CpSparse => (PathBuf::from("cp"), vec![word("--sparse=always"), image.into(), out.clone().into()]),
        Tool::Floor => (own_program()?, vec![word(floor::VERB), image.into(), out.clone().into()]),
        Tool::CpReflink => (PathBuf::from("cp"), vec![word("--reflink=always"), image.into(), out.clone().into()]),
        Tool::CpSparseSync => script("cp --sparse=always \"$1\" \"$2\" && sync \"$2\"", image.into()),
        Tool::Dd(_) => script(
            "dd if=\"$1\" of=\"$2\" bs=1M conv=fsync status=none",
            prepared.data.clone().unwrap_or_default().into(),
        ),
        Tool::Md5sum => (PathBuf::from("md5sum"), vec![prepared.packed.clone().unwrap_or(image).into()]),
        Tool::Gunzip => script("gunzip <\"$1\" >/dev/null", prepared.packed.clone().unwrap_or(image).into()),
        Tool::CurlGunzip => script("curl -s \"$1\" | gunzip >\"$2\"", url.into()),
        Tool::CurlGunzipSync => script("curl -s \"$1\" | gunzip >\"$2\" && sync \"$2\"", url.into()),
        Tool::Curl => script("exec curl -s -o \"$2\" \"$1\"", url.into()),
        Tool::CurlSync => script("curl -s -o \"$2\" \"$1\" && sync \"$2\"", url.into()),
        Tool::QemuImgInfo => (PathBuf::from("qemu-img"), vec![word("info"), image.into()]),
        Tool::QemuImgCreate => {
            let format = if let Job::Mkfs(format) = subject.job { format } else { "raw" };
            let size = format!("{DATABLOCK}M");
            let args = ["create", "-q", "-f", format].map(OsString::from);
            (PathBuf::from("qemu-img"), [args.as_slice(), &[out.clone().into(), size.into()]].concat())
        }
        Tool::OnHost(_) | Tool::OnHostSync(_) | Tool::OnHostFloor(_) | Tool::Ours(_) => bail!("It needs a host"),
    };
    let call = Call { program, args, env: sandbox.env(), cwd: sandbox.var(), stdin: None };
    Ok(Runner { who: Who::Tool, tool: Some(tool), call, sandbox, job: subject.job, vm: None, monitord: None })
}

impl Runner {
    /// Lays ready what one run needs, and lets earlier writing come to rest.
    ///
    /// # Errors
    /// The datastore cannot be written.
    pub fn before(&self) -> Result<()> {
        self.sandbox.clear()?;
        if let Some(vm) = &self.vm {
            vm.reset()?;
        }
        if self.job == Job::Remove && self.who != Who::Tool {
            fs::write(victim(&self.sandbox), vec![b'x'; 1 << 20])?;
        }
        if !matches!(
            self.job,
            Job::Monitor
                | Job::MonitorLarge
                | Job::Stat(_)
                | Job::DummyCp
                | Job::DummyClone
                | Job::Inspect
                | Job::Mkfs(_)
                | Job::MonitorVms(_)
                | Job::MonitorDs
        ) {
            let dir = File::open(self.sandbox.var())?;
            rustix::fs::syncfs(&dir).context("Cannot sync the file system")?;
        }
        Ok(())
    }

    /// Judges the answer: a wrong one is not worth measuring.
    ///
    /// # Errors
    /// The answer or the file it names is not what the action owes.
    pub fn judge(&self, stdout: &str) -> Result<()> {
        if self.who == Who::Tool {
            return Ok(());
        }
        if let Some(vm) = &self.vm {
            return vm.judge();
        }
        let answer = stdout.trim();
        match self.job {
            Job::Monitor | Job::MonitorLarge => {
                owes(tells_capacity(answer, capacity(&self.sandbox.base())?), &answer.replace('\n', " "))
            }
            Job::MonitorVms(_) => {
                owes(tells_capacity(answer, capacity(self.sandbox.one())?), &answer.replace('\n', " "))?;
                self.monitord.as_ref().map_or(Ok(()), |monitord| monitord.judge())
            }
            Job::MonitorDs => owes(cloud::all_told(answer), &answer.chars().take(60).collect::<String>()),
            Job::Vm(_) => Ok(()),
            Job::Stat(source) => owes(answer == (source.len() >> 20).to_string(), answer),
            Job::Remove => owes(!victim(&self.sandbox).exists(), "the image is still there"),
            Job::DummyCp => owes(answer == "dummy_path dummy_format", answer),
            Job::DummyClone => owes(answer.is_empty(), answer),
            Job::Inspect => owes(answer.contains("10 GiB") && answer.ends_with("safe"), answer),
            Job::Cp(source)
            | Job::CpMd5(source)
            | Job::CpHttp(source)
            | Job::CpHttpRaw(source)
            | Job::CpPacked(source) => {
                owes(answer.ends_with(" raw"), answer)?;
                copied(answer, source)
            }
            Job::Clone(source) => copied(answer, source),
            Job::Mkfs(_) => owes(fs::metadata(answer).is_ok_and(|m| m.is_file()), answer),
        }
    }

    /// Removes what runs left.
    ///
    /// # Errors
    /// The datastore cannot be emptied.
    pub fn after(&self) -> Result<()> {
        self.sandbox.clear()
    }
}

fn owes(kept: bool, answer: &str) -> Result<()> {
    if !kept {
        bail!("Wrong answer: {answer}");
    }
    Ok(())
}

/// Size of the file system of `path` in MiB.
fn capacity(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).with_context(|| format!("Cannot ask for the size of {}", path.display()))?;
    Ok(stat.f_blocks * stat.f_frsize / (1 << 20))
}

/// Whether `TOTAL_MB=` tells this capacity, however rounded, and `FREE_MB=` a number.
fn tells_capacity(answer: &str, mib: u64) -> bool {
    let number = |name: &str| answer.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
    number("TOTAL_MB=").is_some_and(|total| total.abs_diff(mib) <= 1) && number("FREE_MB=").is_some()
}

/// The first word of the answer has to be a file as long as its source.
fn copied(answer: &str, source: Source) -> Result<()> {
    let path = answer.split(' ').next().unwrap_or_default();
    let length = fs::metadata(path).with_context(|| format!("Wrong answer: {answer}"))?.len();
    owes(length == source.len(), answer)
}

/// A path as it goes into XML.
fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("The path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::tells_capacity;

    #[test]
    fn a_capacity_of_another_file_system_is_wrong() {
        assert!(tells_capacity("USED_MB=1\nTOTAL_MB=300\nFREE_MB=2", 299));
        assert!(!tells_capacity("USED_MB=1\nTOTAL_MB=12\nFREE_MB=2", 299));
        assert!(!tells_capacity("USED_MB=\nTOTAL_MB=\nFREE_MB=", 299));
    }
}
