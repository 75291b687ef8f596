//! Files of other machines: `ssh://[user@]host[:port]/path`, and upstream's `ssh://[user@]host:/path`.
//!
//! Contract 03 §2. Upstream hands parts of the address to two shells. We: the administrator's OpenSSH client runs one
//! typed script, which judges the file where it lies, tells its size and sends it. A connection that breaks is an error;
//! it is not resumed, as the file may be another one by then.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::options::{ImportError, Options};
use super::source::{HOME, PathPolicy, SourceError};
use super::url::{redact, split_scheme};
use crate::exec::control::Control;
use crate::exec::error::{OpErrorKind, cannot};
use crate::exec::host::openssh::OpenSsh;
use crate::exec::host::{ErrorKind, Host, HostName, ScriptError};
use crate::exec::interpret::Io;
use crate::exec::op::{Op, Script};
use crate::exec::process::Programs;
use crate::exec::relay::Relay;

/// Most digits of a size.
const DIGITS: usize = 20;

/// What is restricted on every machine, where anything is: the cloud's own files, wherever ours lie.
const CLOUD: [&str; 3] = [HOME, "/var/lib/one", "/etc/one"];

/// A file of another machine.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// `host` or `user@host`.
    host: HostName,
    port: Option<u16>,
    path: PathBuf,
}

/// Why an address is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum BadAddress {
    #[error("An ssh address is ssh://[USER@]HOST[:PORT]/PATH")]
    Form,
    #[error("The host's name has characters that none can have, or begins with '-'")]
    Host,
    #[error("The user's name has characters that none can have, or begins with '-'")]
    User,
    #[error("The port has to be a number from 1 to 65535")]
    Port,
    #[error("The path has to be absolute and to name a file")]
    Path,
}

impl Address {
    /// Takes an address apart. Its path is taken letter by letter.
    fn parse(text: &str) -> Result<Self, BadAddress> {
        let (_, rest) = split_scheme(text).ok_or(BadAddress::Form)?;
        let (login, path) = rest.split_at(rest.find('/').ok_or(BadAddress::Form)?);
        let (user, place) = match login.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, login),
        };
        let good = |text: &str, marks: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
            !text.is_empty() && !text.starts_with('-') && text.len() <= 128 && text.chars().all(fits)
        };
        if user.is_some_and(|user| !good(user, "._-")) {
            return Err(BadAddress::User);
        }
        let (host, port) = match place.strip_prefix('[') {
            // IPv6, which ssh wants without brackets.
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(BadAddress::Host)?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or(BadAddress::Host)?)
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        if !good(host, if place.starts_with('[') { ":.%-" } else { "._-" }) {
            return Err(BadAddress::Host);
        }
        // Nothing behind the colon: upstream's form.
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port > 0).ok_or(BadAddress::Port)?)
            }
            _ => return Err(BadAddress::Port),
        };
        let path = PathBuf::from(path);
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(BadAddress::Path);
        }
        let name = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
        Ok(Self { host: HostName::new(&name).map_err(|_| BadAddress::Host)?, port, path })
    }
}

/// What must hold of an address, whatever it says. See [`crate::fuzz`].
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let Ok(Address { host, port, path }) = Address::parse(text) else { return };
    let name = host.as_str();
    assert!(!name.starts_with('-') && !name.contains("@-"), "{name}");
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:%@".contains(&byte)), "{name}");
    assert!(path.is_absolute() && path.file_name().is_some() && text.ends_with(&*path.to_string_lossy()));
    let (user, host) = name.split_once('@').map_or(("", name), |(user, host)| (user, host));
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    let host = if host.contains([':', '%']) { format!("[{host}]") } else { host.to_owned() };
    let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
    let again = Address::parse(&format!("ssh://{user}{host}{port_text}{}", path.display())).expect("it is an address");
    assert_eq!((again.host.as_str(), again.port, again.path), (name, port, path));
}

/// Opens the file and waits for its size in bytes. The stream's end is only reached when the far side said so.
///
/// # Errors
/// [`ImportError`]: the address is none, the host is not reached, the file is missing, not readable or not allowed.
pub(super) fn open(location: &str, options: &Options, control: &Control) -> Result<(Relay, u64), ImportError> {
    let failed = |source| ImportError::Read { location: redact(location), source };
    let Address { host, port, path } = Address::parse(location).map_err(|error| failed(io::Error::other(error)))?;
    let op = Op::SendAllowed { path, policy: over_there(&options.policy) };
    let mut relay = start(host, port, options.programs.clone(), op.clone(), control).map_err(failed)?;
    match size(&mut relay) {
        Ok(size) => Ok((relay, size)),
        Err(error) => Err(explain(error, &op, location)),
    }
}

/// The rules of this machine's files, for another's.
fn over_there(policy: &PathPolicy) -> PathPolicy {
    let mut policy = policy.clone();
    // Without any the caller does not act for a user: upstream's markets fetch from datastores by ssh.
    if !policy.restricted.is_empty() {
        policy.restricted.extend(CLOUD.map(PathBuf::from));
    }
    policy
}

fn start(host: HostName, port: Option<u16>, programs: Programs, op: Op, control: &Control) -> io::Result<Relay> {
    let host: Arc<dyn Host> = Arc::new(OpenSsh::new(host, programs).at_port(port));
    let (script, control) = (Script::from(op), control.clone());
    Relay::start(move |mut writer| {
        let io = Io { output: Some(&mut writer), ..Io::default() };
        host.run(&script, io, &control).map(drop).map_err(io::Error::other)
    })
}

