//! One word of the shell as a program prints it for `eval`: its quotes taken off, nothing expanded.
//!
//! Source: POSIX.1-2024, Shell Command Language §2.2 (quoting). The `*_downloader` programs print
//! `command=<word>` (contract 03 §2). Upstream hands the line to `eval`; we only take the quotes off, and refuse whatever
//! a shell would do more with.

/// Why a text is not one quoted word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAWord {
    /// A quote is not closed.
    #[error("a quote is not closed")]
    Open,
    /// A `$` or backquote that a shell would expand.
    #[error("it holds an expansion ($ or `) that is not quoted")]
    Expansion,
    /// A character that ends a word or means something to a shell.
    #[error("it holds {0:?} outside of quotes")]
    Unquoted(char),
}

/// Takes the quotes off one word.
///
/// # Errors
/// [`NotAWord`] for what a shell would take for more than one word, or expand.
pub fn unquote(text: &[u8]) -> Result<Vec<u8>, NotAWord> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    let mut first = true;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' => loop {
                match bytes.next().ok_or(NotAWord::Open)? {
                    b'\'' => break,
                    byte => out.push(byte),
                }
            },
            b'"' => double(&mut bytes, &mut out)?,
            b'\\' => out.push(bytes.next().ok_or(NotAWord::Open)?),
            b'$' | b'`' => return Err(NotAWord::Expansion),
            b'~' if first => return Err(NotAWord::Unquoted('~')),
            b'|' | b'&' | b';' | b'<' | b'>' | b'(' | b')' | b' ' | b'\t' | b'\n' | b'\r' => {
                return Err(NotAWord::Unquoted(char::from(byte)));
            }
            byte => out.push(byte),
        }
        first = false;
    }
    Ok(out)
}

/// The rest of a double-quoted part: a backslash quotes only what means something there.
fn double(bytes: &mut impl Iterator<Item = u8>, out: &mut Vec<u8>) -> Result<(), NotAWord> {
    loop {
        match bytes.next().ok_or(NotAWord::Open)? {
            b'"' => return Ok(()),
            b'$' | b'`' => return Err(NotAWord::Expansion),
            b'\\' => match bytes.next().ok_or(NotAWord::Open)? {
                byte @ (b'$' | b'`' | b'"' | b'\\') => out.push(byte),
                byte => out.extend([b'\\', byte]),
            },
            byte => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_taken_off_as_a_shell_does() {
        let cases: [(&[u8], &[u8]); 8] = [
            (b"\"ssh -q 'one@host' cat '/a b'\"", b"ssh -q 'one@host' cat '/a b'"),
            (br"cat\ /a\'b\;c", b"cat /a'b;c"),
            (br#"'a $(x) `y` "z"'"#, br#"a $(x) `y` "z""#),
            (br#""a \$b \`c\` \"d\" \\ \e""#, br#"a $b `c` "d" \ \e"#),
            (
                br"fmt\=\$\(x\)'
'",
                b"fmt=$(x)\n",
            ),
            (b"", b""),
            (b"\"\"", b""),
            (b"a~b#c=d\xff", b"a~b#c=d\xff"),
        ];
        for (text, word) in cases {
            assert_eq!(unquote(text).as_deref(), Ok(word), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_a_shell_would_do_more_with_is_refused() {
        for text in ["\"$(id)\"", "\"`id`\"", "$HOME", "`id`", "\"$x\""] {
            assert_eq!(unquote(text.as_bytes()), Err(NotAWord::Expansion), "{text}");
        }
        for text in ["a b", "a;b", "a|b", "a&b", "a>b", "(a)", "~root", "a\tb"] {
            assert!(matches!(unquote(text.as_bytes()), Err(NotAWord::Unquoted(_))), "{text}");
        }
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(unquote(text.as_bytes()), Err(NotAWord::Open), "{text}");
        }
    }
}
