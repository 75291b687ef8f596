//! Arguments and environment of `downloader.sh`, read as getopt(1) reads them for upstream's script (contract 03 §1).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use anyhow::Result;

use crate::report::Misuse;
use crate::transfer::digest::{Algorithm, Expected};
use crate::transfer::rate::Rate;

/// What an option is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Digest(Algorithm),
    Limit,
    MaxSize,
    NoDecompress,
    NoRetry,
}

impl Opt {
    fn takes_value(self) -> bool {
        !matches!(self, Self::NoDecompress | Self::NoRetry)
    }
}

/// Upstream's options, with their letters.
const UPSTREAM: &[(u8, &str, Opt)] = &[
    (b'm', "md5", Opt::Digest(Algorithm::Md5)),
    (b's', "sha1", Opt::Digest(Algorithm::Sha1)),
    (b'l', "limit", Opt::Limit),
    (b'c', "max-size", Opt::MaxSize),
    (b'n', "nodecomp", Opt::NoDecompress),
    (b'o', "noretry", Opt::NoRetry),
];

/// Ours. What is short for one of upstream's stays that: `--sha` is `--sha1`.
const OWN: &[(&str, Opt)] = &[("sha256", Opt::Digest(Algorithm::Sha256)), ("sha512", Opt::Digest(Algorithm::Sha512))];

/// A call of the program.
#[derive(Debug, Default)]
pub struct Options {
    /// Path or address.
    pub from: OsString,
    /// Path, or `-`.
    pub to: OsString,
    /// Whether the bytes are taken as they are: not decoded, not unpacked (`-n`, `NO_DECOMPRESS=yes`).
    pub opaque: bool,
    /// Whether a failed request is final (`-o`, `NO_RETRY=yes`).
    pub no_retry: bool,
    digests: Vec<(Algorithm, OsString)>,
    limit: Option<OsString>,
    max_size: Option<OsString>,
}

fn wrong(why: impl std::fmt::Display) -> Misuse {
    Misuse(format!("Arguments error: {why}"))
}

