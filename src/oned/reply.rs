//! An XML-RPC reply of oned: `[true, XML]`, `[false, message, code]` or a fault.

use super::Cause;
use crate::payload::{self, All, Document, First, Text, record};

record! {
    /// The whole reply.
    pub struct Reply = "methodResponse" {
        /// The answer.
        params: Params = "params",
        /// The API's refusal.
        fault: Option<Box<Fault>> = "fault",
    }
}

impl Document for Reply {
    const ROOT: &'static str = "methodResponse";
}

record! {
    /// `params`
    pub struct Params = "methodResponse/params" {
        /// Exactly one.
        param: Param = "param",
    }
}

record! {
    /// `param`
    pub struct Param = "methodResponse/params/param" {
        /// The list.
        value: ListValue = "value",
    }
}

record! {
    /// `value` around a list
    pub struct ListValue = "methodResponse/params/param/value" {
        /// The list.
        array: Array = "array",
    }
}

record! {
    /// `array`
    pub struct Array = "array" {
        /// Its content.
        data: Data = "data",
    }
}

record! {
    /// `data`
    pub struct Data = "array/data" {
        /// Its items.
        values: All<Scalar> = "value",
    }
}

record! {
    /// `value` around something simple
    pub struct Scalar = "value" {
        /// `0` or `1`.
        boolean: First<i64> = "boolean",
        /// A text.
        string: Text = "string",
        /// A number of 32 bits.
        int: First<i64> = "int",
        /// The same under its other name.
        i4: First<i64> = "i4",
        /// A number of 64 bits.
        i8: First<i64> = "i8",
    }
}

record! {
    /// `fault`
    pub struct Fault = "methodResponse/fault" {
        /// Its content.
        value: FaultValue = "value",
    }
}

record! {
    /// `value` around a structure
    pub struct FaultValue = "fault/value" {
        /// The structure.
        content: FaultStruct = "struct",
    }
}

record! {
    /// `struct`
    pub struct FaultStruct = "fault/value/struct" {
        /// `faultCode` and `faultString`.
        members: All<Member> = "member",
    }
}

record! {
    /// `member`
    pub struct Member = "member" {
        /// Its name.
        name: Text = "name",
        /// Its value.
        value: Scalar = "value",
    }
}

impl Scalar {
    fn number(&self) -> Option<i64> {
        [&self.int, &self.i4, &self.i8].into_iter().find_map(|number| number.get().ok().flatten())
    }
}

/// The object's XML in a reply.
pub(super) fn read(reply: &str) -> Result<String, Cause> {
    let reply: Reply = payload::parse(reply).map_err(|e| Cause::BadReply(lower(&e.to_string())))?;
    if let Some(fault) = &reply.fault {
        let member = |name| fault.value.content.members.iter().find(|m| m.name.trimmed() == Some(name));
        return Err(Cause::Fault {
            code: member("faultCode").and_then(|m| m.value.number()).unwrap_or(0),
            message: one_line(member("faultString").map_or("no text", |m| m.value.string.or("no text"))),
        });
    }
    let values = &reply.params.param.value.array.data.values;
    let said = |index: usize| values.get(index).map(|value| &value.string);
    match values.first().map(|value| value.boolean.get()) {
        Some(Ok(Some(1))) => match said(1).and_then(Text::get) {
            Some(xml) => Ok(xml.to_owned()),
            None => Err(Cause::BadReply("it holds no object".to_owned())),
        },
        Some(Ok(Some(0))) => Err(Cause::Denied {
            code: values.get(2).and_then(Scalar::number).unwrap_or(0),
            message: one_line(said(1).map_or("no text", |text| text.or("no text"))),
        }),
        _ => Err(Cause::BadReply("it is no list that begins with true or false".to_owned())),
    }
}

/// The text as part of a sentence.
fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A text of at most one line and 500 characters: it ends up in a log that is read line by line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}