/// Reads the first line.
fn size(relay: &mut Relay) -> io::Result<u64> {
    let mut line = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows belongs to the file.
    while line.len() <= DIGITS && relay.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    let size = String::from_utf8(line).ok().and_then(|digits| digits.parse().ok());
    size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "The host does not tell the size"))
}

/// What became of the script, without what the message around it says anyway.
fn explain(error: io::Error, op: &Op, location: &str) -> ImportError {
    let read = |source| ImportError::Read { location: redact(location), source };
    let error = match error.downcast::<ScriptError>() {
        Ok(error) => error,
        Err(error) => return read(error),
    };
    match (&error.kind, &error.failure) {
        // The exit status depends on finding the source.
        (ErrorKind::Stopped(_), _) => read(io::Error::other(error)),
        (_, Some(failure)) if failure.kind == OpErrorKind::Forbidden => {
            ImportError::Source(SourceError::Restricted { path: Path::new(&redact(location)).to_owned() })
        }
        _ => {
            let text = error.to_string();
            let known = format!("{}: {}: ", error.host, cannot(op));
            read(io::Error::other(text.strip_prefix(&known).unwrap_or(&text).to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<u16>, String) {
        let address = Address::parse(text).expect(text);
        (address.host.to_string(), address.port, address.path.display().to_string())
    }

    #[test]
    fn both_forms_are_understood() {
        let is = |text: &str, host: &str, port: Option<u16>, path: &str| {
            assert_eq!(parsed(text), (host.to_owned(), port, path.to_owned()), "{text}");
        };
        is("ssh://node3/var/tmp/a.raw", "node3", None, "/var/tmp/a.raw");
        is("SSH://oneadmin@node3:2222/a", "oneadmin@node3", Some(2222), "/a");
        is("ssh://oneadmin@node3:/var/tmp/a", "oneadmin@node3", None, "/var/tmp/a");
        is("ssh://10.0.0.3://var/lib/one//datastores/1/abc", "10.0.0.3", None, "//var/lib/one//datastores/1/abc");
        is("ssh://[fe80::1%eth0]:22/a", "fe80::1%eth0", Some(22), "/a");
        is("ssh://u@[::1]/a", "u@::1", None, "/a");
        is("ssh://h/it's a \"b\" *?[x] $(id) `id` ~ %20 \\", "h", None, "/it's a \"b\" *?[x] $(id) `id` ~ %20 \\");
        is("ssh://h/a@b:c/d", "h", None, "/a@b:c/d");
        is("ssh://h/a/../b", "h", None, "/a/../b");
    }

    #[test]
    fn hostile_addresses_are_refused() {
        for (text, why) in [
            ("ssh://", BadAddress::Form),
            ("ssh://h", BadAddress::Form),
            ("ssh://h:a.raw", BadAddress::Form),
            ("ssh:///etc/passwd", BadAddress::Host),
            ("ssh://-oProxyCommand=x/y", BadAddress::Host),
            ("ssh://-oX/y", BadAddress::Host),
            ("ssh://u@-oX:/y", BadAddress::Host),
            ("ssh://-u@h/y", BadAddress::User),
            ("ssh://@h/y", BadAddress::User),
            ("ssh://u:secret@h/y", BadAddress::User),
            ("ssh://u@v@h/y", BadAddress::User),
            ("ssh://u\n@h/y", BadAddress::User),
            ("ssh://h\n/y", BadAddress::Host),
            ("ssh://h h/y", BadAddress::Host),
            ("ssh://h;id/y", BadAddress::Host),
            ("ssh://$(id)/y", BadAddress::Host),
            ("ssh://hé/y", BadAddress::Host),
            ("ssh://[::1/y", BadAddress::Host),
            ("ssh://[::1]x/y", BadAddress::Host),
            ("ssh://[-oX]/y", BadAddress::Host),
            ("ssh://h:99999/x", BadAddress::Port),
            ("ssh://h:0/x", BadAddress::Port),
            ("ssh://h:-1/x", BadAddress::Port),
            ("ssh://h:22x/x", BadAddress::Port),
            ("ssh://h:relative/x", BadAddress::Port),
            ("ssh://::1/x", BadAddress::Host),
            ("ssh://h/", BadAddress::Path),
            ("ssh://h/..", BadAddress::Path),
            ("ssh://h:/a/..", BadAddress::Path),
            ("ssh://h/a\0b", BadAddress::Path),
        ] {
            assert_eq!(Address::parse(text), Err(why), "{text:?}");
        }
        let control = Control::new(crate::exec::control::Cancel::new());
        let error = open("ssh://u:canary@h/x", &Options::default(), &control).err().expect("refused");
        let whole = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
        assert!(whole.starts_with("Cannot read from ssh://h/x ") && !whole.contains("canary"), "{whole}");
    }

    #[test]
    fn the_cloud_s_own_files_are_restricted_where_anything_is() {
        assert_eq!(over_there(&PathPolicy::default()), PathPolicy::default());
        let own = PathPolicy { safe: vec!["/s".into()], restricted: vec!["/r".into()] };
        let there = over_there(&own);
        assert_eq!(there.safe, own.safe);
        assert_eq!(there.restricted, ["/r", "~", "/var/lib/one", "/etc/one"].map(PathBuf::from));
    }
}
