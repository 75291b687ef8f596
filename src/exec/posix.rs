//! The other interpreter: a script as POSIX sh, for hosts where this binary does not stand. With [`super::quote`] the only place that makes text for a shell.
//!
//! The far side is assumed to have GNU coreutils and findutils, awk, and util-linux; any `sh` will do. What travels:
//!
//! - To it: a constant command line, then the script as one line of Base64 on standard input ([`delivery`]), then the
//!   data that [`Op::Receive`] takes. So nothing of the script, secrets included, is in an argument list.
//! - From it on stdout: one line for each answer, `index payload`, where the payload is `-` (absent), `:text`, or Base64;
//!   at last `end`. A script that sends ([`Op::Send`], [`Op::SendAllowed`]) writes the raw bytes
//!   instead.
//! - From it on stderr: a line `@onestore-op index` before each operation, so that words can be told whose they are, and
//!   at a failure at last `@onestore-failed index status`, and before it `@onestore-guard index status` for each guard
//!   ([`Op::Guard`]) that failed then.
//!
//! The script is plain ASCII. It must not be fed to sh as its standard input: it hands that to [`Op::Receive`] alone.
//!
//! Descriptors: 3 carries the status out of a pipeline, 4 is the real stdout, 5 the stream, 6 to 9 are locks and guards.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::alive;
use super::carry::NOT_HERE;
use super::cmd::Cmd;
use super::error::{OpError, OpErrorKind, fault};
use super::guard;
use super::op::{FileKind, Node, Op, Script, Space, Sparse, Stat, Value};
use super::posix_names::{dir_of, move_file, put_back, rename, replace, temp_of};
use super::posix_paths::{inside, send_allowed};
use super::process::{Missing, ProcessError, ProcessErrorKind, Programs, last_words};
use super::quote::{q, quote};
use super::staging;

/// The command line of every script: any login shell hands it to sh, which reads one line and leaves the rest alone.
///
/// A connection that ends within the line runs nothing, and neither does a host without `base64`.
pub const REMOTE_COMMAND: &str = r#"exec sh -c 'IFS= read -r s && s=$(printf %s "$s" | base64 -d) && eval "$s"'"#;

/// How a script travels: the remote command, and the line that comes first on its standard input.
#[must_use]
pub fn delivery(script: &Script) -> (&'static str, Vec<u8>) {
    (REMOTE_COMMAND, first_line(&render(script)))
}

/// The line that carries a rendered script to [`REMOTE_COMMAND`].
#[must_use]
pub fn first_line(rendered: &str) -> Vec<u8> {
    let mut line = BASE64.encode(rendered).into_bytes();
    line.push(b'\n');
    line
}

/// The script as POSIX sh, programs called by their own names.
#[must_use]
pub fn render(script: &Script) -> String {
    render_with(script, &Programs::default())
}

