//! `xorriso -as mkisofs`, or `genisoimage` where only that is installed: CD-ROM images (xorrisofs(1), genisoimage(1)).

use std::path::Path;

use crate::exec::cmd::Cmd;

/// The label by which a guest finds its context.
const LABEL: &str = "CONTEXT";

/// Makes an image of all that is in `dir`: Joliet names for Windows, Rock Ridge for names, permissions and links elsewhere.
#[must_use]
pub fn xorriso(dir: &Path, iso: &Path) -> Cmd {
    with_options(Cmd::new("xorriso").args(["-as", "mkisofs"]), dir, iso)
}

/// The same with the older program.
#[must_use]
pub fn genisoimage(dir: &Path, iso: &Path) -> Cmd {
    with_options(Cmd::new("genisoimage"), dir, iso)
}

fn with_options(cmd: Cmd, dir: &Path, iso: &Path) -> Cmd {
    cmd.args(["-quiet", "-V", LABEL, "-J", "-R", "-o"]).arg(iso).arg(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_get_the_same_options() {
        let (dir, iso) = (Path::new("/d"), Path::new("/i"));
        assert_eq!(xorriso(dir, iso).to_string(), "xorriso -as mkisofs -quiet -V CONTEXT -J -R -o /i /d");
        assert_eq!(genisoimage(dir, iso).to_string(), "genisoimage -quiet -V CONTEXT -J -R -o /i /d");
    }
}
