//! `mkfs`, `mkfs.xfs`, `mkswap`: file systems on new image files (mkfs(8), mkfs.xfs(8), mkswap(8)).

use std::path::Path;

use crate::exec::cmd::Cmd;

/// Makes the file system `fs` on the file `path`; `options` come from the operator's `FS_OPTS_<fs>`.
///
/// The general `mkfs` refuses a regular file unless told `-F`; for xfs the same wish is called `-f`.
#[must_use]
pub fn mkfs(fs: &str, options: &[&str], path: &Path) -> Cmd {
    let cmd = match fs {
        "xfs" => Cmd::new("mkfs.xfs").args(["-q", "-f"]),
        fs => Cmd::new("mkfs").args(["-t", fs, "-F"]),
    };
    cmd.args(options).arg(path)
}

/// Makes a swap area labelled `swap`, the label that contextualisation looks for.
#[must_use]
pub fn mkswap(path: &Path) -> Cmd {
    Cmd::new("mkswap").args(["-L", "swap"]).arg(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_before_the_file() {
        assert_eq!(mkfs("ext4", &["-m", "0"], Path::new("/a")).to_string(), "mkfs -t ext4 -F -m 0 /a");
        assert_eq!(mkfs("xfs", &[], Path::new("/a")).to_string(), "mkfs.xfs -q -f /a");
    }
}
