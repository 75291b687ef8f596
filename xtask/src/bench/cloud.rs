//! A system datastore as that of a large cloud, and the port where monitord would listen.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::lab::Sandbox;
use super::measure::helper;
use super::stop::Stop;

/// VMs in the datastore.
const VMS: u32 = 1000;
/// Disks of each.
const DISKS: u32 = 3;
/// Snapshots of each disk; the VM writes to one file more.
const SNAPSHOTS: u32 = 2;
/// Length of a qcow2 file of 10 GiB without data, as `qemu-img create` makes it.
const EMPTY: u64 = 196_616;

/// The number of the datastore.
pub const ID: &str = "103";

/// Makes the datastore below `location`.
///
/// # Errors
/// The disk is full, a signal asked for the end.
pub fn lay_out(location: &Path, stop: &Stop) -> Result<()> {
    for vm in 0..VMS {
        stop.check()?;
        let dir = location.join(ID).join(vm.to_string());
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("vm.xml"), "<VM></VM>\n")?;
        fs::write(dir.join("deployment.0"), "<domain></domain>\n")?;
        for disk in 0..DISKS {
            let name = format!("disk.{disk}.snap");
            let layers = dir.join(&name);
            fs::create_dir(&layers)?;
            symlink(".", layers.join(&name))?;
            for layer in 0..=SNAPSHOTS {
                let backing = if layer == 0 {
                    "/var/lib/one/datastores/1/image".to_owned()
                } else {
                    format!("{name}/{}", layer - 1)
                };
                let mut file = File::create(layers.join(layer.to_string()))?;
                file.write_all(&header(&backing))?;
                file.set_len(EMPTY)?;
            }
            symlink(format!("{name}/{SNAPSHOTS}"), dir.join(format!("disk.{disk}")))?;
        }
    }
    Ok(())
}

/// Whether a line with its disks is there for every VM.
pub fn all_told(answer: &str) -> bool {
    let told = |line: &str| line.starts_with("VM = [ ID = ") && line.ends_with("\"]") && line.len() > 100;
    answer.lines().count() == VMS as usize && answer.lines().all(told)
}

/// The header of a qcow2 file of 10 GiB, version 3, that stands on another one (QEMU's docs/interop/qcow2.txt).
fn header(backing: &str) -> Vec<u8> {
    let mut bytes = b"QFI\xfb".to_vec();
    let length = u32::try_from(backing.len()).unwrap_or(0);
    let (long, short) = (u64::to_be_bytes, u32::to_be_bytes);
    bytes.extend(short(3));
    bytes.extend(long(112));
    bytes.extend(short(length));
    bytes.extend(short(16));
    bytes.extend(long(10 << 30));
    bytes.extend(short(0));
    // The tables of addresses, their lengths, no internal snapshot, no feature, widths of counts, length of the header.
    for word in
        [short(20), short(0), short(0x3_0000), short(0), short(0x1_0000), short(1), short(0), short(0), short(0)]
    {
        bytes.extend(word);
    }
    bytes.extend([0; 24]);
    bytes.extend([short(4), short(104), short(0), short(0)].concat());
    bytes.extend(backing.as_bytes());
    bytes
}

/// Somebody who is told the sizes of disks.
pub struct Monitord {
    socket: UdpSocket,
    key: Option<PathBuf>,
}

impl Monitord {
    /// Listens on a free port; with a key of its own where `dir` is given.
    ///
    /// # Errors
    /// There is no port, or `openssl` is missing.
    pub fn listen(dir: Option<&Path>) -> Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).context("Cannot open a port")?;
        socket.set_nonblocking(true)?;
        let key = dir.map(|dir| -> Result<PathBuf> {
            let (private, public) = (dir.join("monitord.key"), dir.join("monitord.pub"));
            let words = |text: &'static str| text.split(' ').map(std::ffi::OsStr::new);
            let make: Vec<_> = words("genrsa -out").chain([private.as_os_str(), "2048".as_ref()]).collect();
            helper("openssl", &make, Stdio::null())?;
            let show: Vec<_> = words("rsa -RSAPublicKey_out -in")
                .chain([private.as_os_str(), "-out".as_ref(), public.as_os_str()])
                .collect();
            helper("openssl", &show, Stdio::null())?;
            Ok(public)
        });
        Ok(Self { socket, key: key.transpose()? })
    }

    /// Makes a tree's front-end know it.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn configure(&self, sandbox: &Sandbox) -> Result<()> {
        let port = self.socket.local_addr()?.port();
        let key = self.key.as_ref().map_or_else(String::new, |key| key.display().to_string());
        let text = format!(
            "NETWORK = [\n    ADDRESS = \"0.0.0.0\",\n    MONITOR_ADDRESS = \"127.0.0.1\",\n    PORT = {port},\n    \
             PUBKEY = \"{key}\"\n]\n"
        );
        fs::write(sandbox.one().join("etc/monitord.conf"), text).context("Cannot write monitord.conf")
    }

    /// Takes what came since the last time.
    ///
    /// # Errors
    /// Nothing came, or something else than sizes of disks.
    pub fn judge(&self) -> Result<()> {
        let mut datagram = vec![0; 65_536];
        let mut count = 0;
        while let Ok(length) = self.socket.recv(&mut datagram) {
            if !datagram[..length].starts_with(b"MONITOR_VM SUCCESS -1 ") {
                bail!("Wrong datagram: {}", String::from_utf8_lossy(&datagram[..length.min(60)]));
            }
            count += 1;
        }
        if count == 0 {
            bail!("monitord was not told anything");
        }
        Ok(())
    }
}
