//! What went wrong on the way: telling a host that cannot be reached from an operation that failed there.
//!
//! ssh(1) ends with 255 both when it failed itself and when the remote command did, and says what happened only on
//! stderr, mixed with what the remote command said. [`connection_failure`] is the one place that reads it.

use super::super::error::OpError;
use super::super::op::{Script, Value};
use super::super::posix;
use super::wire::{CUT_OFF, DONE};
use super::{ErrorKind, ScriptError};

/// What a remote script that has ended comes to: its answers, or whose fault it is that there are none.
///
/// `status` is the exit status of the remote command, or of the ssh that carried it, which is 255 for its own failures;
/// `None` means that a signal ended it.
///
/// # Errors
/// [`ScriptError`] of every kind but `Stopped` and `Stream`.
pub fn judge(
    host: &str,
    script: &Script,
    status: Option<i32>,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Vec<Value>, ScriptError> {
    let text = without_noise(stderr);
    let lost = |why: &str| Err(ScriptError::new(host, ErrorKind::Lost, why));
    if status == Some(0) {
        // libssh2 reports 0 also for a command of which it never heard, so that the far side has to say it itself.
        if !text.lines().any(|line| line == DONE) {
            return lost("The remote shell ended without a word");
        }
        // The watcher's, see `wire`.
        let answers: Vec<u8> = stdout.iter().copied().filter(|byte| *byte != 0).collect();
        return posix::parse(script, &answers)
            .map_err(|bad| ScriptError::new(host, ErrorKind::Protocol, bad.to_string()));
    }
    let failure = posix::failure(script, status, text.as_bytes());
    if failure.index.is_some() {
        return Err(ScriptError::failed(host, failure));
    }
    if status == Some(CUT_OFF.into()) {
        return lost("The script did not arrive whole");
    }
    let words: Vec<&str> = text.lines().filter(|line| !line.starts_with("@onestore-")).collect();
    match connection_failure(status, &words.join("\n")) {
        // Our own lines show that the script had begun.
        Some(why) if stdout.is_empty() && !text.contains("@onestore-") => {
            Err(ScriptError::new(host, ErrorKind::Unreachable, why))
        }
        Some(why) => lost(&why),
        None => Err(shell_failed(host, &failure)),
    }
}

/// The login shell, or what it was told to start, did not get as far as the script.
fn shell_failed(host: &str, failure: &OpError) -> ScriptError {
    ScriptError::new(host, ErrorKind::Failed, failure.to_string())
}

/// Lines that OpenSSH's client prints although nothing failed: the eleventh session on a multiplexed connection falls
/// back to a connection of its own, and two clients may race to become the master (house style §7).
const NOISE: [&str; 7] = [
    "mux_client_request_session: ",
    "ControlSocket ",
    "Warning: Permanently added ",
    "Pseudo-terminal will not be allocated",
    "** WARNING: connection is not using a post-quantum key exchange algorithm.",
    "** This session may be vulnerable to \"store now, decrypt later\" attacks.",
    "** The server may need to be upgraded.",
];

/// Beginnings of the lines in which ssh says why it failed; the first that is found is the reason.
const REASONS: [&str; 16] = [
    "ssh: Could not resolve hostname ",
    "ssh: connect to host ",
    "Host key verification failed",
    "kex_exchange_identification: ",
    "ssh_exchange_identification: ",
    "banner exchange: ",
    "Connection timed out during banner exchange",
    "Unable to negotiate with ",
    "Too many authentication failures",
    "Received disconnect from ",
    "Timeout, server ",
    "client_loop: ",
    "Connection closed by ",
    "Connection reset by ",
    "command-line: line ",
    "Can't open user config file ",
];

/// The stderr of an ssh client without the lines that mean nothing, and without the NUL bytes that the far side sends
/// to find out whether we are still there.
#[must_use]
pub fn without_noise(stderr: &[u8]) -> String {
    let bytes: Vec<u8> = stderr.iter().copied().filter(|b| *b != 0).collect();
    let text = String::from_utf8_lossy(&bytes);
    let kept = |line: &&str| !line.is_empty() && !NOISE.iter().any(|noise| line.starts_with(noise));
    text.lines().map(|line| line.trim_end_matches('\r')).filter(kept).collect::<Vec<_>>().join("\n")
}

/// Why ssh itself failed, if it did. `status` is its exit status (`None`: a signal), `stderr` what it printed.
#[must_use]
pub fn connection_failure(status: Option<i32>, stderr: &str) -> Option<String> {
    if status != Some(255) {
        return None;
    }
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.iter().any(|line| line.contains("REMOTE HOST IDENTIFICATION HAS CHANGED")) {
        return Some("Host key verification failed: the host shows another key than known_hosts lists".into());
    }
    if let Some(unknown) = lines.iter().find(|line| line.contains("host key is known for")) {
        return Some(format!("Host key verification failed: {}", unknown.trim_end_matches('.')));
    }
    let config =
        lines.iter().find(|line| line.contains(": Bad configuration option") || line.contains(": Bad owner or"));
    let denied =
        || lines.iter().find(|line| line.contains(": Permission denied (") || line.starts_with("Permission denied ("));
    let known = || REASONS.iter().find_map(|start| lines.iter().find(|line| line.starts_with(start)));
    let closed = || {
        let closed = |line: &&&str| line.starts_with("Connection to ") && line.contains("closed");
        lines.iter().find(closed)
    };
    match config.or_else(known).or_else(denied).or_else(closed) {
        Some(line) => Some(shortened(line)),
        // ssh is silent under `LogLevel QUIET`; the scripts we send never end with 255 themselves.
        None => {
            Some(lines.last().map_or_else(|| "ssh ended with status 255 and said nothing".into(), |l| shortened(l)))
        }
    }
}

/// The reason without what the message around it says anyway.
fn shortened(line: &str) -> String {
    let line = line.trim_end_matches('.').trim_start_matches("ssh: ");
    let reason = match line.strip_prefix("connect to host ") {
        Some(rest) => rest.split_once(": ").map_or(rest, |(_, reason)| reason),
        None => line,
    };
    match reason.split_once(": Permission denied (") {
        Some((_, methods)) => format!("Permission denied ({methods}"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cmd::Cmd;
    use crate::exec::op::Op;

    /// Texts that OpenSSH 9.2 printed, and what we make of them.
    const CAPTURED: [(&str, &str); 10] = [
        ("ssh: connect to host 127.0.0.1 port 1: Connection refused\r\n", "Connection refused"),
        (
            "ssh: Could not resolve hostname nosuch.invalid: Name or service not known\r\n",
            "Could not resolve hostname nosuch.invalid: Name or service not known",
        ),
        ("root@127.0.0.1: Permission denied (publickey).\r\n", "Permission denied (publickey)"),
        (
            "Load key \"/a/id\": invalid format\r\nroot@127.0.0.1: Permission denied (publickey).\r\n",
            "Permission denied (publickey)",
        ),
        (
            "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict checking.\r\n\
             Host key verification failed.\r\n",
            "Host key verification failed: No ED25519 host key is known for [127.0.0.1]:2222 and you have requested \
             strict checking",
        ),
        (
            "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
             @    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n\
             IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\nHost key verification failed.\r\n",
            "Host key verification failed: the host shows another key than known_hosts lists",
        ),
        (
            "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by 127.0.0.1 port 2222\r\n",
            "kex_exchange_identification: Connection closed by remote host",
        ),
        ("Connection to 127.0.0.1 closed by remote host.\r\n", "Connection to 127.0.0.1 closed by remote host"),
        (
            "command-line: line 0: Bad configuration option: foo\r\n",
            "command-line: line 0: Bad configuration option: foo",
        ),
        ("", "ssh ended with status 255 and said nothing"),
    ];

    #[test]
    fn the_reason_is_found_in_what_ssh_printed() {
        for (text, reason) in CAPTURED {
            assert_eq!(connection_failure(Some(255), &without_noise(text.as_bytes())).as_deref(), Some(reason));
        }
    }

    #[test]
    fn another_status_is_the_remote_command_s_own() {
        assert_eq!(connection_failure(Some(1), "ssh: connect to host a port 1: Connection refused"), None);
        assert_eq!(connection_failure(None, ""), None);
    }

    #[test]
    fn noise_is_dropped_and_the_rest_kept() {
        let text = "mux_client_request_session: session request failed: Session open refused by peer\r\n\
                    ControlSocket /run/one/s already exists, disabling multiplexing\r\n\0\0cp: cannot stat '/a'\r\n";
        assert_eq!(without_noise(text.as_bytes()), "cp: cannot stat '/a'");
    }

    #[test]
    fn whose_fault_it_is_is_told_apart() {
        let script = Script::from(Op::Run(Cmd::new("false")));
        let kind = |status, stdout: &[u8], stderr: &str| {
            judge("node3", &script, status, stdout, stderr.as_bytes()).expect_err("fails").kind
        };
        let refused = "ssh: connect to host node3 port 22: Connection refused\r\n";
        assert_eq!(kind(Some(255), b"", refused), ErrorKind::Unreachable);
        let cut = "@onestore-op 0\nclient_loop: send disconnect: Broken pipe\r\n";
        assert_eq!(kind(Some(255), b"", cut), ErrorKind::Lost);
        // A command of the script may itself end with 255.
        assert_eq!(kind(Some(255), b"0 \n", "@onestore-op 0\nno\n@onestore-failed 0 255\n"), ErrorKind::Failed);
        assert_eq!(kind(Some(1), b"", "This account is currently not available.\n"), ErrorKind::Failed);
        assert_eq!(kind(Some(74), b"", ""), ErrorKind::Lost);
        assert_eq!(kind(Some(0), b"0 \n", ""), ErrorKind::Lost);
        assert_eq!(kind(Some(0), b"", "@onestore-done\n"), ErrorKind::Protocol);
        let good = judge("node3", &script, Some(0), b"0 Y\0Q==\nend\n", b"@onestore-op 0\n\0@onestore-done\n");
        assert_eq!(good.expect("answers"), [Value::Bytes(b"a".to_vec())]);
    }
}