impl Options {
    /// Reads the arguments, and from the environment what they do not say.
    ///
    /// # Errors
    /// [`Misuse`] with upstream's `Arguments error` and what is wrong.
    pub fn parse(args: Vec<OsString>, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, Misuse> {
        let yes = |name: &str| env(name).is_some_and(|value| value == "yes");
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let mut options = Self {
            opaque: yes("NO_DECOMPRESS"),
            no_retry: yes("NO_RETRY"),
            limit: set("LIMIT_RATE"),
            max_size: set("MAX_SIZE"),
            ..Self::default()
        };
        // getopt(1) then stops at the first operand.
        let in_order = env("POSIXLY_CORRECT").is_some();
        let mut operands = Vec::new();
        let mut words = args.into_iter();
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                operands.extend(words.by_ref());
            } else if let Some(long) = bytes.strip_prefix(b"--") {
                options.long(long, &mut words)?;
            } else if let [b'-', short @ ..] = bytes
                && !short.is_empty()
            {
                options.short(short, &mut words)?;
            } else {
                operands.push(word);
                if in_order {
                    operands.extend(words.by_ref());
                }
            }
        }
        let mut operands = operands.into_iter();
        options.from = operands.next().filter(|from| !from.is_empty()).ok_or_else(|| wrong("no FROM and TO given"))?;
        options.to = operands.next().filter(|to| !to.is_empty()).ok_or_else(|| wrong("no TO given"))?;
        if options.max_size.is_some() && !options.digests.is_empty() {
            return Err(Misuse("Hash check not supported for partial downloads".to_owned()));
        }
        Ok(options)
    }

    fn long(&mut self, text: &[u8], words: &mut impl Iterator<Item = OsString>) -> Result<(), Misuse> {
        let (name, value) = match text.iter().position(|byte| *byte == b'=') {
            Some(at) => (&text[..at], Some(OsString::from_vec(text[at + 1..].to_vec()))),
            None => (text, None),
        };
        let shown = String::from_utf8_lossy(name);
        let all = || UPSTREAM.iter().map(|(_, long, opt)| (*long, *opt)).chain(OWN.iter().copied());
        let short_for = |(long, _): &(&str, Opt)| long.as_bytes().starts_with(name);
        let upstream: Vec<_> = all().take(UPSTREAM.len()).filter(short_for).collect();
        let own: Vec<_> = all().skip(UPSTREAM.len()).filter(short_for).collect();
        let exact = all().find(|(long, _)| long.as_bytes() == name);
        let opt = match (exact, &upstream[..], &own[..]) {
            (Some((_, opt)), _, _) => opt,
            (None, [(_, opt)], _) | (None, [], [(_, opt)]) => *opt,
            (None, [], []) => return Err(wrong(format!("unrecognized option '--{shown}'"))),
            _ => return Err(wrong(format!("option '--{shown}' is ambiguous"))),
        };
        match (opt.takes_value(), value) {
            (false, Some(_)) => Err(wrong(format!("option '--{shown}' doesn't allow an argument"))),
            (true, None) => {
                let value = words.next().ok_or_else(|| wrong(format!("option '--{shown}' requires an argument")))?;
                self.take(opt, value);
                Ok(())
            }
            (_, value) => {
                self.take(opt, value.unwrap_or_default());
                Ok(())
            }
        }
    }

    fn short(&mut self, letters: &[u8], words: &mut impl Iterator<Item = OsString>) -> Result<(), Misuse> {
        for (at, letter) in letters.iter().enumerate() {
            let shown = letter.escape_ascii();
            let known = UPSTREAM.iter().find(|(own, _, _)| own == letter);
            let (_, _, opt) = known.ok_or_else(|| wrong(format!("invalid option -- '{shown}'")))?;
            if !opt.takes_value() {
                self.take(*opt, OsString::new());
                continue;
            }
            let rest = &letters[at + 1..];
            let value = match rest {
                [] => words.next().ok_or_else(|| wrong(format!("option requires an argument -- '{shown}'")))?,
                rest => OsStr::from_bytes(rest).to_owned(),
            };
            self.take(*opt, value);
            return Ok(());
        }
        Ok(())
    }

    fn take(&mut self, opt: Opt, value: OsString) {
        match opt {
            Opt::Digest(algorithm) => {
                // The last one of a kind counts.
                self.digests.retain(|(other, _)| *other != algorithm);
                self.digests.push((algorithm, value));
            }
            Opt::Limit => self.limit = Some(value).filter(|value| !value.is_empty()),
            Opt::MaxSize => self.max_size = Some(value).filter(|value| !value.is_empty()),
            Opt::NoDecompress => self.opaque = true,
            Opt::NoRetry => self.no_retry = true,
        }
    }

    /// The digests that the source must have.
    ///
    /// # Errors
    /// [`Misuse`]: what is no digest matches nothing.
    pub fn digests(&self) -> Result<Vec<Expected>, Misuse> {
        let expected = |(algorithm, hex): &(Algorithm, OsString)| {
            let hex = hex.to_string_lossy();
            Expected::new(*algorithm, hex.trim()).map_err(|error| Misuse(format!("Hash does not match: {error}")))
        };
        self.digests.iter().map(expected).collect()
    }

    /// The fastest that the source is read.
    ///
    /// # Errors
    /// [`Misuse`] for what curl would not take.
    pub fn rate(&self) -> Result<Option<Rate>, Misuse> {
        let Some(text) = self.limit.as_ref().map(|text| text.to_string_lossy()) else { return Ok(None) };
        // curl's word for no limit.
        if text.trim() == "0" {
            return Ok(None);
        }
        text.parse().map(Some).map_err(wrong)
    }

    /// How much of the decoded image is delivered to standard output, in bytes.
    ///
    /// # Errors
    /// [`Misuse`] for what head(1) would not take, and for negative numbers.
    pub fn max_size(&self) -> Result<Option<u64>, Misuse> {
        let Some(text) = &self.max_size else { return Ok(None) };
        let none = || wrong(format!("{} is no number of bytes", text.display()));
        bytes(text).map(Some).ok_or_else(none)
    }
}