/// What every script begins with.
///
/// - `os_b index`: an operation begins.
/// - `os_die words [status]`: it failed, and this is why.
/// - `os_there path flag`: whether there is something; its `stat` line in `o`. `flag` is `-L` to follow links. Dies of
///   anything but absence, which includes a parent that is no directory.
/// - `os_within root path`: dies where the path leads out of the directory `root`, or would if it were there.
/// - `os_soft pattern… -- command…`: runs, and takes a failure with such words for success.
/// - `os_cap command…`: the command's output as an answer; its status in `s`.
/// - `os_ok status…`: dies unless `s` is one of these.
/// - `os_say text`: a short answer.
/// - `os_temp path [name]`: makes a file, to be renamed to `path`, whose name is `w` and which nobody else opens; it is removed
///   when the script ends, also by a signal, until `os_kept` says that it has its name. Its name is `name`, one of a staging
///   directory, if that is on the same file system: then it goes with its owner, however the script ends.
/// - `os_whole path`: takes the end mark `os_end` (see [`super::host::wire`]), where one was agreed on, off a received
///   file, and dies where it is missing: then the connection ended, not the data.
const PROLOGUE: &str = r#"set -u
LC_ALL=C LANG=C PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL LANG PATH
i=- d= o= s= t= w= os_g=
trap 's=$? e=$i; [ -z "$w" ] || rm -f -- "$w"; os_release; [ "$d" ] || printf '\''\n@onestore-failed %s %s\n'\'' "$e" "$s" >&2' EXIT
os_release() { :; }
os_b() { i=$1; printf '\n@onestore-op %s\n' "$i" >&2; }
os_die() { printf '%s\n' "$1" >&2; exit "${2:-1}"; }
os_there() {
  o=$(stat $2 -c '%f %s %d %i' -- "$1" 2>&1) && return 0
  case $o in *': No such file or directory' | *': Not a directory') return 1 ;; esac
  os_die "$o"
}
os_need() { os_there "$1" "$2" || os_die "$o"; }
os_within() {
  t=$(readlink -m -- "$2") && o=$(readlink -m -- "$1") || exit
  case $t in "$o" | "$o"/*) ;; *) os_die ": It leads out of $1" ;; esac
}
os_cap() {
  printf '%s ' "$i"
  s=$( { { "$@" 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; echo $? >&3; } | base64 -w0 >&4; } 3>&1 )
  echo
}
os_ok() { for o in "$@"; do [ "$s" != "$o" ] || return 0; done; exit "${s:-1}"; }
os_say() { printf '%s %s\n' "$i" "$1"; }
os_whole() {
  [ "${os_end:--}" = - ] && return 0
  [ "$(tail -c 32 -- "$1" 2>/dev/null | tr -d '\0')" = "$os_end" ] || os_die ': The stream was cut off'
  truncate -s -32 -- "$1" && sync "$1"
}
os_excl() { dd if=/dev/null of="$1" conv=excl status=none; }
os_temp() {
  trap 'exit 143' TERM HUP INT
  w=${1%/*}/.onestore.$$-$i-$(date +%N)
  if [ "${2-}" ]; then
    o=$(stat -Lc %d -- "${1%/*}/") && t=$(stat -Lc %d -- "${2%/*}/") || exit
    [ "$o" != "$t" ] || { w=$2; rm -f -- "$w" || exit; }
  fi
  (umask 077; os_excl "$w") || { s=$?; w=; exit "$s"; }
}
os_kept() { w=; trap - TERM HUP INT; }
exec 4>&1 5<&0 </dev/null
"#;

/// What guards need besides: `os_guard descriptor kind command…` posts one, `os_release [well]` releases all.
const GUARDS: &str = r#"os_guard() {
  o=$1; shift
  t=$(mktemp -d) && mkfifo -- "$t/p" "$t/q" || exit
  setsid sh -c "$os_program" guard "$@" <"$t/p" >"$t/q" 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
  os_g="$o $! $i $os_g"
  eval "exec $o>\"\$t/p\""
  read -r o <"$t/q" || o=
  rm -rf -- "$t"
  [ "$o" = up ] || os_die ': The guard did not start'
}
os_release() {
  while [ "$os_g" ]; do
    o=${1-}
    set -- $os_g
    os_b "$3"
    [ -z "$o" ] || eval "echo $o >&$1"
    eval "exec $1>&-"
    wait "$2"; t=$?
    shift 3; os_g=$*; set -- $o
    [ "$t" = 0 ] || { [ -z "$o" ] || exit "$t"; printf '\n@onestore-guard %s %s\n' "$i" "$t" >&2; }
  done
}
"#;

/// What asks storage, see [`super::alive`]: `os_alive seconds [index path…]…` dies in the operation `index` where what holds
/// one of its paths has not answered in time. What a link leads to is not asked. The child that hangs is left with nothing
/// of ours open.
const ALIVE: &str = r#"os_alive() {
  os_n=$1; shift
  while read -r o o o o os_m t; do
    t=${t##* - }; o=${t#* }; o=${o%% *}; t=${t%% *}
    case $t in @LOCAL@) continue ;; esac
    for s in "$@"; do
      case $s in /*) ;; *) os_i=$s; continue ;; esac
      case $s/ in "${os_m%/}"/*) ;; *) continue ;; esac
      stat -f -- "$os_m" >/dev/null 2>&1 </dev/null 3>&- 4>&- 5>&- &
      os_p=$! os_c=0
      while IFS= read -r s 2>/dev/null <"/proc/$os_p/stat"; do
        case ${s##*)} in ' Z'* | ' X'*) break ;; esac
        [ "$os_c" -lt "$((os_n * 50))" ] || {
          kill -9 "$os_p"
          os_b "$os_i"
          os_die ": The storage mounted on $os_m ($t of $o) has not answered within $os_n s"
        }
        sleep 0.02; os_c=$((os_c + 1))
      done
      break
    done
  done </proc/self/mountinfo
}
"#;

/// The script as POSIX sh, programs called as `programs` has them; nothing is looked up here.
#[must_use]
pub fn render_with(script: &Script, programs: &Programs) -> String {
    let mut text = String::from(PROLOGUE);
    let sends = script.sends();
    let guarded = script.ops.iter().any(|op| matches!(op, Op::Guard { .. }));
    if guarded {
        let _ = writeln!(text, "{GUARDS}os_program={}", quote(OsStr::new(guard::PROGRAM)));
    }
    text.push_str(&asked(script));
    // The next descriptor of a lock or guard.
    let mut held = 6;
    let mut claimed: Option<&Path> = None;
    for (index, op) in script.ops.iter().enumerate() {
        let _ = writeln!(text, "os_b {index}");
        text.push_str(&inside(op, &script.fences));
        if let Op::Claim { path } = op {
            claimed = Some(path);
        }
        let body = match fault(script, index) {
            Some(fault) => format!("os_die {}", quote(OsStr::new(&fault))),
            None => match op {
                Op::Run(cmd) => run(cmd, programs, sends),
                Op::Lock { name, wait_seconds } => {
                    held += 1;
                    lock(name, *wait_seconds, held - 1)
                }
                Op::Guard { cmd, only_on_failure } => {
                    held += 1;
                    let argv: Vec<String> = programs.argv(cmd).iter().map(|word| quote(word)).collect();
                    let program = programs.words(&cmd.program).swap_remove(0);
                    format!(
                        "command -v {0} >/dev/null || os_die {0}': not found' 127\nos_guard {1} {2} {3}",
                        quote(&program),
                        held - 1,
                        guard::word(*only_on_failure),
                        argv.join(" ")
                    )
                }
                Op::SendAllowed { path, policy } => send_allowed(path, policy),
                Op::Carry(_) | Op::Attend { .. } => format!("os_die {}", quote(OsStr::new(NOT_HERE))),
                op if op.is_question() => question(op),
                op => change(op, claimed.map(|path| (path, index))),
            },
        };
        text.push_str(&body);
        text.push('\n');
    }
    if guarded {
        let _ = writeln!(text, "os_release {}", guard::WELL);
    }
    if !sends {
        let _ = writeln!(text, "echo {END}");
    }
    text.push_str("d=1\n");
    text
}

/// [`ALIVE`] and its call, each path at the operation that has it first.
fn asked(script: &Script) -> String {
    let Some(patience) = alive::patience() else { return String::new() };
    let mut text = ALIVE.replace("@LOCAL@", &alive::LOCAL.join("|"));
    let _ = write!(text, "os_alive {}", patience.as_secs());
    let mut asked = BTreeSet::new();
    for (index, op) in script.ops.iter().enumerate() {
        let fresh: Vec<_> = alive::paths(op).into_iter().filter(|path| asked.insert(path.clone())).collect();
        if !fresh.is_empty() {
            let _ = write!(text, " {index}");
        }
        for path in fresh {
            let _ = write!(text, " {}", q(&path));
        }
    }
    text.push('\n');
    text
}

/// What the agent says in front of a further failure; the sh form leaves the words to the reader.
pub(super) const BESIDES: &str = "@onestore-besides ";

/// The last line of stdout: all answers have arrived.
pub(super) const END: &str = "end";

/// The commands of a question; they exit with the failing command's status.
fn question(op: &Op) -> String {
    match op {
        Op::Stat { path, follow } => {
            format!("if os_there {} {}; then os_say \":$o\"; else os_say -; fi", q(path), follow_flag(*follow))
        }
        Op::ReadLink { path } => format!(
            "if os_there {0} '' && [ -L {0} ]; then os_cap readlink -n -- {0}; os_ok 0; else os_say -; fi",
            q(path)
        ),
        Op::List { path } => format!(
            "if os_there {0} -L; then [ -d {0} ] || os_die ': Not a directory'\n\
             os_cap find -H {0} -mindepth 1 -maxdepth 1 -printf '%f\\0'; os_ok 0; else os_say -; fi",
            q(path)
        ),
        Op::Read { path, offset, len } => format!(
            "os_cap dd if={} bs=65536 iflag=skip_bytes,count_bytes,fullblock skip={offset} count={len} status=none; os_ok 0",
            q(path)
        ),
        Op::Head { path, len } => format!(
            "if os_there {0} -L; then [ -d {0} ] && os_die ': Is a directory'\n\
             os_cap head -c {len} -- {0}; os_ok 0; else os_say -; fi",
            q(path)
        ),
        // `-H` follows the starting point alone. A name that vanishes between being read and being looked at is no failure.
        Op::Tree { path, depth } => format!(
            "if os_there {0} -L; then\n\
             os_cap find -H {0} -ignore_readdir_race -maxdepth {depth} -printf '%y %s %b %P\\0%l\\0'; os_ok 0; else os_say -; fi",
            q(path)
        ),
        Op::Space { path } => format!("os_cap df -B1M --output=size,used,avail -- {}; os_ok 0", q(path)),
        Op::TreeSize { path } => format!(
            "o=$(find {} -printf '%y%D:%i %n %s\\n') || exit\n\
             os_say \":$(printf '%s\\n' \"$o\" | awk '$1~/^d/||$2<2||!n[$1]++{{t+=$3}}END{{printf \"%.0f\",t}}')\"",
            q(path)
        ),
        Op::Md5 { path } => format!("os_cap md5sum -- {}; os_ok 0", q(path)),
        Op::Sha256 { path } => format!("os_cap sha256sum -- {}; os_ok 0", q(path)),
        _ => unreachable!("not a question"),
    }
}

/// The commands of a change; they exit with the failing command's status.
fn change(op: &Op, claimed: Option<(&Path, usize)>) -> String {
    match op {
        Op::MakeDir { path } => format!("mkdir -p -- {} || exit", q(path)),
        Op::Claim { path } => format!(
            "o=0; until mkdir -p -m 700 -- {0} && : 2>/dev/null >>{1}; do\n\
             o=$((o + 1)); [ $o -lt 100 ] || {{ : >>{1}; exit; }}; done",
            dir_of(path),
            q(path)
        ),
        Op::RemoveDirIfEmpty { path } => format!(
            "o=$(rmdir -- {} 2>&1) || case $o in\n\
             *': No such file or directory' | *': Directory not empty' | *': File exists') ;;\n\
             *) os_die \"$o\" ;; esac",
            q(path)
        ),
        Op::Symlink { target, link } => {
            format!("ln -sfT -- {} {} && sync {} || exit", q(target), q(link), dir_of(link))
        }
        Op::HardLink { from, to } => format!("ln -PT -- {} {} && sync {} || exit", q(from), q(to), dir_of(to)),
        Op::Write { path, content, mode } => {
            let content = BASE64.encode(content.reveal());
            format!(
                "os_temp {path}{temp}\n\
                 printf %s '{content}' | base64 -d >\"$w\" && chmod {mode:04o} -- \"$w\" && sync \"$w\" \
                 && mv -fT -- \"$w\" {path} && sync {dir} || exit\nos_kept",
                dir = dir_of(path),
                mode = mode & 0o7777,
                path = q(path),
                temp = temp_of(path, claimed),
            )
        }
        Op::Rename { from, to } => rename(from, to),
        Op::Replace { from, to, kept } => replace(from, to, kept),
        Op::PutBack { from, to } => put_back(from, to),
        Op::Move { from, to } => move_file(from, to, claimed),
        Op::Remove { path, tree, must_exist } => {
            let need = if *must_exist { format!("os_need {} ''\n", q(path)) } else { String::new() };
            let flags = if *tree { "-rf" } else { "-f" };
            format!("{need}rm {flags} -- {} || exit", q(path))
        }
        Op::Copy { from, to, sparse } => format!(
            "cp -LT --reflink=auto --sparse={} -- {} {to} || exit",
            sparse.word(),
            q(from),
            to = q(to),
        ),
        Op::PunchHoles { path } => format!(
            "os_need {0} -L\no=$(fallocate -d -- {0} 2>&1) || case $o in\n\
             *'not supported'* | *': Function not implemented' | *': Invalid argument') ;;\n\
             *) os_die \"$o\" ;; esac",
            q(path)
        ),
        Op::CreateSparse { path, bytes } => format!("os_excl {0} && truncate -s {bytes} -- {0} || exit", q(path)),
        Op::Receive { path, sparse } => {
            let sparse = match sparse {
                Sparse::Holes => ",sparse",
                Sparse::Allocate => "",
            };
            format!(
                "dd of={0} bs=65536 iflag=fullblock conv=excl{sparse} status=none <&5 && os_whole {0} || exit\n\
                 os_need {0} ''\no=${{o#* }}; os_say \":${{o%% *}}\"",
                q(path)
            )
        }
        Op::Send { path } => format!("cat -- {} || exit", q(path)),
        Op::Sync { path } => format!("sync {} || exit", q(path)),
        Op::Publish { from, to } => format!(
            "sync {from} || exit\n\
             if o=$(ln -PT -- {from} {to} 2>&1); then :; else case $o in\n\
             *': Operation not permitted' | *': Operation not supported' | *': Too many links')\n\
             os_there {to} '' && os_die ': File exists'\nmv -nT -- {from} {to} || exit\n\
             os_there {from} '' && os_die ': File exists' ;;\n\
             *) os_die \"$o\" ;; esac; fi\n:",
            from = q(from),
            to = q(to),
        ),
        Op::Sweep { staging, dead } => dead.iter().fold(String::from(":"), |mut text, name| {
            let path = staging.join(name);
            if let Some(to) = staging::final_of(&path) {
                let _ = write!(
                    text,
                    "\nif o=$(stat -c %d:%i -- {path} 2>/dev/null) && t=$(stat -c %d:%i -- {to} 2>/dev/null) \
                     && [ \"$o\" = \"$t\" ]; then rm -f -- {to} 2>/dev/null && sync {dir} 2>/dev/null; fi\n\
                     if ! o=$(stat -c %d:%i -- {to} 2>/dev/null) || [ \"$o\" != \"$(stat -c %d:%i -- {path} 2>/dev/null)\" ]; \
                     then rm -rf -- {path} 2>/dev/null; fi",
                    path = q(&path),
                    to = q(&to),
                    dir = dir_of(&to),
                );
            }
            text
        }),
        _ => unreachable!("rendered by the caller"),
    }
}

fn follow_flag(follow: bool) -> &'static str {
    if follow { "-L" } else { "''" }
}

fn lock(name: &str, wait_seconds: u64, fd: usize) -> String {
    let (file, make) = if super::lock::is_path(name) {
        (quote(OsStr::new(name)), "")
    } else {
        let name = quote(OsStr::new(&super::lock::file_name(name)));
        (format!("${{ONESTORE_LOCK_DIR:-/var/lock/one}}/{name}"), "mkdir -p -- \"${t%/*}\" && ")
    };
    format!(
        "t={file}\n\
         (umask 0027; {make}: >>\"$t\") 2>/dev/null || os_die \"Could not create or open lock $t\"\n\
         exec {fd}>>\"$t\"\n\
         flock -w {wait_seconds} {fd} || os_die \"Could not acquire exclusive lock on $t\"",
    )
}

fn run(cmd: &Cmd, programs: &Programs, dropped: bool) -> String {
    let mut line = String::new();
    if let Some(text) = &cmd.secret_stdin {
        let _ = write!(line, "printf %s '{}' | base64 -d | ", BASE64.encode(text.reveal()));
    }
    for (name, value) in &cmd.secret_env {
        let _ = write!(line, "{name}={} ", quote(OsStr::new(value.reveal())));
    }
    let argv: Vec<String> = programs.argv(cmd).iter().map(|word| quote(word)).collect();
    let statuses: String = cmd.also_ok.iter().fold(String::from("0"), |list, status| format!("{list} {status}"));
    let take = if dropped { "os_r >/dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; s=$?" } else { "os_cap os_r" };
    format!("os_r() {{ {line}{}; }}\n{take}\nos_ok {statuses}", argv.join(" "))
}

/// An answer that is not what the script promises: something else on the far side writes to stdout, or it was cut off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The far side gave no proper answer to operation {index} ({op})")]
pub struct BadAnswer {
    /// Index of the operation.
    pub index: usize,
    /// The operation for people.
    pub op: String,
}

impl From<BadAnswer> for OpError {
    fn from(bad: BadAnswer) -> Self {
        Self::new(bad.index, OpErrorKind::Other, bad.to_string())
    }
}

/// Reads back the answers of a script that ended with status 0. A script that sends has none: its stdout is data.
///
/// # Errors
/// [`BadAnswer`] for the first operation whose answer is missing or unreadable.
pub fn parse(script: &Script, stdout: &[u8]) -> Result<Vec<Value>, BadAnswer> {
    if script.sends() {
        return Ok(vec![Value::Done; script.ops.len()]);
    }
    let bad =
        |index: usize| BadAnswer { index, op: script.ops.get(index).map(ToString::to_string).unwrap_or_default() };
    let mut lines = stdout.split(|byte| *byte == b'\n');
    let answers = script.ops.iter().enumerate().map(|(index, op)| {
        let bad = || bad(index);
        if !answers(op) {
            return Ok(Value::Done);
        }
        // A login shell's own words may stand before the first answer; they do not look like ours.
        let prefix = format!("{index} ");
        let payload = lines.find_map(|line| line.strip_prefix(prefix.as_bytes())).ok_or_else(bad)?;
        value(op, payload).ok_or_else(bad)
    });
    let values = answers.collect::<Result<_, _>>()?;
    let ended = lines.any(|line| line == END.as_bytes());
    if ended { Ok(values) } else { Err(bad(script.ops.len().saturating_sub(1))) }
}

/// Whether an operation answers more than [`Value::Done`].
fn answers(op: &Op) -> bool {
    op.is_question() || matches!(op, Op::Receive { .. } | Op::Run(_))
}

fn value(op: &Op, payload: &[u8]) -> Option<Value> {
    if payload == b"-" {
        let may_be =
            matches!(op, Op::Stat { .. } | Op::ReadLink { .. } | Op::List { .. } | Op::Head { .. } | Op::Tree { .. });
        return may_be.then_some(Value::Absent);
    }
    if let Some(text) = payload.strip_prefix(b":") {
        let text = std::str::from_utf8(text).ok()?;
        return match op {
            Op::Stat { .. } => stat(text).map(Value::Stat),
            Op::TreeSize { .. } | Op::Receive { .. } => text.parse().ok().map(Value::Number),
            // A number is no answer to what asks for bytes or names.
            _ => None,
        };
    }
    let bytes = BASE64.decode(payload).ok()?;
    match op {
        Op::List { .. } => {
            let names = bytes.split_inclusive(|byte| *byte == 0);
            let names = names.map(|name| name.strip_suffix(b"\0").map(|name| OsString::from_vec(name.to_vec())));
            names.collect::<Option<_>>().map(Value::Names)
        }
        Op::Space { .. } => space(std::str::from_utf8(&bytes).ok()?).map(Value::Space),
        Op::Md5 { .. } | Op::Sha256 { .. } => {
            let digits = if matches!(op, Op::Md5 { .. }) { 32 } else { 64 };
            // A backslash in front says that the name was escaped.
            let digest = bytes.strip_prefix(b"\\").unwrap_or(&bytes).get(..digits)?;
            digest.iter().all(u8::is_ascii_hexdigit).then(|| Value::Bytes(digest.to_vec()))
        }
        Op::Tree { .. } => tree(&bytes).map(Value::Tree),
        Op::ReadLink { .. } | Op::Read { .. } | Op::Head { .. } | Op::Run(_) => Some(Value::Bytes(bytes)),
        _ => None,
    }
}

/// Mode in hexadecimal, size, device, inode.
fn stat(text: &str) -> Option<Stat> {
    let mut fields = text.split(' ');
    let mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Stat { kind: FileKind::of_mode(mode), size: number()?, mode: mode & 0o7777, dev: number()?, ino: number()? })
}

/// The nodes of [`Op::Tree`]: type, size, blocks of 512 bytes and path, a NUL, text of a link, a NUL.
fn tree(bytes: &[u8]) -> Option<Vec<Node>> {
    let mut nodes = Vec::new();
    let mut fields = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    while let Some(line) = fields.next() {
        let link = fields.next()?;
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let kind = match words.next()? {
            b"f" => FileKind::File,
            b"d" => FileKind::Dir,
            b"l" => FileKind::Link,
            b"b" => FileKind::Block,
            _ => FileKind::Other,
        };
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let (size, blocks) = (number()?, number()?);
        let path = |bytes: &[u8]| std::path::PathBuf::from(OsString::from_vec(bytes.to_vec()));
        nodes.push(Node {
            path: path(words.next()?),
            kind,
            size,
            allocated: blocks.saturating_mul(512),
            link: (kind == FileKind::Link).then(|| path(link)),
        });
    }
    nodes.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Some(nodes)
}

/// The same as `find` prints it.
pub(super) fn tree_text(nodes: &[Node]) -> Vec<u8> {
    let mut out = Vec::new();
    for node in nodes {
        let kind = match node.kind {
            FileKind::File => 'f',
            FileKind::Dir => 'd',
            FileKind::Link => 'l',
            FileKind::Block => 'b',
            FileKind::Other => 'U',
        };
        out.extend_from_slice(format!("{kind} {} {} ", node.size, node.allocated / 512).as_bytes());
        out.extend_from_slice(node.path.as_os_str().as_bytes());
        out.push(0);
        out.extend_from_slice(node.link.as_deref().map_or(&[][..], |link| link.as_os_str().as_bytes()));
        out.push(0);
    }
    out
}

/// Size, used and available in the second line of `df`; `-` is what a file system does not know.
fn space(text: &str) -> Option<Space> {
    let mut fields = text.lines().nth(1)?.split_ascii_whitespace();
    let mut number = || match fields.next()? {
        "-" => Some(0),
        field => field.parse().ok(),
    };
    Some(Space { total_mib: number()?, used_mib: number()?, free_mib: number()? })
}

/// What a script that ended with `status` (`None`: by a signal) failed of. `stderr` may be the tail only.
///
/// Without our own line on stderr it was not the script that failed: no connection, no shell. Then
/// [`OpError::index`] is `None`, and the text is what was said last.
#[must_use]
pub fn failure(script: &Script, status: Option<i32>, stderr: &[u8]) -> OpError {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.iter().enumerate().rev().find_map(|(at, line)| {
        let (index, status) = line.strip_prefix("@onestore-failed ")?.split_once(' ')?;
        let index: usize = index.parse().ok()?;
        Some((at, index, script.ops.get(index)?, status.trim().parse().ok()?))
    });
    let Some((at, index, op, status)) = found else { return no_shell(status, &text) };
    let words = |index: usize, at: usize| {
        let begin = format!("@onestore-op {index}");
        let after = lines[..at].iter().rposition(|line| *line == begin).map_or(0, |at| at + 1);
        // What guards say afterwards is theirs.
        let next = lines[after..at].iter().position(|line| line.starts_with("@onestore-"));
        lines[after..next.map_or(at, |next| after + next)].join("\n")
    };
    let mut error = op_failure(script, (index, op), status, &words(index, at));
    for (at, line) in lines[..at].iter().enumerate() {
        if let Some(other) = line.strip_prefix(BESIDES) {
            error = error.besides(other);
        }
        let failed = line.strip_prefix("@onestore-guard ").and_then(|rest| rest.split_once(' '));
        let failed = failed.and_then(|(index, status)| Some((index.parse().ok()?, status.trim().parse().ok()?)));
        if let Some((index, status)) = failed
            && let Some(Op::Guard { cmd, .. }) = script.ops.get(index)
        {
            let failed = OpError::process(index, program_failure(cmd, status, words(index, at)));
            error = error.besides(&failed.to_string());
        }
    }
    error
}

fn op_failure(script: &Script, (index, op): (usize, &Op), status: i32, said: &str) -> OpError {
    if let Some(fault) = fault(script, index) {
        return OpError::new(index, OpErrorKind::Script, format!("{}: {fault}", super::error::cannot(op)));
    }
    match op {
        Op::Run(cmd) | Op::Guard { cmd, .. } => OpError::process(index, program_failure(cmd, status, said.to_owned())),
        Op::Lock { .. } => {
            let words = last_words(said).unwrap_or_else(|| super::error::cannot(op));
            OpError::new(index, OpErrorKind::Locked, words)
        }
        op => {
            let cause = last_words(said).map(|words| cause(&words).to_owned());
            OpError::text(index, op, &cause.unwrap_or_else(|| format!("exit status {status}")))
        }
    }
}

/// What coreutils say in words of their own, and what the system call says that they did not try.
const OWN_WORDS: &[(&str, &str)] = &[
    ("cannot overwrite directory", "Is a directory"),
    ("-r not specified; omitting directory", "Is a directory"),
    ("cannot overwrite non-directory", "Not a directory"),
    ("not writing through dangling symlink", "File exists"),
    ("to a subdirectory of itself", "Invalid argument"),
    ("are the same file", "They are the same file"),
];

/// The cause in a line like `cp: cannot stat '/a': No such file or directory`: what stands before it we say better.
fn cause(words: &str) -> &str {
    let own = OWN_WORDS.iter().find(|(theirs, _)| words.contains(theirs));
    own.map_or_else(|| words.rsplit_once(": ").map_or(words, |(_, cause)| cause), |(_, ours)| ours)
}

/// sh says 127 for a program that it does not find, and so does `prlimit`.
fn program_failure(cmd: &Cmd, status: i32, stderr: String) -> ProcessError {
    let not_found = |line: &str| line.ends_with("not found") || line.contains("failed to execute");
    let kind = if status == 127 && stderr.lines().any(not_found) {
        ProcessErrorKind::Missing(Missing { program: cmd.program.clone() })
    } else {
        ProcessErrorKind::Status(status)
    };
    ProcessError { command: cmd.to_string(), kind, stderr }.within_limits_of(cmd)
}

fn no_shell(status: Option<i32>, text: &str) -> OpError {
    let ours = |line: &&str| !line.starts_with("@onestore-");
    let said = last_words(&text.lines().filter(ours).collect::<Vec<_>>().join("\n"));
    let how = match status {
        Some(status) => format!("The far side's shell ended with exit status {status}"),
        None => "The far side's shell was ended by a signal".to_owned(),
    };
    let message = said.map_or(how.clone(), |said| format!("{how}: {said}"));
    OpError::outside(OpErrorKind::Other, message)
}

#[cfg(test)]
#[path = "posix_tests.rs"]
mod tests;
