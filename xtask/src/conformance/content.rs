//! Makes the files that a case wants to be there before the first call.
//!
//! | `is` | what |
//! |---|---|
//! | `pattern` | `size` bytes that do not compress, the same in every run for the same `seed` |
//! | `zeroes` | `size` written zero bytes: allocated |
//! | `sparse` | `size` bytes, 64 KiB of pattern at both ends and a hole between them |
//! | `text`, `bytes` | `text` as it is, or decoded from Base64 |
//! | `dir`, `fifo` | |
//! | `link` | symbolic link to `of` |
//! | `head` | the first `size` bytes of `of` |
//! | `copy`, `gzip`, `bzip2`, `xz`, `zstd`, `lz4`, `tar`, `zip` | made of the file `of` |
//! | `tar`, `zip` with `members` | an archive that says what they say, see [`super::archive`] |
//! | `joined` | the file itself (or nothing) and the file `of` behind it |
//! | `qcow2`, `vmdk`, `vdi`, `vhdx`, `luks` | image of virtual `size`, or converted from `of`; `backing`, `data_file`, `write` for qcow2 |

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use base64::Engine as _;

use super::archive;
use super::case::{self, Before};
use super::vars::Vars;

/// Bytes of pattern at both ends of a sparse file.
const ENDS: u64 = 64 << 10;

/// Makes one file, and its parent directories.
pub fn make(before: &Before, vars: &Vars) -> Result<()> {
    let path = PathBuf::from(vars.text(&before.path)?);
    build(before, vars, &path).with_context(|| format!("Cannot make {} ({})", path.display(), before.is))?;
    if let Some(mode) = &before.mode {
        fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?))?;
    }
    Ok(())
}

fn build(before: &Before, vars: &Vars, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // In the judged tree files are links to it: it is never written to.
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    let of = before.of.as_deref().map(|of| vars.text(of)).transpose()?;
    let source = || of.as_deref().map(Path::new).context("`of` is missing");
    let size = || case::bytes(before.size.as_deref().context("`size` is missing")?);
    let text = || vars.text(before.text.as_deref().context("`text` is missing")?);
    match before.is.as_str() {
        "pattern" => fs::write(path, pattern(size()?, before.seed))?,
        "zeroes" => fs::write(path, vec![0; usize::try_from(size()?)?])?,
        "sparse" => sparse(path, size()?, before.seed)?,
        "text" => fs::write(path, text()?)?,
        "bytes" => fs::write(path, base64::engine::general_purpose::STANDARD.decode(text()?.trim())?)?,
        "dir" => fs::create_dir_all(path)?,
        "fifo" => run(Command::new("mkfifo").arg(path))?,
        "link" => symlink(of.context("`of` is missing")?, path)?,
        "head" => {
            let mut bytes = fs::read(source()?)?;
            bytes.truncate(usize::try_from(size()?)?);
            fs::write(path, bytes)?;
        }
        "copy" => drop(fs::copy(source()?, path)?),
        "joined" => {
            let more = fs::read(source()?)?;
            fs::OpenOptions::new().append(true).create(true).open(path)?.write_all(&more)?;
        }
        "tar" if !before.members.is_empty() => fs::write(path, archive::tar(&before.members)?)?,
        "zip" if !before.members.is_empty() => fs::write(path, archive::zip(&before.members)?)?,
        "gzip" | "bzip2" | "xz" | "zstd" | "lz4" => {
            run(Command::new(&before.is).arg("-c").arg(source()?).stdout(File::create(path)?))?;
        }
        "tar" => {
            let source = source()?;
            let dir = source.parent().context("`of` has no parent")?;
            run(Command::new("tar").arg("-cf").arg(path).arg("-C").arg(dir).args(source.file_name()))?;
        }
        "zip" => {
            // It gives a name without an ending one.
            let named = path.with_extension("zip");
            run(Command::new("zip").arg("-q").arg("-j").arg(&named).arg(source()?))?;
            fs::rename(named, path)?;
        }
        format @ ("qcow2" | "vmdk" | "vdi" | "vhdx" | "luks") => {
            image(before, vars, path, format, of.as_deref())?;
        }
        other => bail!("There is no content of kind {other}"),
    }
    Ok(())
}

fn image(before: &Before, vars: &Vars, path: &Path, format: &str, of: Option<&str>) -> Result<()> {
    if let Some(of) = of {
        return run(Command::new("qemu-img").args(["convert", "-O", format]).arg(of).arg(path));
    }
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", format]);
    if format == "luks" {
        create.args(["--object", "secret,id=key,data=conformance", "-o", "key-secret=key,iter-time=10"]);
    }
    if let Some(data) = &before.data_file {
        create.arg("-o").arg(format!("data_file={},data_file_raw=on", vars.text(data)?));
    }
    if let Some(backing) = &before.backing {
        let backing_format = before.backing_format.as_deref().unwrap_or("qcow2");
        create.args(["-u", "-b", &vars.text(backing)?, "-F", backing_format]);
    }
    create.arg(path);
    if let Some(size) = &before.size {
        create.arg(case::bytes(size)?.to_string());
    }
    run(&mut create)?;
    for write in &before.write {
        run(Command::new("qemu-io").args(["-f", format, "-c", write]).arg(path).stdout(Stdio::null()))?;
    }
    Ok(())
}

fn sparse(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let ends = ENDS.min(size / 2);
    file.write_all(&pattern(ends, seed))?;
    file.seek(SeekFrom::Start(size - ends))?;
    file.write_all(&pattern(ends, seed + 1))?;
    Ok(())
}

/// Bytes of a small generator (xorshift): no two blocks alike, no dependency, the same everywhere.
fn pattern(size: u64, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 8);
    while (bytes.len() as u64) < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    bytes
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    if !output.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