/// A number of bytes with the suffixes of head(1): `b` 512, `kB` 1000, `K` and `KiB` 1024, and so on for M, G, T.
#[must_use]
pub fn bytes(text: &OsStr) -> Option<u64> {
    let text = text.to_str()?.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[digits.len()..];
    let factor = match suffix {
        "" => 1,
        "b" => 512,
        _ => {
            let (letter, base) = match suffix.get(1..)? {
                "" | "iB" => (suffix.get(..1)?, 1024u64),
                "B" => (suffix.get(..1)?, 1000),
                _ => return None,
            };
            let power = match letter {
                "k" | "K" => 1,
                "m" | "M" => 2,
                "g" | "G" => 3,
                "t" | "T" => 4,
                _ => return None,
            };
            base.pow(power)
        }
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(Into::into).collect(), |_| None).map_err(|error| error.to_string())
    }

    #[test]
    fn options_stand_anywhere_and_may_be_short_for_more() {
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        let all = [
            vec!["--md5", md5, "-n", "a", "b"],
            vec!["a", "-nm", md5, "b"],
            vec!["a", "b", "--nodecomp", "--m=x", "--md=900150983cd24fb0d6963f7d28e17f72"],
            vec!["-m900150983cd24fb0d6963f7d28e17f72", "--nod", "--", "a", "b"],
        ];
        for words in all {
            // `--m` alone is short for two.
            let words: Vec<&str> = words.into_iter().filter(|word| *word != "--m=x").collect();
            let options = parse(&words).expect("arguments");
            assert_eq!((options.from.to_str(), options.to.to_str()), (Some("a"), Some("b")), "{words:?}");
            assert!(options.opaque && options.digests().expect("digests").len() == 1, "{words:?}");
        }
        let options = parse(&["--", "-n", "--md5"]).expect("arguments");
        assert_eq!((options.from.to_str(), options.to.to_str()), (Some("-n"), Some("--md5")));
        assert!(!options.opaque);
        assert_eq!(parse(&["a", "-"]).expect("a dash is an operand").to, "-");
    }

    #[test]
    fn our_options_do_not_take_upstreams_short_forms() {
        let is = |word: &str| parse(&[word, "x", "a", "b"]).map(|options| options.digests[0].0);
        assert_eq!(is("--s"), Ok(Algorithm::Sha1));
        assert_eq!(is("--sha"), Ok(Algorithm::Sha1));
        assert_eq!(is("--sha2"), Ok(Algorithm::Sha256));
        assert_eq!(is("--sha512"), Ok(Algorithm::Sha512));
    }

    #[test]
    fn wrong_arguments_are_told() {
        let cases: [(&[&str], &str); 9] = [
            (&["--what", "a", "b"], "unrecognized option '--what'"),
            (&["--m", "x", "a", "b"], "option '--m' is ambiguous"),
            (&["--no", "a", "b"], "option '--no' is ambiguous"),
            (&["--nodecomp=1", "a", "b"], "doesn't allow an argument"),
            (&["a", "b", "--md5"], "requires an argument"),
            (&["-x", "a", "b"], "invalid option -- 'x'"),
            (&["a", "b", "-nc"], "requires an argument -- 'c'"),
            (&["a"], "no TO given"),
            (&[], "no FROM and TO given"),
        ];
        for (words, text) in cases {
            let error = parse(words).expect_err("refused");
            assert!(error.starts_with("Arguments error: ") && error.contains(text), "{error}");
        }
        let error = parse(&["-c", "5", "-m", "x", "a", "-"]).expect_err("refused");
        assert_eq!(error, "Hash check not supported for partial downloads");
    }

    #[test]
    fn the_environment_says_what_arguments_do_not() {
        let env = |name: &str| match name {
            "NO_DECOMPRESS" | "NO_RETRY" => Some("yes".into()),
            "LIMIT_RATE" => Some("1M".into()),
            "MAX_SIZE" => Some("10".into()),
            _ => None,
        };
        let options = Options::parse(vec!["a".into(), "-".into(), "-c".into(), "1K".into()], env).expect("arguments");
        assert!(options.opaque && options.no_retry);
        assert_eq!(options.max_size().expect("a size"), Some(1024));
        assert_eq!(options.rate().expect("a rate").map(Rate::bytes_per_second), Some(1 << 20));
        let options = Options::parse(vec!["a".into(), "-".into(), "-c".into(), "".into()], env).expect("arguments");
        assert_eq!(options.max_size().expect("none"), None);
        assert_eq!(parse(&["-l", "0", "a", "-"]).expect("arguments").rate().expect("no limit"), None);
    }

    #[test]
    fn sizes_are_those_of_head() {
        let cases = [("0", 0), ("10", 10), ("2b", 1024), ("1kB", 1000), ("1K", 1024), ("1KiB", 1024), ("3M", 3 << 20)];
        for (text, size) in cases {
            assert_eq!(bytes(OsStr::new(text)), Some(size), "{text}");
        }
        for text in ["", "-5", "x", "1x", "1kX", "K", "99999999999G"] {
            assert_eq!(bytes(OsStr::new(text)), None, "{text}");
        }
    }
}
