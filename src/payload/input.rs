//! Standard input of an action: Base64 or plain XML, within a size limit.
//!
//! The datastore daemon sends one line of Base64, the virtual machine daemon plain XML to some actions and Base64 to
//! others (contract 01 §6, 10). The first byte that is no blank tells them apart: Base64 has no `<`.

use std::io::Read;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::PayloadError;

/// Most bytes of XML that an action accepts unless told otherwise: 64 MiB.
pub const DEFAULT_LIMIT: usize = 64 << 20;

/// Bytes taken from the reader at a time.
const CHUNK: usize = 64 << 10;

/// Which bytes are digits of Base64.
const ALPHABET: [bool; 256] = {
    let mut table = [false; 256];
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut n = 0;
    while n < digits.len() {
        table[digits[n] as usize] = true;
        n += 1;
    }
    table
};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Missing padding is tolerated: some tools leave it out, and what is cut off is found by the XML parser.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Reads a document to the end: Base64 (one line or wrapped, padded or not) or plain XML (a byte order mark is dropped).
///
/// `limit` counts bytes of XML. Occupies at most about three times the size of the document.
///
/// # Errors
/// [`PayloadError::Empty`] when there is nothing; errors that name the byte when it is neither Base64 nor UTF-8; whether
/// it is well-formed is found by [`super::parse()`].
pub fn read(mut reader: impl Read, limit: usize) -> Result<String, PayloadError> {
    let mut sink = Sink::Undecided(Vec::new());
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    // Blanks in Base64 count for nothing in the document, but nobody sends them for ever.
    let raw_limit = limit.saturating_mul(4).saturating_add(CHUNK);
    loop {
        let got = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(PayloadError::Read(e)),
        };
        sink.take(&chunk[..got], at, limit)?;
        at += got;
        if at > raw_limit {
            return Err(PayloadError::TooLarge { limit });
        }
    }
    let mut document = sink.finish(at, limit)?;
    if document.starts_with(BOM) {
        document.drain(..BOM.len());
    }
    if document.iter().all(u8::is_ascii_whitespace) {
        return Err(PayloadError::Empty);
    }
    String::from_utf8(document).map_err(|e| PayloadError::NotUtf8 { at: e.utf8_error().valid_up_to() })
}

/// What has been read so far.
enum Sink {
    /// Only blanks and perhaps a byte order mark.
    Undecided(Vec<u8>),
    Plain(Vec<u8>),
    Base64(Decoder),
}

impl Sink {
    /// Takes bytes that stand at offset `at` of the input.
    fn take(&mut self, bytes: &[u8], at: usize, limit: usize) -> Result<(), PayloadError> {
        match self {
            Self::Undecided(seen) => {
                let skip = bytes.iter().position(|b| !b.is_ascii_whitespace() && !BOM.contains(b));
                let Some(skip) = skip else {
                    seen.extend_from_slice(bytes);
                    return if seen.len() > limit { Err(PayloadError::TooLarge { limit }) } else { Ok(()) };
                };
                let mut start = std::mem::take(seen);
                *self = if bytes[skip] == b'<' {
                    start.extend_from_slice(&bytes[..skip]);
                    Self::Plain(start)
                } else {
                    Self::Base64(Decoder::default())
                };
                self.take(&bytes[if matches!(self, Self::Plain(_)) { skip } else { 0 }..], at, limit)
            }
            Self::Plain(document) => {
                document.extend_from_slice(bytes);
                if document.len() > limit { Err(PayloadError::TooLarge { limit }) } else { Ok(()) }
            }
            Self::Base64(decoder) => decoder.take(bytes, at, limit),
        }
    }

    fn finish(self, at: usize, limit: usize) -> Result<Vec<u8>, PayloadError> {
        match self {
            Self::Undecided(seen) | Self::Plain(seen) => Ok(seen),
            Self::Base64(decoder) => decoder.finish(at, limit),
        }
    }
}

/// Base64 decoded as it comes; positions count in the raw input.
#[derive(Default)]
struct Decoder {
    /// Characters not yet decoded.
    pending: Vec<u8>,
    padding: usize,
    document: Vec<u8>,
}

impl Decoder {
    fn take(&mut self, bytes: &[u8], at: usize, limit: usize) -> Result<(), PayloadError> {
        let mut offset = 0;
        while let Some(&byte) = bytes.get(offset) {
            let run = bytes[offset..].iter().take_while(|byte| ALPHABET[usize::from(**byte)]).count();
            let position = at + offset;
            match byte {
                _ if run > 0 && self.padding == 0 => self.pending.extend_from_slice(&bytes[offset..offset + run]),
                b'\n' | b'\r' | b' ' | b'\t' | 0x0b | 0x0c => {}
                // A byte order mark in front is tolerated as in front of XML.
                byte if BOM.get(position) == Some(&byte) => {}
                b'=' if self.padding < 2 => self.padding += 1,
                byte => return Err(PayloadError::NotBase64 { at: position, byte }),
            }
            offset += run.max(1);
        }
        let whole = self.pending.len() / 4 * 4;
        self.decode(whole, at + bytes.len(), limit)
    }

    /// Decodes the first `count` pending characters.
    fn decode(&mut self, count: usize, at: usize, limit: usize) -> Result<(), PayloadError> {
        ENGINE
            .decode_vec(&self.pending[..count], &mut self.document)
            .map_err(|_| PayloadError::TruncatedBase64 { at })?;
        self.pending.drain(..count);
        if self.document.len() > limit { Err(PayloadError::TooLarge { limit }) } else { Ok(()) }
    }

    fn finish(mut self, at: usize, limit: usize) -> Result<Vec<u8>, PayloadError> {
        // One character alone holds six bits: no byte ends there. Padding must complete the group of four.
        let rest = self.pending.len();
        if rest == 1 || (self.padding > 0 && rest + self.padding != 4) {
            return Err(PayloadError::TruncatedBase64 { at });
        }
        self.decode(rest, at, limit)?;
        Ok(self.document)
    }
}
