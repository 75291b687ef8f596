//! What can be wrong with a document, and with one value in it.

use std::io;

/// Why a document could not be read or parsed. Positions are byte offsets from 0.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Standard input could not be read.
    #[error("Cannot read standard input")]
    Read(#[source] io::Error),
    /// There was nothing but blanks.
    #[error("Nothing on standard input: expected Base64 XML")]
    Empty,
    /// The document is larger than the limit.
    #[error("The document is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes of XML.
        limit: usize,
    },
    /// A byte that is neither XML's first nor Base64.
    #[error("Standard input is neither XML nor Base64: byte {at} is {}", show_byte(*.byte))]
    NotBase64 {
        /// Offset in the input.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// The Base64 text ends where it cannot end.
    #[error("The Base64 text on standard input is cut off at byte {at}")]
    TruncatedBase64 {
        /// Offset in the input.
        at: usize,
    },
    /// The document is not UTF-8.
    #[error("The XML is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Offset in the decoded document.
        at: usize,
    },
    /// The document is no well-formed XML.
    #[error("The XML is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset in the document.
        at: u64,
        /// What the parser says.
        what: String,
    },
    /// The document ends too early.
    #[error("The XML is cut off at byte {at}{}", inside(.open))]
    Truncated {
        /// Length of the document.
        at: u64,
        /// Innermost record that was open; empty when not even the root was.
        open: String,
    },
    /// A document type declaration; oned never sends one, and they are how XML is made to explode.
    #[error("The XML has a DOCTYPE at byte {at}, which is refused")]
    Doctype {
        /// Offset in the document.
        at: u64,
    },
    /// Elements are nested too deeply.
    #[error("The XML is nested more than {limit} elements deep at byte {at}")]
    TooDeep {
        /// Offset in the document.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// Another document than expected.
    #[error("Expected an XML document <{expected}>, got <{found}>")]
    WrongRoot {
        /// Name of the root that was expected.
        expected: &'static str,
        /// Name of the root that came.
        found: String,
    },
    /// More elements than any cloud has; what they would occupy is out of proportion to the document.
    #[error("The XML would occupy more than {limit} bytes of memory")]
    TooMuch {
        /// The limit in bytes.
        limit: usize,
    },
}

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The element has text that is no such value.
    #[error("{path} is {text:?}, not {expected}")]
    Unparsable {
        /// Where the element stands, such as `IMAGE/SIZE`.
        path: String,
        /// Its text, at most 64 characters of it.
        text: String,
        /// What it should be, with an article.
        expected: &'static str,
    },
    /// The element is missing or empty.
    #[error("{path} is missing or empty")]
    Missing {
        /// Where the element should stand.
        path: String,
    },
}

fn show_byte(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

fn inside(open: &str) -> String {
    if open.is_empty() { String::new() } else { format!(" inside <{open}>") }
}
