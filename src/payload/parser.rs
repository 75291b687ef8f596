//! One pass over a document, with the defences that hold for every record.
//!
//! No DOCTYPE, no entities but XML's own five and characters by number, nesting limited, memory in proportion to the
//! document. Unknown elements are passed over without being kept.

use quick_xml::Reader;
use quick_xml::errors::SyntaxError;
use quick_xml::events::{BytesStart, Event};

use super::{PayloadError, Record};

/// Deepest nesting of elements that is accepted; oned's own documents are at most ten deep.
pub const MAX_DEPTH: usize = 64;

/// Memory that a small document may occupy beyond what is in proportion to its size.
const BUDGET_BASE: usize = 16 << 20;

/// A record that can be the root of a document.
pub(crate) trait Document: Record + Default {
    /// Name of the root element.
    const ROOT: &'static str;
}

/// Parses a whole document, such as an [`ActionData`](super::ActionData) or a [`Vm`](super::Vm).
///
/// # Errors
/// See [`PayloadError`]; an odd *value* is no error here, but where it is asked for.
#[expect(private_bounds, reason = "the records are ours; nobody adds one from outside")]
pub fn parse<T: Document>(xml: &str) -> Result<T, PayloadError> {
    let mut parser = Parser::new(xml);
    let root = parser.root()?;
    let name = root.name();
    if name.as_ref() != T::ROOT {
        let found = name.as_ref().chars().take(64).collect();
        return Err(PayloadError::WrongRoot { expected: T::ROOT, found });
    }
    let mut document = T::default();
    parser.children(&mut document, T::ROOT)?;
    parser.end()?;
    Ok(document)
}

/// The reader of a document.
pub(crate) struct Parser<'x> {
    reader: Reader<&'x [u8]>,
    /// Length of the document.
    len: u64,
    depth: usize,
    /// Bytes that may still be occupied.
    budget: usize,
    budget_limit: usize,
}

impl<'x> Parser<'x> {
    fn new(xml: &'x str) -> Self {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let budget = xml.len().saturating_mul(3).saturating_add(BUDGET_BASE);
        Self { reader, len: xml.len() as u64, depth: 0, budget, budget_limit: budget }
    }

    /// The next event that is an element or text, with the limits checked.
    fn next(&mut self) -> Result<Event<'x>, PayloadError> {
        loop {
            let before = self.reader.buffer_position();
            let event = match self.reader.read_event() {
                Ok(event) => event,
                Err(quick_xml::Error::Syntax(e)) if e != SyntaxError::InvalidBangMarkup => {
                    // Every other syntax error is a tag, comment or section that does not end before the document does.
                    return Err(self.cut_off(""));
                }
                Err(e) => {
                    return Err(PayloadError::Malformed { at: self.reader.error_position(), what: e.to_string() });
                }
            };
            match event {
                Event::Start(_) => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(PayloadError::TooDeep { at: before, limit: MAX_DEPTH });
                    }
                }
                Event::End(_) => self.depth = self.depth.saturating_sub(1),
                Event::DocType(_) => return Err(PayloadError::Doctype { at: before }),
                Event::Comment(_) | Event::PI(_) | Event::Decl(_) => continue,
                _ => {}
            }
            return Ok(event);
        }
    }

    /// The root's start tag.
    fn root(&mut self) -> Result<BytesStart<'x>, PayloadError> {
        loop {
            let at = self.reader.buffer_position();
            match self.next()? {
                Event::Start(start) => return Ok(start),
                Event::Text(text) if text.trim_ascii().is_empty() => {}
                Event::Eof => {
                    return Err(PayloadError::Truncated { at, open: String::new() });
                }
                _ => {
                    return Err(PayloadError::Malformed { at, what: "text outside of an element".to_owned() });
                }
            }
        }
    }

    /// Makes sure that nothing follows the root.
    fn end(&mut self) -> Result<(), PayloadError> {
        loop {
            let at = self.reader.buffer_position();
            match self.next()? {
                Event::Eof => return Ok(()),
                Event::Text(text) if text.trim_ascii().is_empty() => {}
                _ => {
                    return Err(PayloadError::Malformed { at, what: "more after the end of the document".to_owned() });
                }
            }
        }
    }

    fn cut_off(&self, open: &str) -> PayloadError {
        PayloadError::Truncated { at: self.len, open: open.to_owned() }
    }

    /// Hands the children of the element just begun to `record`, to its end. `open` names it in errors.
    pub(crate) fn children(&mut self, record: &mut dyn Record, open: &'static str) -> Result<(), PayloadError> {
        loop {
            match self.next()? {
                Event::Start(start) => record.child(start.name().as_ref(), self)?,
                Event::End(_) => return Ok(()),
                Event::Eof => return Err(self.cut_off(open)),
                _ => {}
            }
        }
    }

    /// The text of the element just begun, to its end: CDATA and references decoded, nested elements ignored.
    pub(crate) fn text(&mut self, open: &str) -> Result<String, PayloadError> {
        let mut text = String::new();
        loop {
            let at = self.reader.buffer_position();
            match self.next()? {
                Event::Text(part) => text.push_str(&part.xml10_content()),
                Event::CData(part) => text.push_str(&part.xml10_content()),
                Event::GeneralRef(reference) => {
                    let malformed = |what: String| PayloadError::Malformed { at, what };
                    match reference.resolve_char_ref() {
                        Ok(Some(c)) => text.push(c),
                        Ok(None) => match quick_xml::escape::resolve_xml_entity(&reference) {
                            Some(resolved) => text.push_str(resolved),
                            None => {
                                return Err(malformed("an entity that XML does not define".to_owned()));
                            }
                        },
                        Err(_) => return Err(malformed("a reference to no character".to_owned())),
                    }
                }
                Event::Start(_) => self.skip(open)?,
                Event::End(_) => return Ok(text),
                Event::Eof => return Err(self.cut_off(open)),
                _ => {}
            }
        }
    }

    /// Passes over the element just begun, to its end.
    pub(crate) fn skip(&mut self, open: &str) -> Result<(), PayloadError> {
        let outside = self.depth.saturating_sub(1);
        while self.depth > outside {
            if matches!(self.next()?, Event::Eof) {
                return Err(self.cut_off(open));
            }
        }
        Ok(())
    }

    /// Accounts for memory that a record keeps.
    pub(crate) fn occupy(&mut self, bytes: usize) -> Result<(), PayloadError> {
        match self.budget.checked_sub(bytes) {
            Some(rest) => {
                self.budget = rest;
                Ok(())
            }
            None => Err(PayloadError::TooMuch { limit: self.budget_limit }),
        }
    }
}
