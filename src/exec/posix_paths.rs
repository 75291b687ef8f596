//! Where paths lead, asked in POSIX sh before an operation of [`super::posix`] touches what they name.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::op::{Op, Role};
use super::quote::q;
use super::source::{FORBIDDEN, HOME, PathPolicy};

/// Looks whether the paths of an operation stay within the script's fences, immediately before it.
pub(super) fn inside(op: &Op, fences: &[PathBuf]) -> String {
    let mut text = String::new();
    for (path, role) in op.places() {
        let Some(root) = fences.iter().find(|root| path.starts_with(root) && path != **root) else { continue };
        let looked = match role {
            Role::Object => Some(path.as_path()),
            Role::Name => path.parent().filter(|dir| dir != root),
        };
        if let Some(looked) = looked {
            let _ = writeln!(text, "os_within {} {}", q(root), q(looked));
        }
    }
    text
}

/// Judges the name first, so that what is missing in a forbidden place cannot be told apart, then what was opened.
///
/// - `os_in path dir…`: whether it lies in one of them, as it is written or resolved. No expansion but that of a plain
///   variable stands in its patterns: bash takes `"${s%/}"/*` for something else than dash does.
/// - `os_may path`: dies unless the policy allows it.
/// - `os_kind mode`: dies unless that is a file or a block device.
pub(super) fn send_allowed(path: &Path, policy: &PathPolicy) -> String {
    let list = |dirs: &[PathBuf]| {
        let dirs = dirs.iter().filter(|dir| !dir.as_os_str().is_empty()).map(|dir| match dir.to_str() {
            // Nothing, where the home is the root: that guards everything.
            Some(HOME) => "\"${HOME%/}\"".to_owned(),
            // As components: `//` and a slash at the end are no part of the pattern.
            _ => q(&dir.components().collect::<PathBuf>()),
        });
        dirs.collect::<Vec<_>>().join(" ")
    };
    format!(
        "HOME=${{HOME-}}\n\
         os_in() {{ t=$1/; shift; for s in \"$@\"; do [ \"$s\" ] || continue\n\
         o=${{s%/}}; case $t in \"$o\"/*) return 0 ;; esac\n\
         o=$(readlink -e -- \"$s\" && echo x) || continue\n\
         o=${{o%?x}}; o=${{o%/}}; case $t in \"$o\"/*) return 0 ;; esac; done; return 1; }}\n\
         os_may() {{ os_in \"$1\" {safe} || ! os_in \"$1\" {restricted} || os_die ': {FORBIDDEN}'; }}\n\
         os_kind() {{ case $1 in 8* | 6*) return ;; 4*) s='a directory' ;; 1*) s='a pipe' ;; c*) s='a socket' ;;\n\
         *) s='a character device' ;; esac; os_die \": It is $s, not a file or block device\"; }}\n\
         o=$(readlink -m -- {path} && echo x) || exit\nos_may \"${{o%?x}}\"\n\
         os_need {path} -L\nos_kind \"$o\"\nexec 5<{path} || exit\n\
         o=$(readlink /proc/self/fd/5 && echo x) || exit\nos_may \"${{o%?x}}\"\n\
         o=$(stat -L -c '%f %s' /proc/self/fd/5) || exit\nos_kind \"$o\"\n\
         case $o in 6*) o=$(blockdev --getsize64 /proc/self/fd/5) || exit ;; esac\n\
         printf '%s\\n' \"${{o#* }}\"\ncat <&5 || exit",
        safe = list(&policy.safe),
        restricted = list(&policy.restricted),
        path = q(path),
    )
}
