//! Writes archives whose members say whatever a case wants: names and kinds that no program would pack.

use anyhow::{Context, Result, bail};

use super::case::Member;

/// A tar (ustar) of these members, with its end mark.
pub fn tar(members: &[Member]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for member in members {
        let kind = match member.is.as_deref().unwrap_or("file") {
            "file" => b'0',
            "hard" => b'1',
            "link" => b'2',
            "device" => b'3',
            "dir" => b'5',
            "fifo" => b'6',
            other => bail!("There is no member of kind {other}"),
        };
        let mode = u32::from_str_radix(member.mode.as_deref().unwrap_or("644"), 8)?;
        let mut header = [0; 512];
        let mut field = |at: usize, len: usize, text: &[u8]| -> Result<()> {
            header
                .get_mut(at..at + text.len().min(len))
                .context("A field is too long")?
                .copy_from_slice(&text[..text.len().min(len)]);
            Ok(())
        };
        field(0, 100, member.name.as_bytes())?;
        field(100, 8, format!("{mode:07o}").as_bytes())?;
        field(108, 8, b"0000000")?;
        field(116, 8, b"0000000")?;
        field(124, 12, format!("{:011o}", member.text.len()).as_bytes())?;
        field(136, 12, b"14000000000")?;
        field(148, 8, b"        ")?;
        field(156, 1, &[kind])?;
        field(157, 100, member.to.as_bytes())?;
        field(257, 8, b"ustar\x0000")?;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(member.text.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    Ok(out)
}

/// A zip of these members, stored.
pub fn zip(members: &[Member]) -> Result<Vec<u8>> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let (kind, data) = match member.is.as_deref().unwrap_or("file") {
            "file" => (0o100_000u32, member.text.as_bytes()),
            "dir" => (0o040_000, &b""[..]),
            "link" => (0o120_000, member.to.as_bytes()),
            other => bail!("There is no member of kind {other}"),
        };
        let mode = kind | u32::from_str_radix(member.mode.as_deref().unwrap_or("644"), 8)?;
        let (len, name) = (u32::try_from(data.len())?, member.name.as_bytes());
        let at = u32::try_from(out.len())?;
        // Version, flags, method, time and date, checksum, both lengths, length of the name and of no extra field.
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
        for number in [crc(data), len, len] {
            common.extend(number.to_le_bytes());
        }
        common.extend(u16::try_from(name.len())?.to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name);
        out.extend(data);
        // Made on Unix; no comment, disk 0, no internal attributes.
        directory.extend(b"PK\x01\x02\x1e\x03");
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((mode << 16).to_le_bytes());
        directory.extend(at.to_le_bytes());
        directory.extend(name);
    }
    let (count, at, len) = (u16::try_from(members.len())?, u32::try_from(out.len())?, u32::try_from(directory.len())?);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([len.to_le_bytes(), at.to_le_bytes()].concat());
    out.extend([0, 0]);
    Ok(out)
}

/// CRC-32 as of zip.
fn crc(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}
