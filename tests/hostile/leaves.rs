//! The leaves of an XML document, with their places, so that one can be written over by bytes that are no XML.

use std::ops::Range;

/// An element that holds text and no other element.
pub struct Leaf {
    /// Its name.
    pub name: String,
    place: Range<usize>,
}

/// All of them, in order.
pub fn leaves(document: &str) -> Vec<Leaf> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = document[at..].find('<').map(|open| at + open) {
        let Some(close) = document[open..].find('>').map(|close| open + close) else { break };
        let name = &document[open + 1..close];
        at = close + 1;
        if name.starts_with(['/', '!', '?']) || name.ends_with('/') {
            continue;
        }
        let end = format!("</{name}>");
        let Some(len) = document[at..].find(&end) else { continue };
        let inner = &document[at..at + len];
        let text = inner.strip_prefix("<![CDATA[").and_then(|rest| rest.strip_suffix("]]>")).unwrap_or(inner);
        if !text.contains('<') {
            found.push(Leaf { name: name.to_owned(), place: at..at + len });
            at += len + end.len();
        }
    }
    found
}

impl Leaf {
    /// Its text.
    pub fn value<'a>(&self, document: &'a str) -> &'a str {
        let inner = &document[self.place.clone()];
        inner.strip_prefix("<![CDATA[").and_then(|rest| rest.strip_suffix("]]>")).unwrap_or(inner)
    }

    /// The document with another text there. What XML can hold is escaped, other bytes stand as they are.
    pub fn replaced(&self, document: &str, value: &[u8]) -> Vec<u8> {
        let mut out = document.as_bytes()[..self.place.start].to_vec();
        for byte in value {
            match byte {
                b'<' => out.extend(b"&lt;"),
                b'&' if !value.starts_with(b"&#") => out.extend(b"&amp;"),
                b'\r' => out.extend(b"&#13;"),
                byte => out.push(*byte),
            }
        }
        out.extend(&document.as_bytes()[self.place.end..]);
        out
    }
}
