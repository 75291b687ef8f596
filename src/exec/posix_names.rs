//! Giving files their names, in the POSIX sh of [`super::posix`].

use std::path::Path;

use super::quote::q;
use super::staging;

/// The directory that a path is in, quoted.
pub(super) fn dir_of(path: &Path) -> String {
    q(path.parent().unwrap_or(Path::new("/")))
}

/// `mv` would copy to another file system. What the disk does not take is taken back, as in process.
pub(super) fn rename(from: &Path, to: &Path) -> String {
    format!(
        "os_need {from} ''\nt=${{o% *}}; t=${{t##* }}\nos_need {dir} -L\no=${{o% *}}\n\
         [ \"$t\" = \"${{o##* }}\" ] || os_die ': Invalid cross-device link'\n\
         r=\n[ -e {to} ] || [ -L {to} ] || r=new\nmv -fT -- {from} {to} || exit\n\
         sync {dir} {from_dir} || {{ o=$?; [ -z \"$r\" ] || mv -nT -- {to} {from}; exit \"$o\"; }}",
        from = q(from),
        to = q(to),
        dir = dir_of(to),
        from_dir = dir_of(from),
    )
}

/// In two renames: `mv --exchange` is too new.
pub(super) fn replace(from: &Path, to: &Path, kept: &Path) -> String {
    format!(
        "os_need {from} ''; os_need {to} ''; os_there {kept} '' && os_die ': File exists'\n\
         mv -nT -- {to} {kept} || exit\n\
         mv -nT -- {from} {to} && sync {dir} {kept_dir} || {{\n\
         o=$?; os_back() {{ [ -e \"$1\" ] || [ -L \"$1\" ] || mv -nT -- \"$2\" \"$1\"; }}\n\
         os_back {from} {to}; os_back {to} {kept}; exit \"$o\"; }}",
        from = q(from),
        to = q(to),
        kept = q(kept),
        dir = dir_of(to),
        kept_dir = dir_of(kept),
    )
}

/// The same sentence as in process.
pub(super) fn put_back(from: &Path, to: &Path) -> String {
    format!(
        "if os_there {from} '' && ! os_there {to} ''; then mv -nT -- {from} {to} && sync {dir} {from_dir} || exit; fi",
        from = q(from),
        to = q(to),
        dir = dir_of(to),
        from_dir = dir_of(from),
    )
}

/// `mv` would not sync, and would leave a part under the final name when it is killed on its way to another file system.
pub(super) fn move_file(from: &Path, to: &Path, claimed: Option<(&Path, usize)>) -> String {
    format!(
        "os_need {from} ''\nt=${{o% *}}; t=${{t##* }}\nos_need {dir} -L\no=${{o% *}}\n\
         if [ \"$t\" = \"${{o##* }}\" ]; then mv -fT -- {from} {to} && sync {dir} {from_dir} || exit\n\
         elif [ -d {from} ] && ! [ -L {from} ]; then os_die ': Is a directory'\n\
         else os_temp {to}{temp}\n\
         rm -f -- \"$w\" && cp -dpT --reflink=auto --sparse=auto -- {from} \"$w\" && {{ [ -L \"$w\" ] || sync \"$w\"; }} \
         && mv -fT -- \"$w\" {to} && sync {dir} || exit\nos_kept\n\
         rm -f -- {from} && sync {from_dir} || exit; fi",
        from = q(from),
        to = q(to),
        dir = dir_of(to),
        from_dir = dir_of(from),
        temp = temp_of(to, claimed),
    )
}

/// The second word for `os_temp`, if there is one: beside a staging file, or beside the script's claim, with the operation's
/// number.
pub(super) fn temp_of(path: &Path, claimed: Option<(&Path, usize)>) -> String {
    let index = claimed.map_or(0, |(_, index)| index as u64);
    let temp = staging::beside(path, index).or_else(|| staging::beside(claimed?.0, index));
    temp.map_or_else(String::new, |temp| format!(" {}", q(&temp)))
}
